"""What a caller shows besides who it is, a PIN or an access point's signature: slowed down when it fails."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from hsmd.domain.core import Call
from hsmd.domain.throttle import Limit, key
from hsmd.errors import CAPSULE_REFUSED, CIPHERTEXT_INVALID, Error, Fault

# Failures before the first pause. A PIN can be guessed: at one data key by many, or one PIN at many.
# Signatures can't; there it is a client that goes wrong again and again which is stopped.
_PINS_OF_A_DATA_KEY, _PINS_OF_A_CALLER = 5, 25
_ATTESTATIONS_OF_A_POINT, _ATTESTATIONS_OF_A_CALLER = 25, 100


@contextmanager
def of_pin(call: Call, data_key: str) -> Iterator[None]:
    """Refuse the block while the caller has to pause, or who tries this data key (its ciphertext's digest).

    Counts it when it raises Error(CIPHERTEXT_INVALID). Raises Error(RATE_EXCEEDED).
    """
    place = Limit(key("pins by", *_caller(call)), _PINS_OF_A_CALLER)
    claim = Limit(key("pin of", data_key), _PINS_OF_A_DATA_KEY)
    with _slowed(call, place, claim, CIPHERTEXT_INVALID):
        yield


@contextmanager
def of_attestation(call: Call, fingerprint: str) -> Iterator[None]:
    """The same for attestations of an access point, for each caller alone. Counts Error(CAPSULE_REFUSED)."""
    caller = _caller(call)
    place = Limit(key("attestations by", *caller), _ATTESTATIONS_OF_A_CALLER)
    claim = Limit(key("attestation of", *caller, fingerprint), _ATTESTATIONS_OF_A_POINT)
    with _slowed(call, place, claim, CAPSULE_REFUSED):
        yield


def _caller(call: Call) -> tuple[str, str, str]:
    return call.caller.domain_id, call.caller.user_id, call.caller.user_name


@contextmanager
def _slowed(call: Call, place: Limit, claim: Limit, counted: Fault) -> Iterator[None]:
    """A success clears the claim's failures, not the caller's: one's own data key would clear the way."""
    throttle, now = call.core.throttle, time.monotonic()
    throttle.admit((place, claim), now)
    try:
        yield
    except Error as error:
        if error.fault is counted:
            throttle.failed((place, claim), time.monotonic())
        raise
    throttle.succeeded(claim, now)
