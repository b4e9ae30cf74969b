"""May this caller do this on this key? The only door to a key row.

Roles stand in `builtin`; their actions are in `dew/iam-actions.tsv`. Default is deny.
A key of another project and a key that does not exist look the same: KMS.0207.

A grant opens one key to one user or domain for some operations. A call of a method that declares its grant
operation may so reach a key of another project, and a key that no role of the caller's would let it use.
"""

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache

from hsmd.caller import Caller
from hsmd.domain import builtin
from hsmd.domain.core import Call
from hsmd.errors import (
    ACTION_REFUSED,
    IAM_ACTION_REFUSED,
    KEY_DISABLED,
    KEY_ID_INVALID,
    KEY_NOT_FOUND,
    KEY_PENDING_DELETION,
    KEY_STATE_REFUSED,
    Error,
)
from hsmd.store import Tx, aliases, grants, keys
from hsmd.store.grants import Grant
from hsmd.store.keys import DESTROYED, Key

# DEW's key states.
ENABLED, DISABLED, PENDING_DELETION, PENDING_IMPORT, FROZEN = 2, 3, 4, 5, 7
_STATE_NAMES = {1: "pending activation", PENDING_IMPORT: "pending import", FROZEN: "frozen"}

# Kinds of grantees.
USER, DOMAIN = "user", "domain"

Entitled = Callable[[Caller, Grant], bool]
Rights = dict[tuple[str, str], frozenset[str]]
"""Granted operations by (kind of grantee, its id)."""

_NONE: frozenset[str] = frozenset()
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_ALIAS = re.compile(r"alias/([a-zA-Z0-9:/_-]{1,255})")
_URN = re.compile(r"kms:([^:]{1,64}):([0-9a-f]{32}):alias:([a-zA-Z0-9:/_-]{1,255})")


@cache
def _allows(role: str, action: str) -> bool:
    return role in builtin.BY_NAME and any(
        fnmatchcase(action, pattern) for pattern in builtin.BY_NAME[role].actions
    )


def permit(call: Call, action: str, *, deferred: bool = False) -> None:
    """Raises Error(ACTION_REFUSED) unless a role of the caller's allows the action.

    `deferred` keeps the refusal in the call: it counts unless a grant allows the call.
    """
    if not any(_allows(role, action) for role in call.caller.roles):
        if not deferred:
            raise Error(IAM_ACTION_REFUSED if in_domain(action) else ACTION_REFUSED, action=action)
        call.refused = action


def in_domain(action: str) -> bool:
    """Whether the action is one of the caller's domain, wherever else the caller may act."""
    return action.startswith(("iam:", "hsmd:"))


def check_refused(call: Call, reference: str) -> None:
    """Raises Error(ACTION_REFUSED) for a refused call that no grant allows, whatever else is wrong with it.

    `reference` is the key that it names, or "".
    """
    with suppress(Error):
        if not call.granted and reference:
            key(call, reference)
    call.check_allowed()


def is_key_id(reference: str) -> bool:
    """Whether it is a key's id, not an alias."""
    return _UUID.fullmatch(reference) is not None


def alias_of(call: Call, reference: str) -> str | None:
    """The alias that a reference names: `alias/NAME` or `kms:REGION:DOMAIN:alias:NAME`; None for a key id.

    Raises Error(KEY_ID_INVALID) for what is no reference, Error(KEY_NOT_FOUND) for a foreign URN.
    """
    if is_key_id(reference):
        return None
    if match := _ALIAS.fullmatch(reference):
        return match[1]
    if match := _URN.fullmatch(reference):
        if (match[1], match[2]) != (call.core.region, call.caller.domain_id):
            raise Error(KEY_NOT_FOUND)
        return match[3]
    raise Error(KEY_ID_INVALID)


def key(call: Call, reference: str) -> Key:
    """The caller's key by id, alias or URN, or by id one that is granted, from the cache.

    Any state but destroyed.
    """
    alias = alias_of(call, reference)
    key_id = reference if alias is None else _named(call, alias)
    row = None if key_id is None else call.core.cache.get(key_id, "key", lambda: _load(call, key_id))
    return _own(call, row)


def key_for_change(call: Call, tx: Tx, reference: str) -> Key:
    """The same inside a change: read in its transaction, so that nobody else changes it meanwhile."""
    alias = alias_of(call, reference)
    if alias is None:
        return _own(call, keys.get_key(tx, reference), tx)
    return _own(call, aliases.resolve(tx, call.caller.project_id, alias), tx)


def key_of_grant(call: Call, tx: Tx, reference: str, grant: Grant | None, entitled: Entitled) -> Key:
    """The key for a change of its grant: by the grant itself, for whom it entitles, else as any change.

    Who is entitled by the grant needs no other right, and names the key by its id.
    """
    if grant is not None and grant.key_id == reference and entitled(call.caller, grant):
        row = keys.get_key(tx, reference)
        if row is not None and _lives(call, row):
            call.resource, call.granted = row.id, True
            return row
    return key_for_change(call, tx, reference)


def is_grantee(caller: Caller, grant: Grant) -> bool:
    """Whether the grant is given to the caller, or to its domain."""
    return (grant.grantee_type, grant.grantee) in ((USER, caller.user_id), (DOMAIN, caller.domain_id))


def usable(key: Key) -> Key:
    """The key itself when it is enabled; raises the state's own fault otherwise."""
    if key.state == ENABLED:
        return key
    if key.state == DISABLED:
        raise Error(KEY_DISABLED, key=key.id)
    if key.state == PENDING_DELETION:
        raise Error(KEY_PENDING_DELETION, key=key.id)
    raise Error(KEY_STATE_REFUSED, key=key.id, state=_STATE_NAMES.get(key.state, str(key.state)))


def has_expired(call: Call, key: Key) -> bool:
    """Whether its imported material's time is over: it counts as gone, though the job was not there yet."""
    return key.expires is not None and key.expires <= call.core.clock()


def _named(call: Call, alias: str) -> str | None:
    """The id of the key that the alias names, kept until the change feed tells that it names another."""
    project = call.caller.project_id

    def look_up() -> str | None:
        with call.read() as tx:
            row = aliases.resolve(tx, project, alias)
        return None if row is None else row.id

    return call.core.cache.get(aliases.change_id(project, alias), "key id", look_up)


def _load(call: Call, key_id: str) -> Key | None:
    with call.read() as tx:
        return keys.get_key(tx, key_id)


def _own(call: Call, row: Key | None, tx: Tx | None = None) -> Key:
    """The row, if the caller's roles count for it, or a grant does."""
    if row is None or not _lives(call, row):
        call.check_allowed()
        raise Error(KEY_NOT_FOUND)
    if row.project_id != call.caller.project_id or call.refused:
        _check_granted(call, row, tx)
    call.resource = row.id
    if row.state in (ENABLED, DISABLED) and has_expired(call, row):
        return replace(row, state=PENDING_IMPORT)
    return row


def _check_granted(call: Call, row: Key, tx: Tx | None) -> None:
    """Marks the call as granted. Else it gets what it would if there were no such key, or no grants."""
    if call.grant:
        rights = _rights(call, row.id, tx)
        by_user = rights.get((USER, call.caller.user_id), _NONE)
        by_domain = rights.get((DOMAIN, call.caller.domain_id), _NONE)
        if call.grant in by_user or call.grant in by_domain:
            call.granted = True
            return
    if call.refused:
        raise Error(ACTION_REFUSED, action=call.refused)
    raise Error(KEY_NOT_FOUND)


def _rights(call: Call, key_id: str, tx: Tx | None) -> Rights:
    if tx is not None:
        return _summed(grants.grants_of_key(tx, key_id))

    def load() -> Rights:
        with call.read() as tx:
            return _summed(grants.grants_of_key(tx, key_id))

    return call.core.cache.get(key_id, "grants", load) or {}


def _summed(found: Iterable[Grant]) -> Rights:
    rights: Rights = {}
    for grant in found:
        grantee = (grant.grantee_type, grant.grantee)
        rights[grantee] = rights.get(grantee, _NONE) | frozenset(grant.operations.split())
    return rights


def _lives(call: Call, row: Key) -> bool:
    return row.state != DESTROYED and not _due(call, row)


def _due(call: Call, row: Key) -> bool:
    """Whether the key's last day has come, even when the deletion job has not: it is gone all the same."""
    return row.deletion_date is not None and row.deletion_date <= call.core.clock()
