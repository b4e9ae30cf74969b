"""Sealed rows: what decides security carries an HMAC over its content, so that a changed store is noticed.

What is sealed: every column but the seal, with the table's name, as `canonical` encodes it. A row taken
from another table, key or time of the same row's life fails, except the last: an older row put back
whole, with its seal, is not noticed, nor is a row that was removed (docs/decisions/0016).
"""

import hmac
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy import (
    Column,
    ColumnElement,
    Row,
    Select,
    Table,
    TypeDecorator,
    bindparam,
    insert,
    select,
    update,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from hsmd.store.core import Tx

    R = TypeVar("R", bound=DataclassInstance)
else:
    R = TypeVar("R")

Value = bool | int | str | bytes | None

_FORMAT = b"hsmd seal 1"
_TAGS: dict[type, bytes] = {bool: b"?", int: b"i", str: b"s", bytes: b"b"}


class SealBroken(Exception):  # noqa: N818 # named for what was found
    """A row is not what this program wrote: it was changed, swapped or removed behind its back."""

    def __init__(self, table: str, row_id: str) -> None:
        self.table = table
        self.id = row_id
        super().__init__(f"the row {row_id!r} of the table {table!r} fails its seal")


def canonical(table: str, values: Mapping[str, Value]) -> bytes:
    """What is sealed of a row: format, table, then name, type and content of each column, by name.

    Every part stands behind its length, so two different rows never give the same bytes. NULL columns
    are left out. That is the rule of evolution: a migration may add a nullable column and the seals of
    the rows written before it still hold; any other change of a sealed table needs a new `_FORMAT` and
    rows sealed again. Raises TypeError for a value of another type.
    """
    parts = [_part(_FORMAT), _part(table.encode())]
    for name in sorted(values):
        value = values[name]
        if value is not None:
            kind: type = type(value)
            parts += (_head(name, kind), _part(_content(value)))
    return b"".join(parts)


def holds(table: Table, row: Mapping[str, Any], seal: Callable[[bytes], bytes]) -> bool:
    """Whether a row, as an SQLite file has it, is what this program wrote. Raises what `seal` does."""
    values = {name: _plain(table.c[name], value) for name, value in row.items() if name != "seal"}
    found = row["seal"]
    try:
        return isinstance(found, bytes) and hmac.compare_digest(seal(canonical(table.name, values)), found)
    except TypeError:  # a type that this program never wrote
        return False


def _plain(column: Column[Any], value: Any) -> Any:
    """What SQLAlchemy makes of what is stored."""
    return bool(value) if isinstance(column.type, TypeDecorator) and value in (0, 1) else value


def _part(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content


@lru_cache(maxsize=1024)  # a column's is always the same
def _head(name: str, kind: type) -> bytes:
    if kind not in _TAGS:
        raise TypeError(f"{name}: a {kind.__name__} can't be sealed")
    return _part(name.encode()) + _part(_TAGS[kind])


def _content(value: bool | int | str | bytes) -> bytes:
    if isinstance(value, bytes):
        return value
    # surrogatepass: text that is not UTF-8 on disk comes here as surrogates and must just fail its seal
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else b"%d" % value


class Sealed(Generic[R]):
    """A sealed table and the record class of its rows: one field a column, by the same name."""

    def __init__(self, table: Table, record: type[R]) -> None:
        self.table = table
        self._record = record
        self._names = tuple(field.name for field in fields(record))
        self._columns: list[Column[Any]] = [table.c[name] for name in self._names]
        if {*self._names, "seal"} != set(table.c.keys()):
            raise TypeError(f"{record.__name__} and the table {table.name} differ")
        self._key = tuple(column.name for column in table.primary_key)
        # A bound name that equals a column's would be taken for a new value of that column.
        same = [table.c[name] == bindparam(f"same_{name}") for name in self._key]
        self._insert = insert(table)
        self._update = update(table).where(*same)

    def where(self, *conditions: ColumnElement[bool]) -> Select[Any]:
        """A query for `one` and `many`; its values are bound by name."""
        return select(*self._columns, self.table.c.seal).where(*conditions)

    def one(self, tx: "Tx", query: Select[Any], **values: object) -> R | None:
        """The row that the query finds, None when there is none. Raises SealBroken."""
        row = tx.connection.execute(query, values).one_or_none()
        return None if row is None else self._verified(tx, row)

    def many(
        self, tx: "Tx", query: Select[Any], broken: list[SealBroken] | None = None, **values: object
    ) -> list[R]:
        """All rows that the query finds, in its order. Raises SealBroken at the first that fails.

        With `broken` those that fail are left out, and what would have been raised stands there.
        """
        # All rows before the first is looked at: an exception holds what it came through, and a cursor held
        # half read would keep SQLite's connection at this state of the store, also for its next user.
        rows = tx.connection.execute(query, values).all()
        if broken is None:
            return [self._verified(tx, row) for row in rows]
        sound: list[R] = []
        for row in rows:
            try:
                sound.append(self._verified(tx, row))
            except SealBroken as error:
                broken.append(error)
        return sound

    def insert(self, tx: "Tx", record: R) -> None:
        """Add a row."""
        tx.connection.execute(self._insert, self._sealed(tx, record))

    def update(self, tx: "Tx", record: R) -> None:
        """Replace the row with this record's primary key. Raises SealBroken when it is gone."""
        values = self._sealed(tx, record)
        values |= {f"same_{name}": values[name] for name in self._key}
        if tx.connection.execute(self._update, values).rowcount != 1:
            raise SealBroken(self.table.name, self._id(values))

    def _sealed(self, tx: "Tx", record: R) -> dict[str, Any]:
        values: dict[str, Any] = {name: getattr(record, name) for name in self._names}
        return values | {"seal": tx.seal(canonical(self.table.name, values))}

    def _verified(self, tx: "Tx", row: Row[Any]) -> R:
        content, seal = row[:-1], row[-1]
        values: dict[str, Any] = dict(zip(self._names, content, strict=True))
        try:
            encoded = canonical(self.table.name, values)
        except TypeError as error:  # a type that this program never wrote
            raise SealBroken(self.table.name, self._id(values)) from error
        if not isinstance(seal, bytes) or not hmac.compare_digest(tx.seal(encoded), seal):
            raise SealBroken(self.table.name, self._id(values))
        return self._record(*content)

    def _id(self, values: Mapping[str, object]) -> str:
        return "/".join(str(values[name]) for name in self._key)
