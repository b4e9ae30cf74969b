"""What a quorum decides about UKeys and about itself. The seal, where there is one, follows."""

from hsmd import ukey as keys
from hsmd.domain import sealing, ukeys
from hsmd.domain.core import Call
from hsmd.domain.steps import Decided, Outcome, Steps
from hsmd.domain.ukeys import OPERATOR, Quorum
from hsmd.errors import IAM_EXISTS, PARAMETER_INVALID, Error
from hsmd.operations import Facts, Parameters
from hsmd.store import Tx
from hsmd.store.ukeys import UKey
from hsmd.ukey import Candidate, UKeyError


def _candidate(parameters: Parameters) -> Candidate:
    try:
        return Candidate.of_values(parameters)
    except UKeyError as error:
        raise Error(PARAMETER_INVALID, name="parameters", reason=str(error)) from error


def _shows_itself(call: Call, parameters: Parameters) -> None:
    ukeys.check_possession(call, _candidate(parameters))


def _free(_call: Call, tx: Tx, parameters: Parameters) -> Facts:
    """Nobody has its name, and nobody ever had its key."""
    candidate, known = _candidate(parameters), ukeys.registry_in(tx)
    fingerprint = keys.fingerprint(candidate.public_key)
    if fingerprint in known.by_fingerprint:
        raise Error(PARAMETER_INVALID, name="public_key", reason="this key is enrolled already, or was")
    if any(each.name == candidate.name for each in known.living()):
        raise Error(IAM_EXISTS, kind="UKey")
    return {"key": keys.describe(candidate.public_key)}


def _enrol(call: Call, tx: Tx, decided: Decided) -> Outcome:
    made = ukeys.enrol(call, tx, _candidate(decided.parameters), decided.by)
    if made.role == OPERATOR:
        sealing.reshare(call, tx)
    return Outcome(made.id, result={"ukey_id": made.id})


def _counting(_call: Call, tx: Tx, parameters: Parameters) -> Facts:
    ukey = ukeys.known(ukeys.registry_in(tx), str(parameters["ukey_id"]))
    ukeys.check_counting(ukey)
    return _facts(ukey)


def _facts(ukey: UKey) -> Facts:
    return {
        "name": ukey.name,
        "role": ukey.role,
        "serial": ukey.serial,
        "fingerprint": ukey.fingerprint,
        "created": ukey.created,
    }


def _can_be_spared(call: Call, parameters: Parameters) -> None:
    """Looked at again when it is done: then it is what counts."""
    with call.read() as tx:
        known = ukeys.registry_in(tx)
        ukeys.check_revocable(known, ukeys.quorum(tx), ukeys.known(known, str(parameters["ukey_id"])))


def _revoke(call: Call, tx: Tx, decided: Decided) -> Outcome:
    gone = ukeys.revoke(call, tx, str(decided.parameters["ukey_id"]), decided.by)
    if gone.role == OPERATOR:
        sealing.reshare(call, tx)
    return Outcome(gone.id)


def _wanted(parameters: Parameters) -> Quorum:
    return Quorum(int(parameters["administrators"]), int(parameters["operators"]))


def _can_be_met(call: Call, parameters: Parameters) -> None:
    with call.read() as tx:
        ukeys.check_quorum(ukeys.registry_in(tx), _wanted(parameters))


def _quorum(_call: Call, tx: Tx, _parameters: Parameters) -> Facts:
    now = ukeys.quorum(tx)
    return {"administrators": now.administrators, "operators": now.operators}


def _set_quorum(call: Call, tx: Tx, decided: Decided) -> Outcome:
    before, wanted = ukeys.quorum(tx), _wanted(decided.parameters)
    ukeys.set_quorum(tx, wanted)
    if wanted.operators != before.operators:
        sealing.reshare(call, tx)
    return Outcome("quorum")


ENROLLING = Steps(_free, _enrol, admit=_shows_itself)
REVOKING = Steps(_counting, _revoke, admit=_can_be_spared)
SETTING_QUORUM = Steps(_quorum, _set_quorum, admit=_can_be_met)
