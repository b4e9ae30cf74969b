"""An attempt to show who one is: slowed down after failures, and named in the audit record when refused."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from hsmd.domain.core import Call
from hsmd.domain.throttle import Limit, key, network
from hsmd.errors import Error, Fault

# Failures before the first pause. Passwords can be guessed; signatures and tokens can't, so there a client
# with wrong credentials is stopped first, and then those who try one claim after the other.
_PASSWORDS = 5
_EVIDENCE_OF_A_SOURCE = 50
_EVIDENCE_OF_A_CLAIM = 25


@contextmanager
def named_when_refused(call: Call, resource: str) -> Iterator[None]:
    """If the block raises an Error, the call's audit record names this resource."""
    try:
        yield
    except Error:
        call.resource = resource
        raise


@contextmanager
def throttled(call: Call, kind: str, *claim: str, counted: Fault) -> Iterator[None]:
    """Refuse the block while its source or claim has to pause; count it if it raises the fault.

    A success clears the claim's failures and not the source's: one good account would clear the way for
    guesses at all others. A token or access key that was good lately does not pause with its source: many
    may come by one address, and none of them shall be kept out by another's mistakes.
    """
    throttle, source, now = call.core.throttle, network(call.caller.source), time.monotonic()
    if kind == "password":
        claimed, known = Limit(key("password of", *claim), _PASSWORDS), False
    else:
        claimed = Limit(key(kind, source, *claim), _EVIDENCE_OF_A_CLAIM)
        known = throttle.is_good(claimed, now)
    throttle.admit((claimed,) if known else (_place(kind, source), claimed), now)
    try:
        yield
    except Error as error:
        if error.fault is counted:
            throttle.failed((_place(kind, source), claimed), time.monotonic())
        raise
    throttle.succeeded(claimed, now)


def _place(kind: str, source: str) -> Limit:
    """The source, for passwords or for all other evidence."""
    if kind == "password":
        return Limit(key("password from", source), _PASSWORDS)
    return Limit(key("evidence from", source), _EVIDENCE_OF_A_SOURCE)
