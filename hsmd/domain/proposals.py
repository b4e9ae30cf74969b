"""What nobody may do alone: proposed by one UKey, approved by M administrators, carried out once.

An approval is a UKey's signature of the exact operation: its parameters, what its object was like when it was
proposed, this installation, and until when. All of them are looked at again when it is carried out: whose
UKey is revoked by then counts no more, and an object that has changed makes the proposal void.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType

from hsmd import operations
from hsmd import ukey as keys
from hsmd.domain import enrolments, exports, freezing, hsm_care, limits, ukeys, upkeep
from hsmd.domain.core import Call
from hsmd.domain.steps import Decided, Steps
from hsmd.domain.ukeys import Registry
from hsmd.errors import (
    ACTION_REFUSED,
    IAM_NOT_FOUND,
    PARAMETER_INVALID,
    PROPOSAL_REFUSED,
    PROPOSALS_EXCEEDED,
    QUORUM_MISSING,
    UNAVAILABLE,
    Error,
)
from hsmd.operations import Facts, OperationError, Parameters
from hsmd.store import SealBroken, Tx
from hsmd.store import proposals as rows
from hsmd.store.proposals import BEGUN, EXECUTED, EXPIRED, LIVING, OPEN, VOID, WITHDRAWN, Approval, Proposal
from hsmd.store.ukeys import UKey
from hsmd.ukey import Purpose, UKeyError

MOST_OPEN = 200
MOST_OPEN_EACH = 20  # of one UKey, so that none can keep the others from proposing
LONGEST_PAGE = 200

_HOUR_MILLIS = 60 * 60 * 1000
_ID_BYTES = 16
_SERVER_FAULT = 500
_MARGIN_SECONDS = 2.0  # left of a call that has waited for another one
_MOST_SECONDS = 60.0

# Each subject's own, by the operations' names (hsmd/operations.py).
OPERATIONS: Mapping[str, Steps] = MappingProxyType(
    {
        "enrol-ukey": enrolments.ENROLLING,
        "revoke-ukey": enrolments.REVOKING,
        "set-quorum": enrolments.SETTING_QUORUM,
        "freeze-key": freezing.FREEZING,
        "unfreeze-key": freezing.UNFREEZING,
        "delete-key-now": freezing.DELETING,
        exports.NAME: exports.EXPORTING,
        "raise-limit": limits.RAISING,
        "rotate-root-key": upkeep.ROTATE,
        "destroy-root-key": upkeep.DESTROY,
        "create-backup": upkeep.BACK_UP,
        "change-pin": hsm_care.CHANGE_PIN,
        "destroy-hsm": hsm_care.DESTROY,
    }
)


@dataclass(frozen=True, slots=True)
class Shown:
    """A proposal with what counts of it now. `approvals` are those that count, by UKeys that count."""

    proposal: Proposal
    instance: str
    approvals: tuple[tuple[UKey, Approval], ...]
    needed: int
    proposer: str


@dataclass(frozen=True, slots=True)
class _View:
    """What a proposal is seen by."""

    instance: str
    known: Registry
    needed: int

    def show(self, tx: Tx, proposal: Proposal) -> Shown:
        """The proposal with what counts of it."""
        approvals = self.counting(rows.approvals_of(tx, proposal.id), proposal)
        proposer = self.known.by_id.get(proposal.proposed_by)
        return Shown(proposal, self.instance, approvals, self.needed, proposer.name if proposer else "")

    def counting(self, approvals: list[Approval], proposal: Proposal) -> tuple[tuple[UKey, Approval], ...]:
        """The approvals that count: of UKeys that are administrators' now, with signatures that hold."""
        pairs = [(self.known.by_id.get(each.ukey_id), each) for each in approvals]
        return tuple(
            (ukey, each)
            for ukey, each in pairs
            if ukey is not None and _decides(ukey) and _holds(ukey, proposal, self.instance, each.signature)
        )


class _Changed(Exception):  # noqa: N818 # named for what was found
    """The object of a proposal is not what it was."""


def propose(call: Call, name: str, document: str) -> Shown:
    """Propose an operation with these parameters (JSON), for [limits] proposal_hours.

    Raises Error(PARAMETER_INVALID, ACTION_REFUSED, PROPOSALS_EXCEEDED), and what the operation's steps raise.
    """
    core = call.core
    parameters = _read(name, document)
    steps = _steps(call, name)
    ours = ukeys.instance(core)
    steps.admit(call, parameters)
    proposal_id = core.token.random(_ID_BYTES).hex()
    with call.change() as tx:
        now = core.clock()
        _check_latest(call, tx)
        _check_room(call, [each for each in rows.living_proposals(tx) if not _expire(tx, each, now)])
        proposal = Proposal(
            id=proposal_id,
            operation=name,
            parameters=keys.canonical(parameters).decode(),
            facts=_facts(steps.state(_inner(call, name), tx, parameters)),
            proposed_by=call.caller.user_id,
            created=now,
            expires=now + round(core.limits.proposal_hours * _HOUR_MILLIS),
            state=OPEN,
        )
        rows.insert_proposal(tx, proposal)
        call.resource = proposal.id
        return _view(tx, ours).show(tx, proposal)


def list_proposals(call: Call, *, ended: bool, limit: int, offset: int) -> list[Shown]:
    """Those that wait, oldest first; or those that have ended, newest first.

    Raises Error(PARAMETER_INVALID).
    """
    if not 1 <= limit <= LONGEST_PAGE:
        raise Error(PARAMETER_INVALID, name="limit", reason=f"1 to {LONGEST_PAGE} is due")
    if offset < 0:
        raise Error(PARAMETER_INVALID, name="offset", reason="a number from 0 is due")
    ours, now = ukeys.instance(call.core), call.core.clock()
    with call.read() as tx:
        view = _view(tx, ours)
        living = [_as_of(each, now) for each in rows.living_proposals(tx)]
        if not ended:
            found = [each for each in living if each.state in LIVING][offset : offset + limit]
            return [view.show(tx, each) for each in found]
        # Whose time is over without anybody having noticed: they stand before the others.
        over = [each for each in reversed(living) if each.state not in LIVING]
        found = over[offset : offset + limit]
        rest = rows.ended_proposals(tx, limit=limit - len(found), offset=max(0, offset - len(over)))
        return [view.show(tx, each) for each in (*found, *rest)]


def show(call: Call, proposal_id: str) -> Shown:
    """One of them. Raises Error(IAM_NOT_FOUND)."""
    ours = ukeys.instance(call.core)
    with call.read() as tx:
        return _view(tx, ours).show(tx, _as_of(_known(tx, proposal_id), call.core.clock()))


def approve(call: Call, proposal_id: str, signature: bytes) -> Shown:
    """The caller's UKey approves, by its signature; once more is well.

    Raises Error(IAM_NOT_FOUND, PROPOSAL_REFUSED), Error(PARAMETER_INVALID) for a signature of something else.
    """
    core, ours = call.core, ukeys.instance(call.core)
    with _voiding(call, proposal_id), call.change() as tx:
        proposal = _living(call, tx, proposal_id)
        call.resource = proposal.id
        ukey = ukeys.registry_in(tx).by_id.get(call.caller.user_id)
        if ukey is None or not _decides(ukey):
            raise Error(ACTION_REFUSED, action="of a UKey that is administrator")
        if not _holds(ukey, proposal, ours, signature):
            reason = "it is not this UKey's, or not of this proposal"
            raise Error(PARAMETER_INVALID, name="signature", reason=reason)
        if proposal.state == OPEN:
            _check_unchanged(call, tx, proposal)
        if all(each.ukey_id != ukey.id for each in rows.approvals_of(tx, proposal.id)):
            rows.insert_approval(tx, Approval(proposal.id, ukey.id, signature, core.clock()))
        return _view(tx, ours).show(tx, proposal)


def withdraw(call: Call, proposal_id: str) -> Shown:
    """End a proposal that one has made oneself; also one that is begun, and perhaps can't come to its end.

    Raises Error(IAM_NOT_FOUND, PROPOSAL_REFUSED).
    """
    ours = ukeys.instance(call.core)
    with _turn(call), call.change() as tx:
        proposal = _living(call, tx, proposal_id)
        call.resource = proposal.id
        if proposal.proposed_by != call.caller.user_id:
            raise Error(
                PROPOSAL_REFUSED, id=proposal.id, reason="who has made it may withdraw it, nobody else"
            )
        return _view(tx, ours).show(tx, _end(call, tx, proposal, WITHDRAWN))


def execute(call: Call, proposal_id: str) -> Shown:
    """Carry it out, once; one that was begun and cut short, to its end.

    Raises Error(IAM_NOT_FOUND, PROPOSAL_REFUSED, QUORUM_MISSING), and what its steps raise.
    """
    ours = ukeys.instance(call.core)
    with _voiding(call, proposal_id):
        proposal, decided, inner = _decide(call, proposal_id, ours)
    finish = OPERATIONS[proposal.operation].finish
    if proposal.state == BEGUN and finish is not None:
        with _turn(call):
            _check_begun(call, proposal_id)
            outcome = finish(inner, decided)
            with call.change() as tx:
                call.resource = proposal_id
                _check_still(proposal := _known(tx, proposal_id))
                proposal = _end(call, tx, proposal, EXECUTED, outcome.result)
    with call.read() as tx:
        call.core.proposals_seen = max(call.core.proposals_seen, rows.serial_number(tx))
        return _view(tx, ours).show(tx, proposal)


def statement(proposal: Proposal, instance: str) -> bytes:
    """What a UKey signs to approve it."""
    values = operations.statement_values(
        proposal=proposal.id,
        name=proposal.operation,
        parameters=_parameters(proposal),
        facts=operations.read_facts(proposal.facts),
        instance=instance,
        expires=proposal.expires,
    )
    return keys.statement(Purpose.APPROVE, values)


# Behind it


def _decide(call: Call, proposal_id: str, ours: str) -> tuple[Proposal, Decided, Call]:
    """The first transaction of carrying out: the whole of it, unless something is left to `finish`."""
    records: list[Callable[[], None]] = []

    def before_commit() -> None:
        for write in records:
            write()

    with call.core.store.write(before_commit) as tx:
        proposal = _living(call, tx, proposal_id)
        steps = _steps(call, proposal.operation)
        by = _deciders(tx, proposal, ours)
        decided = Decided(proposal.id, _parameters(proposal), by)
        inner = _inner(call, proposal.operation)
        if proposal.state == BEGUN:
            return proposal, decided, inner
        _check_unchanged(call, tx, proposal)
        outcome = steps.run(inner, tx, decided)
        if steps.finish is not None:
            begun = replace(proposal, state=BEGUN)
            rows.update_proposal(tx, begun)
            records.append(lambda: call.begin("beginProposal"))
            return begun, decided, inner
        inner.resource = outcome.resource
        inner.caller = call.caller._replace(domain_id=outcome.domain_id, project_id=outcome.project_id)
        records += [inner.before_commit, call.before_commit]
        return _end(call, tx, proposal, EXECUTED, outcome.result), decided, inner


@contextmanager
def _turn(call: Call) -> Iterator[None]:
    """One call of this process at a time completes something. Raises Error(UNAVAILABLE)."""
    patience = min(max(call.core.token.left - _MARGIN_SECONDS, 0.0), _MOST_SECONDS)
    if not call.core.finishing.acquire(timeout=patience):
        raise Error(UNAVAILABLE, reason="what was decided before is still being done")
    try:
        yield
    finally:
        call.core.finishing.release()


def _check_begun(call: Call, proposal_id: str) -> None:
    with call.read() as tx:
        _check_still(_known(tx, proposal_id))


def _check_still(proposal: Proposal) -> None:
    """Raises Error(PROPOSAL_REFUSED) when another call has come to its end meanwhile."""
    if proposal.state != BEGUN:
        raise Error(PROPOSAL_REFUSED, id=proposal.id, reason=f"it is {proposal.state}")


def _deciders(tx: Tx, proposal: Proposal, ours: str) -> str:
    """The names of who has decided it. Raises Error(PROPOSAL_REFUSED, QUORUM_MISSING)."""
    view = _view(tx, ours)
    if view.needed < ukeys.LEAST:
        reason = "the ceremony has not settled how many administrators decide"
        raise Error(PROPOSAL_REFUSED, id=proposal.id, reason=reason)
    found = view.show(tx, proposal).approvals
    if len(found) < view.needed:
        raise Error(QUORUM_MISSING, id=proposal.id, given=len(found), needed=view.needed)
    return ", ".join(sorted(ukey.name for ukey, _ in found))


def _decides(ukey: UKey) -> bool:
    return ukeys.counts(ukey) and ukey.role == ukeys.ADMINISTRATOR


def _holds(ukey: UKey, proposal: Proposal, ours: str, signature: bytes) -> bool:
    try:
        return keys.verify(ukey.public_key, statement(proposal, ours), signature)
    except (UKeyError, OperationError):
        return False


def _steps(call: Call, name: str) -> Steps:
    """Of the operation, for a caller that may propose it and carry it out."""
    operation = operations.operation(name)
    if operation.roles.isdisjoint(call.caller.roles):
        raise Error(ACTION_REFUSED, action=f"of a UKey that is {' or '.join(sorted(operation.roles))}")
    steps = OPERATIONS.get(name)
    if steps is None:
        raise Error(PARAMETER_INVALID, name="operation", reason=f"{name} is not done here")
    return steps


def _read(name: str, document: str) -> Parameters:
    try:
        return operations.read(name, document)
    except OperationError as error:
        raise Error(PARAMETER_INVALID, name="parameters", reason=str(error)) from error


def _parameters(proposal: Proposal) -> Parameters:
    return operations.read(proposal.operation, proposal.parameters)


def _facts(facts: Facts) -> str:
    document = keys.canonical(facts).decode()
    operations.read_facts(document)  # what nobody could read nobody could sign
    return document


def _check_room(call: Call, living: list[Proposal]) -> None:
    if sum(each.proposed_by == call.caller.user_id for each in living) >= MOST_OPEN_EACH:
        raise Error(PROPOSALS_EXCEEDED, quota=MOST_OPEN_EACH, whose="of a UKey")
    if len(living) >= MOST_OPEN:
        raise Error(PROPOSALS_EXCEEDED, quota=MOST_OPEN, whose="of all UKeys")


def _known(tx: Tx, proposal_id: str) -> Proposal:
    found = rows.get_proposal(tx, proposal_id)
    if found is None:
        raise Error(IAM_NOT_FOUND, kind="proposal", id=proposal_id)
    return found


def _living(call: Call, tx: Tx, proposal_id: str) -> Proposal:
    """The proposal, if something can become of it still: to be called first in a change.

    Raises Error(IAM_NOT_FOUND, PROPOSAL_REFUSED).
    """
    _check_latest(call, tx)
    found = _as_of(_known(tx, proposal_id), call.core.clock())
    call.resource = found.id
    if found.state not in LIVING:
        raise Error(PROPOSAL_REFUSED, id=found.id, reason=f"it is {found.state}")
    return found


def _check_latest(call: Call, tx: Tx) -> None:
    """Raises SealBroken for older rows that were put back: what was carried out could be so again.

    Within a change, where no other one can be under way.
    """
    number = rows.serial_number(tx)
    if number < call.core.proposals_seen:
        raise SealBroken("proposals", "list of them")
    call.core.proposals_seen = number


def _as_of(proposal: Proposal, now: int) -> Proposal:
    """What is begun is decided: it doesn't expire."""
    over = proposal.state == OPEN and proposal.expires <= now
    return replace(proposal, state=EXPIRED, ended=proposal.expires) if over else proposal


def _expire(tx: Tx, proposal: Proposal, now: int) -> bool:
    """Whether its time is over, which is then written down."""
    found = _as_of(proposal, now)
    if found.state != EXPIRED:
        return False
    rows.update_proposal(tx, found)
    return True


def _end(
    call: Call, tx: Tx, proposal: Proposal, state: str, result: Mapping[str, object] | None = None
) -> Proposal:
    written = None if result is None else json.dumps(dict(result))
    now, who = call.core.clock(), call.caller.user_id
    ended = replace(proposal, state=state, ended=now, ended_by=who, result=written)
    rows.update_proposal(tx, ended)
    return ended


def _check_unchanged(call: Call, tx: Tx, proposal: Proposal) -> None:
    """Raises _Changed when the object is not what was signed, or can't have it done to it any more."""
    steps = OPERATIONS[proposal.operation]
    try:
        found = steps.state(_inner(call, proposal.operation), tx, _parameters(proposal))
    except Error as error:
        if error.fault.http >= _SERVER_FAULT:
            raise
        raise _Changed(error.message) from error
    if _facts(found) != proposal.facts:
        before = operations.read_facts(proposal.facts)
        names = sorted(name for name in {*before, *found} if before.get(name) != found.get(name))
        raise _Changed(f"its object has changed: {', '.join(names)}")


@contextmanager
def _voiding(call: Call, proposal_id: str) -> Iterator[None]:
    """If the block finds the object changed, the proposal is void from then on, which is recorded."""
    try:
        yield
    except _Changed as error:
        with call.core.store.write(lambda: call.begin("voidProposal")) as tx:
            proposal = _living(call, tx, proposal_id)
            if proposal.state == BEGUN:  # by another call, which has found it unchanged meanwhile
                raise Error(PROPOSAL_REFUSED, id=proposal_id, reason="it is begun") from error
            _end(call, tx, proposal, VOID)
        raise Error(PROPOSAL_REFUSED, id=proposal_id, reason=f"it is void: {error}") from error


def _inner(call: Call, name: str) -> Call:
    """The call as an operation's steps get it: what it changes is recorded as the operation's own event."""

    def before_commit() -> None:
        outer = call.resource, call.caller
        call.resource, call.caller = inner.resource, inner.caller
        try:
            call.begin(operations.operation(name).event)
        finally:
            call.resource, call.caller = outer

    inner = Call(call.core, call.caller, before_commit, also=call.also, channel=call.channel)
    return inner


def _view(tx: Tx, instance: str) -> _View:
    return _View(instance, ukeys.registry_in(tx), ukeys.quorum(tx).administrators)
