"""Tags in the store: names and values on keys, and the keys that have them.

A destroyed key has none. The feed tells a change of them as one of their key: policies may be on tags.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import ColumnElement, bindparam, delete, func, select

from hsmd.store.core import Tx
from hsmd.store.keys import SUBJECT, Key
from hsmd.store.schema import KEYS, LIVING, TAGS
from hsmd.store.seals import Sealed


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag of a key: `name` is DEW's tag key, unique on its CMK."""

    key_id: str
    name: str
    value: str
    project_id: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What keys are looked for: every name of `tags` with one of its values (any, when it lists none).

    `part` is contained in the key's alias, whatever the case of letters.
    """

    tags: Mapping[str, Sequence[str]]
    part: str = ""


_TAGS = Sealed(TAGS, Tag)
_KEYS = Sealed(KEYS, Key)

_of_key = TAGS.c.key_id == bindparam("key_id")
_one = _TAGS.where(_of_key, TAGS.c.name == bindparam("wanted"))
_all = _TAGS.where(_of_key)
_of_keys = _TAGS.where(TAGS.c.key_id.in_(bindparam("key_ids", expanding=True)))
_delete = delete(TAGS).where(_of_key, TAGS.c.name == bindparam("wanted"))
_release = delete(TAGS).where(_of_key)
_values = (
    select(TAGS.c.name, TAGS.c.value)
    .where(TAGS.c.project_id == bindparam("project"))
    .distinct()
    .order_by(TAGS.c.name, TAGS.c.value)
)


def put_tag(tx: Tx, tag: Tag) -> None:
    """Add the tag, or replace the value of the key's tag of that name."""
    present = _TAGS.one(tx, _one, key_id=tag.key_id, wanted=tag.name)
    (_TAGS.insert if present is None else _TAGS.update)(tx, tag)
    tx.changed(SUBJECT, tag.key_id)


def delete_tag(tx: Tx, key_id: str, name: str) -> None:
    """Remove the key's tag of that name, if there is one."""
    tx.connection.execute(_delete, {"key_id": key_id, "wanted": name})
    tx.changed(SUBJECT, key_id)


def release(tx: Tx, key_id: str) -> None:
    """Remove every tag of a key that goes."""
    tx.connection.execute(_release, {"key_id": key_id})
    tx.changed(SUBJECT, key_id)


def tags_of(tx: Tx, key_id: str) -> list[Tag]:
    """The key's tags, by name. Raises SealBroken."""
    return sorted(_TAGS.many(tx, _all, key_id=key_id), key=lambda tag: tag.name)


def tags_of_keys(tx: Tx, key_ids: Iterable[str]) -> dict[str, list[Tag]]:
    """The tags of many keys, by key id, each by name; a key without tags is left out. Raises SealBroken."""
    found = _TAGS.many(tx, _of_keys, key_ids=list(key_ids))
    found.sort(key=lambda tag: (tag.key_id, tag.name))
    return {key_id: list(tags) for key_id, tags in groupby(found, key=lambda tag: tag.key_id)}


def values_by_name(tx: Tx, project_id: str) -> dict[str, list[str]]:
    """Every tag name in the project with its values, each once. For the eye: seals are not checked."""
    rows = tx.connection.execute(_values, {"project": project_id}).all()
    return {name: [row[1] for row in group] for name, group in groupby(rows, key=lambda row: str(row[0]))}


def find_keys(
    tx: Tx, project_id: str, wanted: Wanted, *, limit: int | None = None, offset: int = 0
) -> list[Key]:
    """Living keys of the project that fit, in the order of their making. Raises SealBroken."""
    query = _KEYS.where(*_fitting(project_id, wanted)).order_by(KEYS.c.created, KEYS.c.id)
    return _KEYS.many(tx, query.limit(limit).offset(offset))


def count_keys(tx: Tx, project_id: str, wanted: Wanted) -> int:
    """How many living keys of the project fit."""
    query = select(func.count()).select_from(KEYS).where(*_fitting(project_id, wanted))
    return tx.connection.execute(query).scalar_one()


def _fitting(project_id: str, wanted: Wanted) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [KEYS.c.project_id == project_id, LIVING]
    for name, values in wanted.tags.items():
        # A set found by the tags' index, not a question for each key of the project.
        tagged = select(TAGS.c.key_id).where(TAGS.c.project_id == project_id, TAGS.c.name == name)
        conditions.append(KEYS.c.id.in_(tagged.where(TAGS.c.value.in_(values)) if values else tagged))
    if wanted.part:
        conditions.append(KEYS.c.alias.icontains(wanted.part, autoescape=True))
    return conditions
