"""The rows that hold what a root key has wrapped: found by its label, replaced when another one has."""

from collections import Counter
from collections.abc import Collection

from sqlalchemy import Table, bindparam, func, select

from hsmd.store.access_keys import AccessKey
from hsmd.store.access_points import AccessPoint
from hsmd.store.core import Tx
from hsmd.store.keys import KeyVersion
from hsmd.store.schema import ACCESS_KEYS, ACCESS_POINTS, VERSIONS
from hsmd.store.seals import Sealed

Wrapped = KeyVersion | AccessKey | AccessPoint

_VERSIONS = Sealed(VERSIONS, KeyVersion)
_ACCESS_KEYS = Sealed(ACCESS_KEYS, AccessKey)
_POINTS = Sealed(ACCESS_POINTS, AccessPoint)
_TABLES: dict[str, tuple[Table, str]] = {
    "key versions": (VERSIONS, "key_id"),
    "access keys": (ACCESS_KEYS, "id"),
    "access points": (ACCESS_POINTS, "id"),
}

_version = _VERSIONS.where(
    VERSIONS.c.key_id == bindparam("wanted"), VERSIONS.c.version == bindparam("number")
)
_access_key = _ACCESS_KEYS.where(ACCESS_KEYS.c.id == bindparam("wanted"))
_point = _POINTS.where(ACCESS_POINTS.c.id == bindparam("wanted"))


def counts(tx: Tx) -> dict[str, Counter[str]]:
    """How many rows there are that a root key has wrapped, by its label, for each kind of row."""
    return {name: _count(tx, table) for name, (table, _) in _TABLES.items()}


def wrapped_by(tx: Tx, labels: Collection[str], limit: int) -> list[str]:
    """Some rows that one of these has wrapped, as `row` and `put_row` name them. No seal is checked."""
    found: list[str] = []
    for name, (table, key) in _TABLES.items():
        columns = [table.c[key], *([table.c.version] if table is VERSIONS else [])]
        query = (
            select(*columns)
            .where(table.c.root_label.in_(labels), table.c.wrapped.is_not(None))
            .limit(limit - len(found))
        )
        found += [_joined(name, *each) for each in tx.connection.execute(query)]
        if len(found) >= limit:
            break
    return found


def row(tx: Tx, name: str) -> Wrapped | None:
    """The row of that name. Raises SealBroken."""
    kind, _, key = name.partition("/")
    if kind == "key":
        key_id, _, version = key.partition("/")
        return _VERSIONS.one(tx, _version, wanted=key_id, number=int(version))
    if kind == "access-key":
        return _ACCESS_KEYS.one(tx, _access_key, wanted=key)
    return _POINTS.one(tx, _point, wanted=key)


def put_row(tx: Tx, changed: Wrapped) -> None:
    """Replace the row. Raises SealBroken when it is gone.

    The feed tells nothing: who has the row in memory, or its key loaded, has the same key.
    """
    if isinstance(changed, KeyVersion):
        _VERSIONS.update(tx, changed)
    elif isinstance(changed, AccessKey):
        _ACCESS_KEYS.update(tx, changed)
    else:
        _POINTS.update(tx, changed)


def _joined(kind: str, key: str, version: int = 0) -> str:
    if kind == "key versions":
        return f"key/{key}/{version}"
    return f"{'access-key' if kind == 'access keys' else 'access-point'}/{key}"


def _count(tx: Tx, table: Table) -> Counter[str]:
    query = (
        select(table.c.root_label, func.count())
        .where(table.c.wrapped.is_not(None), table.c.root_label != "")
        .group_by(table.c.root_label)
    )
    return Counter({each.root_label: each[1] for each in tx.connection.execute(query)})
