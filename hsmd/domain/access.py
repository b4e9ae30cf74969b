"""May this caller do this on this key? The only door to a key row.

Roles are those of the DEW permission pages; their actions are in `dew/iam-actions.tsv`. Default is deny.
A key of another project and a key that does not exist look the same: KMS.0207.
"""

import re
from fnmatch import fnmatchcase
from functools import cache

from hsmd.caller import Caller
from hsmd.domain.core import Call
from hsmd.errors import (
    ACTION_REFUSED,
    KEY_DISABLED,
    KEY_ID_INVALID,
    KEY_NOT_FOUND,
    KEY_PENDING_DELETION,
    KEY_STATE_REFUSED,
    Error,
)
from hsmd.store import Tx, keys
from hsmd.store.keys import DESTROYED, Key

# DEW's key states.
ENABLED, DISABLED, PENDING_DELETION, PENDING_IMPORT, FROZEN = 2, 3, 4, 5, 7
_STATE_NAMES = {1: "pending activation", PENDING_IMPORT: "pending import", FROZEN: "frozen"}

ROLE_ACTIONS: dict[str, tuple[str, ...]] = {
    "KMS Administrator": ("kms:*",),
    "KMS CMKFullAccess": ("kms:cmk:*", "kms:dek:*", "kms:grant:*", "kms:cmkTag:*"),
    "KMS CMKReadOnlyAccess": ("kms:cmk:get*", "kms:cmk:list*", "kms:grant:list*", "kms:cmkTag:list*"),
}

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_ALIAS = re.compile(r"alias/([a-zA-Z0-9:/_-]{1,255})")
_URN = re.compile(r"kms:([^:]{1,64}):([0-9a-f]{32}):alias:([a-zA-Z0-9:/_-]{1,255})")


@cache
def _allows(role: str, action: str) -> bool:
    return any(fnmatchcase(action, pattern) for pattern in ROLE_ACTIONS.get(role, ()))


def permit(caller: Caller, action: str) -> None:
    """Raises Error(ACTION_REFUSED) unless a role of the caller's allows the action."""
    if not any(_allows(role, action) for role in caller.roles):
        raise Error(ACTION_REFUSED, action=action)


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
    """The caller's key by id, alias or URN, from the cache; any state but destroyed."""
    core, project = call.core, call.caller.project_id
    alias = alias_of(call, reference)
    if alias is None:
        row = core.cache.get(reference, "key", lambda: _load(call, reference))
    else:
        # An alias is looked up afresh: it may move from key to key, and its row is then in the cache.
        with call.read() as tx:
            row = keys.get_key_by_alias(tx, project, alias)
    return _own(call, row)


def key_for_change(call: Call, tx: Tx, reference: str) -> Key:
    """The same inside a change: read in its transaction, so that nobody else changes it meanwhile."""
    alias = alias_of(call, reference)
    if alias is None:
        return _own(call, keys.get_key(tx, reference))
    return _own(call, keys.get_key_by_alias(tx, call.caller.project_id, alias))


def usable(key: Key) -> Key:
    """The key itself when it is enabled; raises the state's own fault otherwise."""
    if key.state == ENABLED:
        return key
    if key.state == DISABLED:
        raise Error(KEY_DISABLED, key=key.id)
    if key.state == PENDING_DELETION:
        raise Error(KEY_PENDING_DELETION, key=key.id)
    raise Error(KEY_STATE_REFUSED, key=key.id, state=_STATE_NAMES.get(key.state, str(key.state)))


def _load(call: Call, key_id: str) -> Key | None:
    with call.read() as tx:
        return keys.get_key(tx, key_id)


def _own(call: Call, row: Key | None) -> Key:
    if row is None or row.project_id != call.caller.project_id or row.state == DESTROYED or _due(call, row):
        raise Error(KEY_NOT_FOUND)
    call.resource = row.id
    return row


def _due(call: Call, row: Key) -> bool:
    """Whether the key's last day has come, even when the deletion job has not: it is gone all the same."""
    return row.deletion_date is not None and row.deletion_date <= call.core.clock()
