"""Proposals and their approvals: what M of N administrators decide together.

A sealed row can't be forged, but an older one could be put back: what was carried out would be open again.
So the ids of those that are not ended, with their states, are sealed as well, with a number that only grows:
a proposal that stands there with another state, or that is open and stands not there, is broken. The list
itself put back is noticed by its number, while the process lives that has seen a higher one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam

from hsmd.store import service_settings
from hsmd.store.core import Tx
from hsmd.store.schema import APPROVALS, PROPOSALS
from hsmd.store.seals import SealBroken, Sealed

# States. What is BEGUN was decided and has to be completed; the others but OPEN are ends.
OPEN, BEGUN = "open", "begun"
EXECUTED, WITHDRAWN, EXPIRED, VOID = "executed", "withdrawn", "expired", "void"
LIVING = frozenset({OPEN, BEGUN})


@dataclass(frozen=True, slots=True)
class Proposal:
    """What somebody has proposed. Times are in milliseconds since 1970 UTC.

    `parameters`, `facts` and `result` are JSON objects, `proposed_by` and `ended_by` ids of UKeys.
    """

    id: str
    operation: str
    parameters: str
    facts: str
    proposed_by: str
    created: int
    expires: int
    state: str
    ended: int | None = None
    ended_by: str | None = None
    result: str | None = None


@dataclass(frozen=True, slots=True)
class Approval:
    """A UKey's signature of a proposal. `created` in milliseconds since 1970 UTC."""

    proposal_id: str
    ukey_id: str
    signature: bytes
    created: int


_PROPOSALS = Sealed(PROPOSALS, Proposal)
_APPROVALS = Sealed(APPROVALS, Approval)

_one = _PROPOSALS.where(PROPOSALS.c.id == bindparam("wanted"))
_living = _PROPOSALS.where(PROPOSALS.c.state.in_(sorted(LIVING))).order_by(
    PROPOSALS.c.created, PROPOSALS.c.id
)
_ended = (
    _PROPOSALS.where(PROPOSALS.c.state.not_in(sorted(LIVING)))
    .order_by(PROPOSALS.c.created.desc(), PROPOSALS.c.id)
    .limit(bindparam("most"))
    .offset(bindparam("skip"))
)
_approvals = _APPROVALS.where(APPROVALS.c.proposal_id == bindparam("proposal")).order_by(
    APPROVALS.c.created, APPROVALS.c.ukey_id
)


def get_proposal(tx: Tx, proposal_id: str) -> Proposal | None:
    """The proposal. Raises SealBroken, also for an older state of it."""
    found = _PROPOSALS.one(tx, _one, wanted=proposal_id)
    kept = _kept(tx).get(proposal_id)
    if kept != (found.state if found and found.state in LIVING else None):
        raise SealBroken(PROPOSALS.name, proposal_id)
    return found


def living_proposals(tx: Tx) -> list[Proposal]:
    """Those that are not ended, oldest first. Raises SealBroken, also when one is gone."""
    found = _PROPOSALS.many(tx, _living)
    if {each.id: each.state for each in found} != _kept(tx):
        raise SealBroken(PROPOSALS.name, "open ones")
    return found


def ended_proposals(tx: Tx, *, limit: int, offset: int) -> list[Proposal]:
    """Those that are, newest first. Raises SealBroken."""
    return _PROPOSALS.many(tx, _ended, most=limit, skip=offset)


def serial_number(tx: Tx) -> int:
    """How often one was made or changed. Raises SealBroken."""
    return _document(tx)[0]


def insert_proposal(tx: Tx, proposal: Proposal) -> None:
    """Add one that is open. Raises SealBroken."""
    _PROPOSALS.insert(tx, proposal)
    _keep(tx, proposal)


def update_proposal(tx: Tx, proposal: Proposal) -> None:
    """Replace its row. Raises SealBroken."""
    _PROPOSALS.update(tx, proposal)
    _keep(tx, proposal)


def approvals_of(tx: Tx, proposal_id: str) -> list[Approval]:
    """Who has approved it, the first one first. Raises SealBroken."""
    return _APPROVALS.many(tx, _approvals, proposal=proposal_id)


def insert_approval(tx: Tx, approval: Approval) -> None:
    """Add one; a UKey approves once."""
    _APPROVALS.insert(tx, approval)


def _kept(tx: Tx) -> Mapping[str, str]:
    return _document(tx)[1]


def _keep(tx: Tx, proposal: Proposal) -> None:
    number, before = _document(tx)
    states = {key: value for key, value in before.items() if key != proposal.id}
    if proposal.state in LIVING:
        states[proposal.id] = proposal.state
    after = json.dumps({"number": number + 1, "states": states}, sort_keys=True)
    service_settings.put_setting(tx, service_settings.PROPOSALS, after)


def _document(tx: Tx) -> tuple[int, Mapping[str, str]]:
    document = service_settings.setting(tx, service_settings.PROPOSALS)
    kept: dict[str, Any] = json.loads(document) if document else {"number": 0, "states": {}}
    return kept["number"], kept["states"]
