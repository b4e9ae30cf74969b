"""An attempt to show who one is: slowed down after failures, and named in the audit record when refused."""

import time
from typing import TYPE_CHECKING

from hsmd.domain.core import Call
from hsmd.domain.throttle import Limit, key, network
from hsmd.errors import Error, Fault

if TYPE_CHECKING:
    from collections.abc import Hashable

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

    __slots__ = ("_claim", "_clear", "_counted", "_guessable", "_now", "_source", "_throttle")

    def __init__(self, call: Call, kind: str, *claim: str, counted: Fault) -> None:
        self._throttle, self._counted, self._now = call.core.throttle, counted, time.monotonic()
        self._source = network(call.caller.source)
        self._guessable = kind == "password"
        if self._guessable:  # the names that come with passwords may be long, or passwords themselves
            self._claim: Hashable = key("password of", *claim)
            self._clear = False
        else:
            self._claim = (kind, self._source, *claim)
            self._clear = self._throttle.is_clear(self._claim, self._now)

    def __enter__(self) -> None:
        if not self._clear:
            place, claim = self._limits()
            known = not self._guessable and self._throttle.is_good(self._claim, self._now)
            self._throttle.admit((claim,) if known else (place, claim), self._now)

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            if not self._clear:
                self._throttle.succeeded(self._limits()[1], self._now)
        elif isinstance(error, Error) and error.fault is self._counted:
            self._throttle.failed(self._limits(), time.monotonic())

    def _limits(self) -> tuple[Limit, Limit]:
        """Those of the source, for passwords or for all other evidence, and of the claim."""
        if self._guessable:
            return Limit(("password", self._source), _PASSWORDS), Limit(self._claim, _PASSWORDS)
        return Limit(self._source, _EVIDENCE_OF_A_SOURCE), Limit(self._claim, _EVIDENCE_OF_A_CLAIM)
