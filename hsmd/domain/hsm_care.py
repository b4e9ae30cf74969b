"""The HSM itself, as a quorum decides about it: its PIN is changed, or all that is in it is destroyed.

A new PIN is sealed before the HSM has it, beside the old one: whatever is cut short, unsealing finds the one
that counts.
"""

import secrets
import string

from hsmd.domain.core import Call
from hsmd.domain.sealing import Keeper
from hsmd.domain.steps import Decided, Outcome, Steps, no_run
from hsmd.errors import PARAMETER_INVALID, SEAL_MISSING, UNAVAILABLE, Error
from hsmd.hsm import TokenRefused
from hsmd.operations import Facts, Parameters
from hsmd.store import Tx

_PIN_CHARACTERS = string.ascii_letters + string.digits
_LONGEST_PIN = 32
_OURS = "hsm"


def _keeper(call: Call) -> Keeper:
    seal = call.core.seal
    if not isinstance(seal, Keeper):
        source = call.core.pin_source
        reason = (
            f"this daemon's PIN comes by {source}: it is changed with that, while the daemon stands still"
        )
        raise Error(SEAL_MISSING, reason=reason)
    return seal


def _serial(call: Call) -> str:
    """What names the token to people: its serial number, its label where it has none."""
    status = call.core.token.status()
    return status.serial.strip() or status.label


def _before_change(call: Call, _tx: Tx, parameters: Parameters) -> Facts:
    if parameters["token"] != _OURS:
        reason = "the PIN of a dedicated keystore's token is changed by its maker's tool"
        raise Error(PARAMETER_INVALID, name="token", reason=reason)
    _keeper(call)
    return {"serial number": _serial(call)}


def _change(call: Call, _decided: Decided) -> Outcome:
    keeper, core = _keeper(call), call.core
    size = min(_LONGEST_PIN, core.token.longest_pin() or _LONGEST_PIN)
    fresh = "".join(secrets.choice(_PIN_CHARACTERS) for _ in range(size))
    with call.read() as tx:
        pin = keeper.prepare(tx, fresh, core.clock())
    try:
        core.token.change_pin(keeper.pin, pin)
    except TokenRefused as error:
        if pin == fresh:
            keeper.abandon()
        if pin == fresh or not core.token.has_pin(pin, keeper.pin):
            raise Error(PARAMETER_INVALID, name="token", reason=str(error)) from error
    except Error:
        if not core.token.has_pin(pin, keeper.pin):  # it may have taken it, though it did not say so
            raise
    with call.change() as tx:
        call.resource = f"hsm/{_serial(call)}"
        keeper.settle(tx, pin, core.clock())
    return Outcome(call.resource)


def _before_destruction(call: Call, _tx: Tx, parameters: Parameters) -> Facts:
    serial = _serial(call)
    if parameters["serial"] != serial:
        raise Error(PARAMETER_INVALID, name="serial", reason="the HSM has another serial number")
    labels = sorted({each.label for each in call.core.token.held()})
    return {"serial number": serial, "keys": ", ".join(labels)[:1000], "objects": len(call.core.token.held())}


def _destroy(call: Call, _decided: Decided) -> Outcome:
    """The record is there before: without its keys nothing can be recorded in the store any more."""
    call.resource = f"hsm/{_serial(call)}"
    call.before_commit()
    count = call.core.token.empty()
    raise Error(UNAVAILABLE, reason=f"all that was in the HSM is destroyed, as was decided ({count} objects)")


CHANGE_PIN = Steps(_before_change, no_run, _change)
DESTROY = Steps(_before_destruction, no_run, _destroy)
