"""May this caller do this on this key? The only door to a key row.

What the caller's policies and roles say stands in `permissions` and `builtin`; their actions are in
`dew/iam-actions.tsv`. Default is deny. A key of another project and a key that does not exist look the same.

Where policies tell keys apart (by id, kind or tags), the answer is given here, when the key's row is there
and before anything is done with it: a call that ends without having asked is refused.

A grant opens one key to one user or domain for some operations. A call of a method that declares its grant
operation may so reach a key of another project, and a key that no policy of the caller's would let it use;
but not past a policy that denies it.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import reduce
from typing import TypeVar

from hsmd.caller import Caller
from hsmd.domain import entitlements, facts
from hsmd.domain.conditions import Told
from hsmd.domain.core import Call, refusal
from hsmd.domain.facts import CallFacts, KeyFacts
from hsmd.domain.permissions import Answer, Rules, narrowed
from hsmd.errors import (
    KEY_DISABLED,
    KEY_ID_INVALID,
    KEY_NOT_FOUND,
    KEY_PENDING_DELETION,
    KEY_STATE_REFUSED,
    NOT_A_REPLICA,
    Error,
)
from hsmd.store import Tx, aliases, grants, keys, tags
from hsmd.store.grants import Grant
from hsmd.store.keys import DESTROYED, Key

Listed = TypeVar("Listed")

# DEW's key states.
ENABLED, DISABLED, PENDING_DELETION, PENDING_IMPORT, FROZEN = 2, 3, 4, 5, 7
_STATE_NAMES = {1: "pending activation", PENDING_IMPORT: "pending import", FROZEN: "frozen"}

# Kinds of grantees.
USER, DOMAIN = "user", "domain"

Entitled = Callable[[Caller, Grant], bool]
Rights = dict[tuple[str, str], frozenset[str]]
"""Granted operations by (kind of grantee, its id)."""

_KEY = "key"  # what the cache knows of a key id
_NONE: frozenset[str] = frozenset()
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_ALIAS = re.compile(r"alias/([a-zA-Z0-9:/_-]{1,255})")
_URN = re.compile(r"kms:([^:]{1,64}):([0-9a-f]{32}):alias:([a-zA-Z0-9:/_-]{1,255})")


def permit(
    call: Call, action: str, *, deferred: bool = False, keyed: bool = False, resource: str = ""
) -> None:
    """Raises Error(ACTION_REFUSED, IAM_ACTION_REFUSED) unless the caller's policies allow the action.

    `deferred` keeps a refusal for want of a right in the call: it counts unless a grant, or what else the
    domain knows, allows the call. `keyed` methods are about keys: what policies say of them may wait for one.
    Others may be about a `resource` that has a name, like an agency.
    """
    own = call.permissions.rules(action)
    policy = call.caller.session_policy
    if own.plain is Answer.ALLOWED and not policy:
        return
    call.action = action
    call.rules = (own,)
    first, session = _asked(call, own, keyed, resource), Answer.ALLOWED
    if policy:
        narrower = entitlements.of_session(policy).rules(action)
        call.rules, session = (own, narrower), _asked(call, narrower, keyed, resource)
    if first is Answer.DENIED or session is Answer.DENIED or session is Answer.SILENT:
        raise refusal(action)
    if first is Answer.SILENT:
        if not deferred:
            raise refusal(action)
        call.refused = action
    call.depends = first is Answer.LATER or session is Answer.LATER


def _asked(call: Call, rules: Rules, keyed: bool, resource: str) -> Answer:
    if keyed:
        return rules.at_once(lambda: facts_of(call))
    return rules.plain or rules.with_key(facts_of(call), resource)


def facts_of(call: Call) -> CallFacts:
    """What conditions may be on before a key is known, made once a call."""
    if call.facts is None:
        call.facts = CallFacts(call)
    return call.facts


def urn(region: str, domain_id: str, key_id: str) -> str:
    """The key as policies name it."""
    return f"kms:{region}:{domain_id}:keyid:{key_id}"


def check_refused(call: Call, reference: str) -> None:
    """Raises Error(ACTION_REFUSED) for a refused call that no grant allows, whatever else is wrong with it.

    `reference` is the key that it names, or "". Who may use some key is not refused for naming none rightly.
    """
    try:
        if not call.granted and reference:
            key(call, reference)
    except Error as error:
        if error.fault is KEY_ID_INVALID and not call.refused:
            return
    if call.refused or reference:
        call.check_allowed()


def admit(call: Call, row: Key, tx: Tx | None = None) -> Key:
    """The row itself: of a key that the call is about to make, or has come to by another way than here.

    Raises Error(ACTION_REFUSED) when the caller's policies refuse it for a key like that.
    """
    if call.rules and _answer(call, row, tx) is not Answer.ALLOWED:
        raise refusal(call.action)
    call.settled = True
    return row


def sees_all(call: Call) -> bool:
    """Whether `visible` leaves out no key of the project; else lists look at each key."""
    return not call.depends


def visible(
    call: Call, tx: Tx, found: Iterable[Listed], key_of: Callable[[Listed], Key | None]
) -> list[Listed]:
    """Those, in their order, whose keys the caller's policies allow the action on: for lists."""
    if sees_all(call):
        return list(found)
    call.settled = True
    rows = ((each, key_of(each)) for each in found)
    return [each for each, row in rows if row is not None and _answer(call, row, tx) is Answer.ALLOWED]


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
    row: Key | None = call.core.cache.known(reference, _KEY)
    if row is not None:  # most calls name a key by its id, and it was used before
        return _own(call, row, reference)
    alias = alias_of(call, reference)
    key_id = reference if alias is None else _named(call, alias)
    row = None if key_id is None else call.core.cache.get(key_id, _KEY, lambda: _load(call, key_id))
    return _own(call, row, key_id or "")


def key_for_change(call: Call, tx: Tx, reference: str) -> Key:
    """The same inside a change: read in its transaction, so that nobody else changes it meanwhile.

    Raises Error(KEY_STATE_REFUSED) for a frozen key, which stays as it is.
    """
    alias = alias_of(call, reference)
    if alias is None:
        return thawed(_own(call, keys.get_key(tx, reference), reference, tx))
    row = aliases.resolve(tx, call.caller.project_id, alias)
    return thawed(_own(call, row, row.id if row else "", tx))


def thawed(key: Key) -> Key:
    """The key itself, unless it is frozen: Error(KEY_STATE_REFUSED)."""
    if key.state == FROZEN:
        raise Error(KEY_STATE_REFUSED, key=key.id, state=_STATE_NAMES[FROZEN])
    return key


def key_of_quorum(call: Call, tx: Tx, key_id: str) -> Key:
    """A living key of whichever project, for what UKeys decide about it. Raises Error(KEY_NOT_FOUND)."""
    row = keys.get_key(tx, key_id)
    if call.caller.kind != "ukey" or row is None or not _lives(call, row):
        raise Error(KEY_NOT_FOUND)
    call.resource = row.id
    return row


def key_of_grant(call: Call, tx: Tx, reference: str, grant: Grant | None, entitled: Entitled) -> Key:
    """The key for a change of its grant: by the grant itself, for whom it entitles, else as any change.

    Who is entitled by the grant needs no other right, and names the key by its id.
    """
    if grant is not None and grant.key_id == reference and entitled(call.caller, grant):
        row = keys.get_key(tx, reference)
        if row is not None and _lives(call, row):
            _check_not_denied(call, row, tx)
            call.resource, call.granted = row.id, True
            return row
    return key_for_change(call, tx, reference)


def key_of_peer(call: Call, tx: Tx, key_id: str, *primaries: str) -> Key | None:
    """A peer's key here, whose primary is in one of these regions; None when it is not here (any more).

    Raises Error(NOT_A_REPLICA) for a key of another region, and for who is no peer.
    """
    row = keys.get_key(tx, key_id)
    if row is None or not _lives(call, row):
        return None
    if call.caller.kind != "peer" or row.primary_region not in primaries:
        raise Error(NOT_A_REPLICA)
    call.resource = row.id
    call.caller = call.caller._replace(domain_id=row.domain_id, project_id=row.project_id)
    return row


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


def _own(call: Call, row: Key | None, key_id: str, tx: Tx | None = None) -> Key:
    """The row, if the caller's policies count for it, or a grant does."""
    if row is None or not _lives(call, row):
        raise _no_such_key(call, key_id)
    if row.project_id != call.caller.project_id:
        if not _is_granted(call, row, tx):
            raise _no_such_key(call, key_id)
    elif call.rules and _answer(call, row, tx) is not Answer.ALLOWED:
        if not _is_granted(call, row, tx):
            raise refusal(call.action)
    else:
        call.settled = True
    call.resource = row.id
    if row.state in (ENABLED, DISABLED) and has_expired(call, row):
        return replace(row, state=PENDING_IMPORT)
    return row


def _no_such_key(call: Call, key_id: str) -> Error:
    """What is said of a key that is not there: the same as of one that is there and may not be used."""
    if call.refused:
        return refusal(call.action)
    here = urn(call.core.region, call.caller.domain_id, key_id)
    if any(each.with_key(facts_of(call), here) is not Answer.ALLOWED for each in call.rules):
        return refusal(call.action)
    call.settled = True
    return Error(KEY_NOT_FOUND)


def _answer(call: Call, row: Key, tx: Tx | None) -> Answer:
    """What the caller's policies, and its session policy, say of this key."""
    return reduce(narrowed, _answers(call, row, tx))


def _answers(call: Call, row: Key, tx: Tx | None) -> list[Answer]:
    known = KeyFacts(facts_of(call), row, lambda: _tags(call, row, tx))
    here = urn(call.core.region, row.domain_id, row.id)
    return [each.with_key(known, here) for each in call.rules]


def _tags(call: Call, row: Key, tx: Tx | None) -> Told:
    def load() -> Told:
        with call.read() as look:
            return facts.of_tags(tags.tags_of(look, row.id))

    if tx is not None:
        return facts.of_tags(tags.tags_of(tx, row.id))
    return call.core.cache.get(row.id, "tags", load)


def _is_granted(call: Call, row: Key, tx: Tx | None) -> bool:
    """Whether a grant allows the call, which is noted. Raises Error(ACTION_REFUSED) for what is denied."""
    if not call.grant:
        return False
    rights = _rights(call, row.id, tx)
    by_user = rights.get((USER, call.caller.user_id), _NONE)
    by_domain = rights.get((DOMAIN, call.caller.domain_id), _NONE)
    if call.grant not in by_user and call.grant not in by_domain:
        return False
    _check_not_denied(call, row, tx)
    call.granted = True
    return True


def _check_not_denied(call: Call, row: Key, tx: Tx | None) -> None:
    """A grant stands in for a policy that allows, not for one that denies, nor for the session policy."""
    if call.rules:
        own, *session = _answers(call, row, tx)
        if own is Answer.DENIED or any(each is not Answer.ALLOWED for each in session):
            raise refusal(call.action)


def _rights(call: Call, key_id: str, tx: Tx | None) -> Rights:
    if tx is not None:
        return _summed(grants.grants_of_key(tx, key_id))

    def load() -> Rights:
        with call.read() as tx:
            return _summed(grants.grants_of_key(tx, key_id))

    return call.core.cache.get(key_id, "grants", load)


def _summed(found: Iterable[Grant]) -> Rights:
    rights: Rights = {}
    for grant in found:
        grantee = (grant.grantee_type, grant.grantee)
        rights[grantee] = rights.get(grantee, _NONE) | frozenset(grant.operations.split())
    return rights


def _lives(call: Call, row: Key) -> bool:
    """Whether it is there: neither destroyed, nor is its last day over, whether the job was there or not."""
    due = row.deletion_date is not None and row.deletion_date <= call.core.clock()
    return row.state != DESTROYED and not due
