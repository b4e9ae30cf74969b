"""An attempt to show who one is: slowed down after failures, and named in the audit record when refused."""

import time
from dataclasses import dataclass
from functools import lru_cache

from hsmd.domain.core import Call
from hsmd.domain.throttle import Limit, Throttle, key, network
from hsmd.errors import Error, Fault

# Failures before the first pause. Passwords can be guessed; signatures and tokens can't, so there a client
# with wrong credentials is stopped first, and then those who try one claim after the other.
_PASSWORDS = 5
_EVIDENCE_OF_A_SOURCE = 50
_EVIDENCE_OF_A_CLAIM = 25


@dataclass(slots=True)
class _Named:
    """See `named_when_refused`. No generator, as it could be: every call comes by here and by the next."""

    call: Call
    resource: str

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Error):
            self.call.resource = self.resource


@dataclass(slots=True)
class _Attempt:
    """See `throttled`."""

    throttle: Throttle
    place: Limit
    claim: Limit
    counted: Fault
    now: float
    is_known: bool

    def __enter__(self) -> None:
        self.throttle.admit((self.claim,) if self.is_known else (self.place, self.claim), self.now)

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            self.throttle.succeeded(self.claim, self.now)
        elif isinstance(error, Error) and error.fault is self.counted:
            self.throttle.failed((self.place, self.claim), time.monotonic())


def named_when_refused(call: Call, resource: str) -> _Named:
    """If the block raises an Error, the call's audit record names this resource."""
    return _Named(call, resource)


def throttled(call: Call, kind: str, *claim: str, counted: Fault) -> _Attempt:
    """Refuse the block while its source or claim has to pause; count it if it raises the fault.

    A success clears the claim's failures and not the source's: one good account would clear the way for
    guesses at all others. A token or access key that was good lately does not pause with its source: many
    may come by one address, and none of them shall be kept out by another's mistakes.
    """
    throttle, source, now = call.core.throttle, network(call.caller.source), time.monotonic()
    if kind == "password":
        claimed, is_known = Limit(key("password of", *claim), _PASSWORDS), False
    else:
        claimed = Limit(key(kind, source, *claim), _EVIDENCE_OF_A_CLAIM)
        is_known = throttle.is_good(claimed, now)
    return _Attempt(throttle, _place(kind, source), claimed, counted, now, is_known)


@lru_cache(maxsize=4096)
def _place(kind: str, source: str) -> Limit:
    """The source, for passwords or for all other evidence."""
    if kind == "password":
        return Limit(key("password from", source), _PASSWORDS)
    return Limit(key("evidence from", source), _EVIDENCE_OF_A_SOURCE)
