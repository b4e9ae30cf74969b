"""Further names of keys: an alias is given to a key, moved to another, taken away.

A name belongs to one key of the project, as its own `key_alias` or as an alias. Moving one changes what
callers reach who know nothing of it, so it only moves to a key of the same spec and usage: what was a right
call stays one. Another kind of key is reached by deleting the alias and creating it again.

A key that waits for its deletion gets no new names, but gives up those it has.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from hsmd.domain import access, keys
from hsmd.domain.core import Call
from hsmd.errors import (
    ALIAS_INVALID,
    ALIAS_NOT_FOUND,
    ALIAS_QUOTA_EXCEEDED,
    KEY_PENDING_DELETION,
    LIMIT_INVALID,
    PARAMETER_INVALID,
    Error,
)
from hsmd.store import Tx, aliases
from hsmd.store import keys as key_rows
from hsmd.store.aliases import Alias
from hsmd.store.keys import Key

PREFIX = "alias/"
ALIASES_PER_KEY = 50

_PAGE = 50
_LARGEST_PAGE = 1000
_MARKER = re.compile(r"alias/[a-zA-Z0-9:/_-]{1,255}")


@dataclass(frozen=True, slots=True)
class Page:
    """One page of aliases: `next_marker` is "" on the last one."""

    aliases: list[Alias]
    next_marker: str


def create(call: Call, reference: str, alias: str) -> Alias:
    """One more name for a key. DEW: create-alias."""
    name, now = _name(alias), call.core.clock()
    with call.change() as tx:
        key = _namable(call, tx, reference)
        row = Alias(key.project_id, name, key.domain_id, key.id, created=now, updated=now)
        aliases.insert_alias(tx, row)
    return row


def delete(call: Call, reference: str, names: Iterable[str]) -> None:
    """Take these aliases away from the key, all or none. DEW: delete-alias."""
    wanted = [_name(each) for each in dict.fromkeys(names)]
    with call.change() as tx:
        key = access.key_for_change(call, tx, reference)
        for name in wanted:
            row = aliases.get_alias(tx, key.project_id, name)
            if row is None or row.key_id != key.id:
                raise Error(ALIAS_NOT_FOUND, alias=PREFIX + name)
            aliases.delete_alias(tx, row)


def associate(call: Call, alias: str, target: str) -> Alias:
    """Move an alias to another key, in force for the next call. DEW: associate-alias."""
    name = _name(alias)
    with call.change() as tx:
        row = aliases.get_alias(tx, call.caller.project_id, name)
        if row is None:
            raise Error(ALIAS_NOT_FOUND, alias=alias)
        present = key_rows.get_key(tx, row.key_id)
        key = keys.custom(access.key_for_change(call, tx, target))
        if key.id == row.key_id:
            return row
        if present is not None:
            access.thawed(access.admit(call, present, tx))  # it loses a name
        _check_namable(tx, key)
        if present is None or (key.spec, key.usage) != (present.spec, present.usage):
            reason = "a key of the same key_spec and key_usage is due"
            raise Error(PARAMETER_INVALID, name="target_key_id", reason=reason)
        row = replace(row, key_id=key.id, updated=call.core.clock())
        aliases.update_alias(tx, row)
    return row


def list_aliases(call: Call, reference: str, *, limit: int | None, marker: str) -> Page:
    """Aliases of a key, or of the project for "", by name, behind the `marker`. DEW: list-aliases."""
    limit = _PAGE if limit is None else limit
    if not 1 <= limit <= _LARGEST_PAGE:
        raise Error(LIMIT_INVALID)
    if marker and not _MARKER.fullmatch(marker):
        raise Error(PARAMETER_INVALID, name="marker", reason="next_marker of the page before is due")
    key_id = access.key(call, reference).id if reference else None
    after = marker.removeprefix(PREFIX)
    with call.read() as tx:
        rows = _behind(call, tx, after, key_id, limit + 1)
    page = rows[:limit]
    return Page(page, PREFIX + page[-1].alias if len(rows) > limit else "")


def urn(call: Call, alias: Alias) -> str:
    """The name that says also where it holds."""
    return f"kms:{call.core.region}:{alias.domain_id}:alias:{alias.alias}"


def _behind(call: Call, tx: Tx, after: str, key_id: str | None, most: int) -> list[Alias]:
    """Aliases behind that name: those that the caller may see, so read on until there are enough of them."""
    seen: list[Alias] = []
    while True:
        rows = aliases.list_aliases(tx, call.caller.project_id, limit=most, after=after, key_id=key_id)
        seen += access.visible(call, tx, rows, lambda row: key_rows.get_key(tx, row.key_id))
        if len(rows) < most or len(seen) >= most:
            return seen[:most]
        after = rows[-1].alias


def _name(alias: str) -> str:
    """NAME of alias/NAME. Raises Error(ALIAS_INVALID)."""
    if not alias.startswith(PREFIX):
        raise Error(ALIAS_INVALID, reason="alias/NAME is due")
    name = alias.removeprefix(PREFIX)
    keys.check_alias(name)
    return name


def _namable(call: Call, tx: Tx, reference: str) -> Key:
    key = keys.custom(access.key_for_change(call, tx, reference))
    _check_namable(tx, key)
    return key


def _check_namable(tx: Tx, key: Key) -> None:
    if key.state == access.PENDING_DELETION:
        raise Error(KEY_PENDING_DELETION, key=key.id)
    if aliases.count_aliases(tx, key.id) >= ALIASES_PER_KEY:
        raise Error(ALIAS_QUOTA_EXCEEDED, quota=ALIASES_PER_KEY)
