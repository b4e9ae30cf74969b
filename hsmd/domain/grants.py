"""Grants: leave for a user or a domain, also of other tenants, to use one key by its id.

How a grant lets a call through stands in `access`. A grant ends by being revoked or retired, or with its key.
Who passes a grant on makes one of its own, which stands by itself: the owner sees it, and its maker's id.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from hsmd.caller import Caller
from hsmd.domain import access, keys
from hsmd.domain.core import DAY_MILLIS, Call
from hsmd.errors import (
    GRANT_ALONE,
    GRANT_ID_INVALID,
    GRANT_NOT_FOUND,
    GRANT_REFUSED,
    GRANTS_EXCEEDED,
    PARAMETER_INVALID,
    PRINCIPAL_INVALID,
    SEQUENCE_INVALID,
    Error,
)
from hsmd.store import Tx, sequences
from hsmd.store import grants as rows
from hsmd.store.grants import Grant

CREATE_GRANT, RETIRE_GRANT = "create-grant", "retire-grant"
OPERATIONS = frozenset(
    [
        *("create-datakey", "create-datakey-without-plaintext", "encrypt-datakey", "decrypt-datakey"),
        *("describe-key", "encrypt-data", "decrypt-data"),
        *("sign", "verify", "generate-mac", "verify-mac", "get-publickey"),
        *(CREATE_GRANT, RETIRE_GRANT),
    ]
)
GRANTS_PER_KEY = 100

_PRINCIPAL = re.compile(r"[0-9a-f]{32}")
_GRANT_ID = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-zA-Z0-9:/_-]{1,255}")
_ID_BYTES = 32
_SEQUENCES = "create-grant"


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list: `next_marker` is None on the last one."""

    grants: list[Grant]
    total: int
    next_marker: int | None


def create(
    call: Call,
    reference: str,
    *,
    grantee: str,
    operations: Iterable[str],
    grantee_type: str = "",
    name: str = "",
    retiring: str = "",
    sequence: str = "",
) -> Grant:
    """Let the grantee do these operations. The same `sequence` within 24 hours gives the first grant.

    Who was granted create-grant itself may pass on what it was granted, and no more: Error(GRANT_REFUSED).
    DEW: create-grant.
    """
    wanted = _checked_operations(operations)
    _check_principals(grantee, retiring)
    if name and not _NAME.fullmatch(name):
        raise Error(PARAMETER_INVALID, name="name", reason="1 to 255 of letters, digits and :/_- are due")
    keys.check_sequence(sequence)
    with call.change() as tx:
        key = access.usable(keys.custom(access.key_for_change(call, tx, reference)))
        if call.granted:
            _check_within_own(call, tx, key.id, wanted)
        draft = Grant(
            id=call.core.token.random(_ID_BYTES).hex(),
            key_id=key.id,
            project_id=key.project_id,
            name=name,
            grantee=grantee,
            grantee_type=grantee_type or access.USER,
            retiring=retiring,
            issuing=call.caller.user_id,
            operations=" ".join(sorted(wanted)),
            created=call.core.clock(),
        )
        return _first_or_new(call, tx, draft, sequence)


def revoke(call: Call, reference: str, grant_id: str) -> None:
    """End a grant: for who may manage the key's grants, and for who made it. DEW: revoke-grant."""
    with call.change() as tx:
        grant = _for_change(call, tx, reference, grant_id, is_maker)
        rows.delete_grant(tx, grant)


def retire(call: Call, reference: str, grant_id: str) -> None:
    """End a grant: for those whom it names for that. DEW: retire-grant."""
    with call.change() as tx:
        grant = _for_change(call, tx, reference, grant_id, may_retire)
        if not may_retire(call.caller, grant):
            raise Error(
                GRANT_REFUSED, reason="its maker, its retiring principal or its grantee may retire it"
            )
        rows.delete_grant(tx, grant)


def list_of_key(call: Call, reference: str, *, limit: int | None, marker: int | None) -> Page:
    """The key's grants from position `marker` on, oldest first. DEW: list-grants."""
    size, start = keys.page_bounds(limit, marker, GRANTS_PER_KEY)
    key = access.key(call, reference)
    with call.read() as tx:
        found = rows.grants_of_key(tx, key.id, limit=size, offset=start)
        return _page(found, start, rows.count_of_key(tx, key.id))


def list_retirable(call: Call, *, limit: int | None, marker: int | None) -> Page:
    """The grants that the caller may retire, oldest first. DEW: list-retirable-grants."""
    call.granted = True  # it shows nobody more than what names them
    size, start = keys.page_bounds(limit, marker, GRANTS_PER_KEY)
    user, domain = call.caller.user_id, call.caller.domain_id
    with call.read() as tx:
        found = rows.retirable(tx, user, domain, limit=size, offset=start)
        return _page(found, start, rows.count_retirable(tx, user, domain))


def is_maker(caller: Caller, grant: Grant) -> bool:
    """Whether the caller made the grant."""
    return grant.issuing == caller.user_id


def may_retire(caller: Caller, grant: Grant) -> bool:
    """Whether the caller made the grant, is its retiring principal, or was given leave to retire it."""
    return (
        is_maker(caller, grant)
        or grant.retiring == caller.user_id
        or (RETIRE_GRANT in grant.operations.split() and access.is_grantee(caller, grant))
    )


def _checked_operations(operations: Iterable[str]) -> frozenset[str]:
    wanted = frozenset(operations)
    if not wanted <= OPERATIONS:
        raise Error(
            PARAMETER_INVALID, name="operations", reason=f"of {', '.join(sorted(OPERATIONS))} are due"
        )
    if wanted == {CREATE_GRANT}:
        raise Error(GRANT_ALONE)
    return wanted


def _check_principals(grantee: str, retiring: str) -> None:
    for name, principal in (("grantee_principal", grantee), ("retiring_principal", retiring)):
        if not _PRINCIPAL.fullmatch(principal) and (principal or name == "grantee_principal"):
            raise Error(PRINCIPAL_INVALID, name=name, reason="32 hex digits are due")


def _check_within_own(call: Call, tx: Tx, key_id: str, wanted: frozenset[str]) -> None:
    """What a grantee passes on must stand in grants of its own that let it pass on."""
    own: set[str] = set()
    for grant in rows.grants_of_key(tx, key_id):
        held = grant.operations.split()
        if CREATE_GRANT in held and access.is_grantee(call.caller, grant):
            own.update(held)
    if not wanted <= own:
        missing = ", ".join(sorted(wanted - own))
        raise Error(GRANT_REFUSED, reason=f"you were not granted {missing} to pass on")


def _first_or_new(call: Call, tx: Tx, draft: Grant, sequence: str) -> Grant:
    """The grant that this sequence made within 24 hours, or else the draft, kept."""
    asked = [draft.key_id, draft.grantee, draft.grantee_type, draft.operations, draft.name, draft.retiring]
    digest = hashlib.sha256(json.dumps(asked).encode()).digest()
    project, day_ago = call.caller.project_id, draft.created - DAY_MILLIS
    earlier = sequences.recall(tx, project, _SEQUENCES, sequence) if sequence else None
    if earlier is not None and earlier[2] >= day_ago:
        if earlier[0] != digest:
            raise Error(SEQUENCE_INVALID, reason="it was used for a request with other parameters")
        return _existing(rows.get_grant(tx, earlier[1]), draft.key_id)
    if rows.count_of_key(tx, draft.key_id) >= GRANTS_PER_KEY:
        raise Error(GRANTS_EXCEEDED, quota=GRANTS_PER_KEY)
    rows.insert_grant(tx, draft)
    if sequence:
        sequences.forget_older(tx, day_ago)
        sequences.remember(tx, project, _SEQUENCES, sequence, digest, draft.id, draft.created)
    return draft


def _for_change(call: Call, tx: Tx, reference: str, grant_id: str, entitled: access.Entitled) -> Grant:
    """The grant: for those whom it entitles itself, and for who has the right over the key."""
    if not _GRANT_ID.fullmatch(grant_id):
        raise Error(GRANT_ID_INVALID, reason="64 hex digits are due")
    grant = rows.get_grant(tx, grant_id)
    key = access.key_of_grant(call, tx, reference, grant, entitled)
    return _existing(grant, key.id)


def _existing(grant: Grant | None, key_id: str) -> Grant:
    if grant is None or grant.key_id != key_id:
        raise Error(GRANT_NOT_FOUND, key=key_id)
    return grant


def _page(found: list[Grant], start: int, total: int) -> Page:
    after = start + len(found)
    return Page(found, total, after if found and after < total else None)
