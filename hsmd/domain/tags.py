"""Tags on keys: put, replaced, taken away; keys found by them. As in DEW: 10 a key, none on default keys."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from hsmd.domain import access, keys
from hsmd.domain.core import Call
from hsmd.errors import (
    KEY_PENDING_DELETION,
    LIMIT_INVALID,
    MATCH_KEY_INVALID,
    MATCH_VALUE_INVALID,
    MATCHES_INVALID,
    OFFSET_INVALID,
    OFFSET_REFUSED,
    RESOURCE_TYPE_INVALID,
    TAG_COUNT_INVALID,
    TAG_KEY_INVALID,
    TAG_KEY_TOO_LONG,
    TAG_LIST_INVALID,
    TAG_NOT_FOUND,
    TAG_VALUE_INVALID,
    TAG_VALUE_TOO_LONG,
    TAG_VALUES_EXCEEDED,
    TAGS_EXCEEDED,
    TAGS_MISSING,
    Error,
    Fault,
)
from hsmd.store import Tx, tags
from hsmd.store.keys import Key
from hsmd.store.tags import Tag, Wanted

TAGS_PER_KEY = 10
RESOURCE = "resource_instances"

_KEY_LENGTH = 36
_VALUE_LENGTH = 43
_MATCH_LENGTH = 255
_FORBIDDEN = frozenset("*<>\\=")
_PAGE = 10
_LARGEST_PAGE = 1000
_AT_ONCE = 500  # ids in one question to the store

Pair = tuple[str, str]
"""A tag as callers write it: key and value."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """A key and its tags."""

    key: Key
    tags: list[Tag]


def put(call: Call, reference: str, pairs: Sequence[Pair]) -> None:
    """Put tags on a key, all or none; one of the same key gets the new value. DEW: create-kms-tag, batch."""
    check_pairs(pairs)
    with call.change() as tx:
        key = _taggable(call, tx, reference)
        present = {tag.name for tag in tags.tags_of(tx, key.id)}
        if len(present.union(name for name, _ in pairs)) > TAGS_PER_KEY:
            raise Error(TAGS_EXCEEDED, quota=TAGS_PER_KEY)
        for name, value in pairs:
            tags.put_tag(tx, Tag(key.id, name, value, key.project_id))


def remove(call: Call, reference: str, pairs: Sequence[Pair]) -> None:
    """Take tags away from a key, all or none. DEW: delete-tag, batch.

    A value, where one is given, must be the tag's.
    """
    _check_list([name for name, _ in pairs])
    for name, _ in pairs:
        _check_key(name)
    with call.change() as tx:
        key = _taggable(call, tx, reference)
        present = {tag.name: tag.value for tag in tags.tags_of(tx, key.id)}
        for name, value in pairs:
            if name not in present or value not in ("", present[name]):
                raise Error(TAG_NOT_FOUND, key=name)
            tags.delete_tag(tx, key.id, name)


def show(call: Call, reference: str) -> list[Tag]:
    """The key's tags, by their keys. DEW: show-kms-tags."""
    key = access.key(call, reference)
    with call.read() as tx:
        return tags.tags_of(tx, key.id)


def list_tags(call: Call) -> dict[str, list[str]]:
    """Every tag key of the project with all its values. DEW: list-kms-tags."""
    project = call.caller.project_id
    with call.read() as tx:
        if access.sees_all(call):
            return tags.values_by_name(tx, project)
        seen = access.visible(call, tx, tags.find_keys(tx, project, Wanted({})), lambda key: key)
        found: dict[str, set[str]] = {}
        for start in range(0, len(seen), _AT_ONCE):
            known = tags.tags_of_keys(tx, [key.id for key in seen[start : start + _AT_ONCE]])
            for tag in chain.from_iterable(known.values()):
                found.setdefault(tag.name, set()).add(tag.value)
    return {name: sorted(values) for name, values in sorted(found.items())}


def find(
    call: Call,
    resource: str,
    filters: Iterable[tuple[str, Sequence[str]]],
    matches: Iterable[Pair],
    *,
    limit: int | None,
    offset: int | None,
) -> tuple[list[Tagged], int]:
    """A page of the keys that fit, oldest first, and how many fit in all. DEW: list-kms-by-tags, filter."""
    wanted = _wanted(resource, filters, matches)
    limit = _PAGE if limit is None else limit
    if not 1 <= limit <= _LARGEST_PAGE:
        raise Error(LIMIT_INVALID)
    if offset is not None and offset < 0:
        raise Error(OFFSET_INVALID)
    project = call.caller.project_id
    with call.read() as tx:
        if access.sees_all(call):
            found = tags.find_keys(tx, project, wanted, limit=limit, offset=offset or 0)
            total = tags.count_keys(tx, project, wanted)
        else:
            seen = access.visible(call, tx, tags.find_keys(tx, project, wanted), lambda key: key)
            found, total = seen[offset or 0 :][:limit], len(seen)
        known = tags.tags_of_keys(tx, [key.id for key in found])
    return [Tagged(key, known.get(key.id, [])) for key in found], total


def count(
    call: Call,
    resource: str,
    filters: Iterable[tuple[str, Sequence[str]]],
    matches: Iterable[Pair],
    *,
    offset: int | None,
) -> int:
    """How many keys fit; a page has no meaning here, so no offset. DEW: list-kms-by-tags, count."""
    wanted = _wanted(resource, filters, matches)
    if offset is not None:
        raise Error(OFFSET_REFUSED)
    project = call.caller.project_id
    with call.read() as tx:
        if access.sees_all(call):
            return tags.count_keys(tx, project, wanted)
        return len(access.visible(call, tx, tags.find_keys(tx, project, wanted), lambda key: key))


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Raises the fault of the first tag that a key can't have, or of their number."""
    _check_list([name for name, _ in pairs])
    for name, value in pairs:
        _check_key(name)
        _check_value(value)


def _taggable(call: Call, tx: Tx, reference: str) -> Key:
    key = keys.custom(access.key_for_change(call, tx, reference))
    if key.state == access.PENDING_DELETION:
        raise Error(KEY_PENDING_DELETION, key=key.id)
    return key


def _check_list(names: Sequence[str]) -> None:
    if not names:
        raise Error(TAGS_MISSING)
    if len(names) > TAGS_PER_KEY:
        raise Error(TAG_COUNT_INVALID, reason=f"at most {TAGS_PER_KEY} are due")
    if len(set(names)) != len(names):
        raise Error(TAG_LIST_INVALID, reason="it names a key twice")


def _check_key(name: str) -> None:
    if len(name) > _KEY_LENGTH:
        raise Error(TAG_KEY_TOO_LONG)
    if not name.strip():
        raise Error(TAG_KEY_INVALID, reason="it is empty")
    _check_characters(name, TAG_KEY_INVALID)


def _check_value(value: str) -> None:
    if len(value) > _VALUE_LENGTH:
        raise Error(TAG_VALUE_TOO_LONG)
    _check_characters(value, TAG_VALUE_INVALID)


def _check_characters(text: str, fault: Fault) -> None:
    if not text.isprintable() or not _FORBIDDEN.isdisjoint(text):
        raise Error(fault, reason="printable characters but * < > \\ = are due")


def _wanted(resource: str, filters: Iterable[tuple[str, Sequence[str]]], matches: Iterable[Pair]) -> Wanted:
    if resource != RESOURCE:
        raise Error(RESOURCE_TYPE_INVALID, due=RESOURCE)
    found: dict[str, Sequence[str]] = {}
    for name, values in filters:
        _check_key(name)
        if name in found or len(set(values)) != len(values):
            raise Error(TAG_LIST_INVALID, reason="it names a key or a value twice")
        if len(values) > TAGS_PER_KEY:
            raise Error(TAG_VALUES_EXCEEDED, reason=f"at most {TAGS_PER_KEY} are due")
        for value in values:
            _check_value(value)
        found[name] = values
    if len(found) > TAGS_PER_KEY:
        raise Error(TAG_COUNT_INVALID, reason=f"at most {TAGS_PER_KEY} are due")
    return Wanted(found, _matched(matches))


def _matched(matches: Iterable[Pair]) -> str:
    """What the key's alias must contain; "" for anything."""
    part = ""
    for field, value in matches:
        if field != "resource_name":
            raise Error(MATCH_KEY_INVALID)
        if part:
            raise Error(MATCHES_INVALID, reason="resource_name stands there twice")
        if not 1 <= len(value) <= _MATCH_LENGTH or not value.isprintable():
            raise Error(MATCH_VALUE_INVALID, reason=f"1 to {_MATCH_LENGTH} printable characters are due")
        part = value
    return part
