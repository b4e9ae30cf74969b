"""Imported material in the store: it comes, goes and comes again as the same version of its key."""

from sqlalchemy import bindparam, select

from hsmd.store import keys, roots, schema
from hsmd.store.core import Tx
from hsmd.store.keys import Key, KeyUsage, KeyVersion
from hsmd.store.schema import KEYS, LIVING
from hsmd.store.seals import Sealed

_VERSIONS = Sealed(schema.VERSIONS, KeyVersion)
_USAGE = Sealed(schema.USAGE, KeyUsage)

_due = (
    select(KEYS.c.id)
    .where(KEYS.c.expires <= bindparam("now"), LIVING)
    .order_by(KEYS.c.expires, KEYS.c.id)
    .limit(bindparam("limit"))
)


def put_material(tx: Tx, key: Key, version: KeyVersion) -> None:
    """The version with its material, new or in place of the one that lost it, and its key's row.

    What a version has encrypted keeps being counted. Raises SealBroken.
    """
    roots.check_usable(tx, version.root_label)
    if keys.get_version(tx, version.key_id, version.version) is None:
        _VERSIONS.insert(tx, version)
        _USAGE.insert(tx, KeyUsage(version.key_id, version.version, used=0))
    else:
        _VERSIONS.update(tx, version)
    keys.update_key(tx, key)


def due_expirations(tx: Tx, now: int, *, limit: int = 10_000) -> list[str]:
    """Ids of living keys whose material had expired at `now` (ms), longest expired first.

    No seal is checked here, so that one broken row doesn't stand before all others: load each key.
    """
    return list(tx.connection.execute(_due, {"now": now, "limit": limit}).scalars())
