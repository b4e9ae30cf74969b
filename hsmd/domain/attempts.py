"""An attempt to show who one is: slowed down after failures, and named in the audit record when refused."""

import time
from functools import lru_cache

from hsmd.domain.core import Call
from hsmd.domain.throttle import Limit, key, network
from hsmd.errors import Error, Fault

# Failures before the first pause. Passwords can be guessed; signatures and tokens can't, so there a client
# with wrong credentials is stopped first, and then those who try one claim after the other.
_PASSWORDS = 5
_EVIDENCE_OF_A_SOURCE = 50
_EVIDENCE_OF_A_CLAIM = 25


class named_when_refused:  # noqa: N801 -- it is used as a function is; as a generator it would take longer
    """If the block raises an Error, the call's audit record names this resource."""

    __slots__ = ("_call", "_resource")

    def __init__(self, call: Call, resource: str) -> None:
        self._call, self._resource = call, resource

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Error):
            self._call.resource = self._resource


class throttled:  # noqa: N801 -- it is used as a function is; as a generator it would take longer
    """Refuse the block while its source or claim has to pause; count it if it raises the fault.

    A success clears the claim's failures and not the source's: one good account would clear the way for
    guesses at all others. A token or access key that was good lately does not pause with its source: many
    may come by one address, and none of them shall be kept out by another's mistakes.
    """

    __slots__ = ("_claim", "_clear", "_counted", "_known", "_now", "_place", "_throttle")

    def __init__(self, call: Call, kind: str, *claim: str, counted: Fault) -> None:
        self._throttle, self._counted, self._now = call.core.throttle, counted, time.monotonic()
        source = network(call.caller.source)
        self._place = _place(kind, source)
        if kind == "password":
            self._claim = Limit(key("password of", *claim), _PASSWORDS)
            self._known = self._clear = False
        else:
            self._claim = _claim(kind, source, *claim)
            self._clear = self._throttle.is_clear(self._claim, self._now)
            self._known = self._clear or self._throttle.is_good(self._claim, self._now)

    def __enter__(self) -> None:
        if not self._clear:
            self._throttle.admit((self._claim,) if self._known else (self._place, self._claim), self._now)

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            if not self._clear:
                self._throttle.succeeded(self._claim, self._now)
        elif isinstance(error, Error) and error.fault is self._counted:
            self._throttle.failed((self._place, self._claim), time.monotonic())


@lru_cache(maxsize=4096)
def _claim(kind: str, source: str, claim: str) -> Limit:
    """A claim as shown from there: an id or a digest, short and no secret, as names with passwords may be."""
    return Limit(key(kind, source, claim), _EVIDENCE_OF_A_CLAIM)


@lru_cache(maxsize=4096)
def _place(kind: str, source: str) -> Limit:
    """The source, for passwords or for all other evidence."""
    if kind == "password":
        return Limit(key("password from", source), _PASSWORDS)
    return Limit(key("evidence from", source), _EVIDENCE_OF_A_SOURCE)
