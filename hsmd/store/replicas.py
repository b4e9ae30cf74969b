"""Replicas in the store: in which regions a key is besides its primary one, and versions that wait there."""

from dataclasses import dataclass, replace

from sqlalchemy import bindparam, delete, func, or_, select

from hsmd.store import keys, roots, schema
from hsmd.store.core import Tx
from hsmd.store.keys import KeyUsage, KeyVersion
from hsmd.store.schema import KEYS, LIVING, REPLICAS
from hsmd.store.seals import Sealed

# What a replica's row can say.
PENDING = "pending"  # it was begun: the region may have the key, whole or in part
REPLICATED = "replicated"  # the region has every version
HEIR = "heir"  # so it has, and is becoming the primary


@dataclass(frozen=True, slots=True)
class Replica:
    """A key in another region, as its primary region knows it.

    `told` is the newest version that it was told to encrypt with, `share` how many messages it may encrypt
    with the version `share_version`. `created`, when it was last begun, is milliseconds since 1970 UTC.
    """

    key_id: str
    region: str
    state: str
    told: int
    share: int
    share_version: int
    created: int


_REPLICAS = Sealed(REPLICAS, Replica)
_VERSIONS = Sealed(schema.VERSIONS, KeyVersion)
_USAGE = Sealed(schema.USAGE, KeyUsage)

_of_key = REPLICAS.c.key_id == bindparam("key")
_in_region = REPLICAS.c.region == bindparam("place")
_all = _REPLICAS.where(_of_key).order_by(REPLICAS.c.region)
_one = _REPLICAS.where(_of_key, _in_region)
_forget = delete(REPLICAS).where(_of_key, _in_region)
_release = delete(REPLICAS).where(_of_key)
_unfinished = (
    select(REPLICAS.c.key_id)
    .join(KEYS, KEYS.c.id == REPLICAS.c.key_id)
    .where(
        LIVING,
        or_(
            REPLICAS.c.state == HEIR,
            (REPLICAS.c.state == REPLICATED) & (REPLICAS.c.told < KEYS.c.current_version),
        ),
    )
    .group_by(REPLICAS.c.key_id)
    .order_by(func.random())  # so that many whose region is away don't stand before all others for ever
    .limit(bindparam("most"))
)
_of_version = schema.VERSIONS.c.key_id == bindparam("key")
_newest = select(func.max(schema.VERSIONS.c.version)).where(_of_version)
_below = (
    _VERSIONS.where(_of_version, schema.VERSIONS.c.version < bindparam("below"))
    .order_by(schema.VERSIONS.c.version.desc())
    .limit(bindparam("most"))
)
_after = (
    _VERSIONS.where(
        _of_version,
        schema.VERSIONS.c.version > bindparam("after"),
        schema.VERSIONS.c.version <= bindparam("newest"),
    )
    .order_by(schema.VERSIONS.c.version)
    .limit(bindparam("most"))
)
_usage = _USAGE.where(
    schema.USAGE.c.key_id == bindparam("key"), schema.USAGE.c.version == bindparam("number")
)


def put_replica(tx: Tx, replica: Replica) -> None:
    """Add the row of this key and region, or replace it."""
    present = _REPLICAS.one(tx, _one, key=replica.key_id, place=replica.region)
    (_REPLICAS.insert if present is None else _REPLICAS.update)(tx, replica)


def get_replica(tx: Tx, key_id: str, region: str) -> Replica | None:
    """The row of that key and region. Raises SealBroken."""
    return _REPLICAS.one(tx, _one, key=key_id, place=region)


def replicas_of(tx: Tx, key_id: str) -> list[Replica]:
    """All of the key's, by region. Raises SealBroken."""
    return _REPLICAS.many(tx, _all, key=key_id)


def delete_replica(tx: Tx, key_id: str, region: str) -> None:
    """The key is not there (any more)."""
    tx.connection.execute(_forget, {"key": key_id, "place": region})


def release(tx: Tx, key_id: str) -> None:
    """The key has no replicas that this region looks after."""
    tx.connection.execute(_release, {"key": key_id})


def unfinished(tx: Tx, *, limit: int = 1000) -> list[str]:
    """Ids of the keys with a replica that was not told of the current version, or is still becoming primary.

    In no order, and others each time when there are more.
    No seal is checked here, so that one broken row doesn't stand before all others: load each key.
    """
    return list(tx.connection.execute(_unfinished, {"most": limit}).scalars())


def newest_version(tx: Tx, key_id: str) -> int:
    """The number of the key's newest version, one that waits included."""
    number: int = tx.connection.execute(_newest, {"key": key_id}).scalar_one()
    return number


def versions_below(tx: Tx, key_id: str, below: int, limit: int) -> list[KeyVersion]:
    """The key's versions before that number, newest first. Raises SealBroken."""
    return _VERSIONS.many(tx, _below, key=key_id, below=below, most=limit)


def versions_after(tx: Tx, key_id: str, after: int, newest: int, limit: int) -> list[KeyVersion]:
    """The key's versions behind the one number up to the other, oldest first. Raises SealBroken."""
    return _VERSIONS.many(tx, _after, key=key_id, after=after, newest=newest, most=limit)


def put_version(tx: Tx, version: KeyVersion, used: int) -> None:
    """The version, new or in place of what stood there; it has encrypted `used` messages at least.

    What it has encrypted keeps being counted. Raises SealBroken.
    """
    roots.check_usable(tx, version.root_label)
    if keys.get_version(tx, version.key_id, version.version) is None:
        _VERSIONS.insert(tx, version)
    else:
        _VERSIONS.update(tx, version)
    usage = _USAGE.one(tx, _usage, key=version.key_id, number=version.version)
    if usage is None:
        _USAGE.insert(tx, KeyUsage(version.key_id, version.version, used))
    elif usage.used < used:  # it waited here for a primary that others have followed since
        _USAGE.update(tx, replace(usage, used=used))
    tx.changed(keys.SUBJECT, version.key_id)
