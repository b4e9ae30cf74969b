"""What a quorum decides about one key, of whichever project: freeze it, unfreeze it, delete it at once.

A frozen key stays as it is: nobody uses, changes or deletes it, and imported material doesn't expire.
"""

from dataclasses import replace
from types import MappingProxyType

from hsmd.domain import access, imports
from hsmd.domain.core import Call
from hsmd.domain.steps import Decided, Outcome, Steps
from hsmd.errors import KEY_STATE_REFUSED, NOT_FROZEN, NOT_PENDING_DELETION, Error
from hsmd.operations import Facts, Parameters
from hsmd.store import Tx, keys
from hsmd.store.keys import Key

STATES = MappingProxyType(
    {
        access.ENABLED: "enabled",
        access.DISABLED: "disabled",
        access.PENDING_DELETION: "pending deletion",
        access.PENDING_IMPORT: "pending import",
        access.FROZEN: "frozen",
    }
)


def _living(call: Call, tx: Tx, parameters: Parameters) -> Key:
    """The key, if it can be frozen."""
    key = access.key_of_quorum(call, tx, str(parameters["key_id"]))
    if key.state == access.FROZEN:
        raise Error(KEY_STATE_REFUSED, key=key.id, state=STATES[key.state])
    return key


def _frozen(call: Call, tx: Tx, parameters: Parameters) -> Key:
    """The key, if it can be unfrozen."""
    key = access.key_of_quorum(call, tx, str(parameters["key_id"]))
    if key.state != access.FROZEN:
        raise Error(NOT_FROZEN, key=key.id)
    return key


def _leaving(call: Call, tx: Tx, parameters: Parameters) -> Key:
    """The key, if its deletion is scheduled: its own tenant has decided that it goes."""
    key = access.key_of_quorum(call, tx, str(parameters["key_id"]))
    if key.state != access.PENDING_DELETION:
        raise Error(NOT_PENDING_DELETION, key=key.id)
    return key


def _facts(key: Key) -> Facts:
    found: dict[str, str | int] = {
        "alias": key.alias,
        "project_id": key.project_id,
        "domain_id": key.domain_id,
        "key_spec": key.spec,
        "origin": key.origin,
        "created": key.created,
        "state": STATES.get(key.state, str(key.state)),
    }
    if key.deletion_date is not None:
        found["deletion_date"] = key.deletion_date
    if key.frozen_from is not None:
        found["frozen_from"] = STATES.get(key.frozen_from, str(key.frozen_from))
    return found


def _freeze(call: Call, tx: Tx, decided: Decided) -> Outcome:
    key = _living(call, tx, decided.parameters)
    return _saved(tx, replace(key, state=access.FROZEN, frozen_from=key.state, deletion_date=None))


def _unfreeze(call: Call, tx: Tx, decided: Decided) -> Outcome:
    key = _frozen(call, tx, decided.parameters)
    state = key.frozen_from or access.DISABLED
    if state == access.PENDING_DELETION:  # that was called off
        state = access.DISABLED
    if imports.is_without_material(call, tx, key):
        state = access.PENDING_IMPORT
    return _saved(tx, replace(key, state=state, frozen_from=None))


def _delete(call: Call, tx: Tx, decided: Decided) -> Outcome:
    """Its time has come: it is gone for the next call, and the warden destroys it in its next round."""
    key = _leaving(call, tx, decided.parameters)
    return _saved(tx, replace(key, deletion_date=call.core.clock()))


def _saved(tx: Tx, key: Key) -> Outcome:
    keys.update_key(tx, key)
    return Outcome(key.id, key.domain_id, key.project_id, {"state": STATES.get(key.state, "")})


FREEZING = Steps(lambda call, tx, given: _facts(_living(call, tx, given)), _freeze)
UNFREEZING = Steps(lambda call, tx, given: _facts(_frozen(call, tx, given)), _unfreeze)
DELETING = Steps(lambda call, tx, given: _facts(_leaving(call, tx, given)), _delete)
