"""Rotation in the store: further versions of a key, and which keys are due for one."""

from sqlalchemy import bindparam, func, select

from hsmd.store import keys, replicas, schema
from hsmd.store.core import Tx
from hsmd.store.keys import Key, KeyVersion
from hsmd.store.schema import ENABLED, KEYS
from hsmd.store.seals import Sealed

_VERSIONS = Sealed(schema.VERSIONS, KeyVersion)

_newest = (
    _VERSIONS.where(
        schema.VERSIONS.c.key_id == bindparam("key_id"), schema.VERSIONS.c.version <= bindparam("newest")
    )
    .order_by(schema.VERSIONS.c.version.desc())
    .limit(bindparam("limit"))
)
_made_since = (
    select(func.count())
    .select_from(schema.VERSIONS)
    .where(
        schema.VERSIONS.c.key_id == bindparam("key_id"),
        schema.VERSIONS.c.version.between(2, bindparam("newest")),
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
    """Add the version, unused, or put it in the place of one that waits, and replace the key's row.

    The key's row names it as the current one. Raises SealBroken when that row is gone.
    """
    replicas.put_version(tx, version, used=0)
    keys.update_key(tx, key)


def newest_versions(tx: Tx, key: Key, limit: int) -> list[KeyVersion]:
    """The key's newest versions from its current one, newest first, destroyed ones too. Raises SealBroken."""
    return _VERSIONS.many(tx, _newest, key_id=key.id, newest=key.current_version, limit=limit)


def rotations_since(tx: Tx, key: Key, since: int) -> int:
    """How many versions rotations have added after that time (ms)."""
    values = {"key_id": key.id, "newest": key.current_version, "since": since}
    return tx.connection.execute(_made_since, values).scalar_one()


def due_rotations(tx: Tx, now: int, *, limit: int = 10_000) -> list[str]:
    """Ids of enabled keys whose rotation was due at `now` (ms), longest due first.

    No seal is checked here, so that one broken row doesn't stand before all others: load each key.
    """
    return list(tx.connection.execute(_due, {"now": now, "limit": limit}).scalars())
