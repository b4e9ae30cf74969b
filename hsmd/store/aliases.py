"""Aliases in the store: further names of a key. A project's names are one space, with the keys' own in it.

What a process keeps of a name is evicted by the subject `SUBJECT`, with `change_id` as the id.
"""

from dataclasses import dataclass

from sqlalchemy import bindparam, delete, func, select

from hsmd.errors import ALIAS_IN_USE, Error
from hsmd.store import keys
from hsmd.store.core import Tx
from hsmd.store.keys import Key
from hsmd.store.schema import ALIASES
from hsmd.store.seals import Sealed

SUBJECT = "aliases"  # in the change feed


@dataclass(frozen=True, slots=True)
class Alias:
    """A name of a key, without "alias/". `created` and `updated` are milliseconds since 1970 UTC."""

    project_id: str
    alias: str
    domain_id: str
    key_id: str
    created: int
    updated: int


_ALIASES = Sealed(ALIASES, Alias)

_in_project = ALIASES.c.project_id == bindparam("project_id")
_of_key = ALIASES.c.key_id == bindparam("key_id")
_same = (_in_project, ALIASES.c.alias == bindparam("name"))
_one = _ALIASES.where(*_same)
_page = (
    _ALIASES.where(_in_project, ALIASES.c.alias > bindparam("after"))
    .order_by(ALIASES.c.alias)
    .limit(bindparam("most"))
)
_all_of_key = _ALIASES.where(_of_key)
_count = select(func.count()).select_from(ALIASES).where(_of_key)
_delete = delete(ALIASES).where(*_same)


def change_id(project_id: str, alias: str) -> str:
    """The id under which the change feed tells that the name means another key, or none."""
    return f"{project_id}/{alias}"


def insert_alias(tx: Tx, alias: Alias) -> None:
    """Add a name. Raises ALIAS_IN_USE when a key or an alias of the project has it."""
    if resolve(tx, alias.project_id, alias.alias) is not None:
        raise Error(ALIAS_IN_USE, alias=alias.alias)
    _ALIASES.insert(tx, alias)
    left(tx, alias.project_id, alias.alias)


def update_alias(tx: Tx, alias: Alias) -> None:
    """Replace the row of this project and name. Raises SealBroken when it is gone."""
    _ALIASES.update(tx, alias)
    left(tx, alias.project_id, alias.alias)


def delete_alias(tx: Tx, alias: Alias) -> None:
    """Free the name."""
    tx.connection.execute(_delete, {"project_id": alias.project_id, "name": alias.alias})
    left(tx, alias.project_id, alias.alias)


def release(tx: Tx, key: Key) -> None:
    """Free every name of a key that goes: its aliases, and what is kept of its own name."""
    for alias in _ALIASES.many(tx, _all_of_key, key_id=key.id):
        delete_alias(tx, alias)
    left(tx, key.project_id, key.alias)


def left(tx: Tx, project_id: str, alias: str) -> None:
    """Tell that the name no longer means what it meant."""
    tx.changed(SUBJECT, change_id(project_id, alias))


def get_alias(tx: Tx, project_id: str, alias: str) -> Alias | None:
    """The row of that name; a key's own name has none. Raises SealBroken."""
    return _ALIASES.one(tx, _one, project_id=project_id, name=alias)


def resolve(tx: Tx, project_id: str, alias: str) -> Key | None:
    """The key that has the name, as its own or as an alias. Raises SealBroken."""
    key = keys.get_key_by_alias(tx, project_id, alias)
    if key is not None:
        return key
    row = get_alias(tx, project_id, alias)
    return None if row is None else keys.get_key(tx, row.key_id)


def list_aliases(
    tx: Tx, project_id: str, *, limit: int, after: str = "", key_id: str | None = None
) -> list[Alias]:
    """Aliases behind the name `after`, by name. Raises SealBroken."""
    if key_id is None:
        return _ALIASES.many(tx, _page, project_id=project_id, after=after, most=limit)
    # A key has few: the index by key finds them all, whatever the database would choose for a sorted page.
    found = [row for row in _ALIASES.many(tx, _all_of_key, key_id=key_id) if row.alias > after]
    return sorted(found, key=lambda row: row.alias)[:limit]


def count_aliases(tx: Tx, key_id: str) -> int:
    """How many the key has."""
    count: int = tx.connection.execute(_count, {"key_id": key_id}).scalar_one()
    return count
