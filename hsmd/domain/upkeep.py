"""Root keys and backups, as a quorum decides about them."""

from hsmd.domain import backups, roots
from hsmd.domain.core import Call
from hsmd.domain.steps import Decided, Outcome, Steps, no_run
from hsmd.errors import BACKUP_REFUSED, ROOT_KEY_REFUSED, Error
from hsmd.operations import Facts, Parameters
from hsmd.store import Tx
from hsmd.store import roots as rows
from hsmd.store.roots import CURRENT, DESTROYED, OLD

_PATIENCE, _MARGIN = 15.0, 2.0  # seconds that a call waits for its backup, and that it keeps for its end


def _before_rotation(_call: Call, tx: Tx, parameters: Parameters) -> Facts:
    found = rows.root_keys(tx)
    roots.check_next(found, str(parameters["label"]))
    return {"current root key": next(each.label for each in found if each.state == CURRENT)}


def _rotate(call: Call, decided: Decided) -> Outcome:
    made = roots.rotate(call, str(decided.parameters["label"]))
    return Outcome(f"root-key/{made.label}", result={"label": made.label, "check_value": made.check_value})


def _before_end(_call: Call, tx: Tx, parameters: Parameters) -> Facts:
    label = str(parameters["label"])
    for each in rows.root_keys(tx):
        if each.label == label and each.state == OLD:
            return {"check value": each.check_value, "replaced": each.replaced, "wraps PINs": each.pins}
        if each.label == label:
            reason = {CURRENT: "it wraps what is new", DESTROYED: "it is destroyed"}
            raise Error(ROOT_KEY_REFUSED, label=label, reason=reason.get(each.state, "it is ending"))
    raise Error(ROOT_KEY_REFUSED, label=label, reason="there is none of this label")


def _end(call: Call, tx: Tx, decided: Decided) -> Outcome:
    label = str(decided.parameters["label"])
    ended = roots.end(call, tx, label, lose_pins=bool(decided.parameters["lose_pins"]))
    return Outcome(f"root-key/{label}", result={"label": label, "state": ended.state})


def _before_backup(call: Call, _tx: Tx, _parameters: Parameters) -> Facts:
    if call.core.backups is None:
        raise Error(BACKUP_REFUSED, reason="this process makes none")
    backups.check_place(call.core.backups.place)
    return {"folder": str(call.core.backups.place.folder)}


def _back_up(call: Call, decided: Decided) -> Outcome:
    if call.core.backups is None:
        raise Error(BACKUP_REFUSED, reason="this process makes none")
    seconds = min(call.core.token.left - _MARGIN, _PATIENCE)
    made = call.core.backups.made(call.core, decided.proposal_id, max(seconds, 0.0))
    with call.change():  # nothing changes: its record
        call.resource = f"backup/{made.digest}"
    return Outcome(call.resource, result={"file": str(made.path), "digest": made.digest, "size": made.size})


ROTATE = Steps(_before_rotation, no_run, _rotate)
DESTROY = Steps(_before_end, _end)
BACK_UP = Steps(_before_backup, no_run, _back_up)
