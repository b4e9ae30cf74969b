"""Rotation in the store: further versions of a key, and which keys are due for one."""

from sqlalchemy import bindparam, func, select

from hsmd.store import keys, schema
from hsmd.store.core import Tx
from hsmd.store.keys import Key, KeyUsage, KeyVersion
from hsmd.store.schema import ENABLED, KEYS
from hsmd.store.seals import Sealed

_VERSIONS = Sealed(schema.VERSIONS, KeyVersion)
_USAGE = Sealed(schema.USAGE, KeyUsage)

_newest = (
    _VERSIONS.where(schema.VERSIONS.c.key_id == bindparam("key_id"))
    .order_by(schema.VERSIONS.c.version.desc())
    .limit(bindparam("limit"))
)
_made_since = (
    select(func.count())
    .select_from(schema.VERSIONS)
    .where(
        schema.VERSIONS.c.key_id == bindparam("key_id"),
        schema.VERSIONS.c.version > 1,
        schema.VERSIONS.c.created > bindparam("since"),
    )
)
_due = (
    select(KEYS.c.id)
    .where(KEYS.c.rotation_due <= bindparam("now"), ENABLED)
    .order_by(KEYS.c.rotation_due, KEYS.c.id)
    .limit(bindparam("limit"))
)


def rotate(tx: Tx, key: Key, version: KeyVersion) -> None:
    """Add the version, unused, and replace the key's row, which names it as the current one.

    Raises SealBroken when the key's row is gone, the store's fault when it has this version already.
    """
    _VERSIONS.insert(tx, version)
    _USAGE.insert(tx, KeyUsage(version.key_id, version.version, used=0))
    keys.update_key(tx, key)


def newest_versions(tx: Tx, key_id: str, limit: int) -> list[KeyVersion]:
    """The key's newest versions, newest first, destroyed ones too. Raises SealBroken."""
    return _VERSIONS.many(tx, _newest, key_id=key_id, limit=limit)


def rotations_since(tx: Tx, key_id: str, since: int) -> int:
    """How many versions rotations have added after that time (ms)."""
    return tx.connection.execute(_made_since, {"key_id": key_id, "since": since}).scalar_one()


def due_rotations(tx: Tx, now: int, *, limit: int = 10_000) -> list[str]:
    """Ids of enabled keys whose rotation was due at `now` (ms), longest due first.

    No seal is checked here, so that one broken row doesn't stand before all others: load each key.
    """
    return list(tx.connection.execute(_due, {"now": now, "limit": limit}).scalars())
