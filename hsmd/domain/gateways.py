"""What gateways refused by themselves: it is put on record, as their word and no more."""

from collections.abc import Sequence
from dataclasses import replace

from hsmd.audit.records import Refusal
from hsmd.domain import sources
from hsmd.domain.core import Call
from hsmd.errors import BY_CODE, PARAMETER_INVALID, Error

__all__ = ["Refusal", "report"]

_LATEST = 1 << 42  # in the year 2109


def report(call: Call, refusals: Sequence[Refusal]) -> None:
    """Raises Error(PARAMETER_INVALID) for what can't be, and Error(UNAVAILABLE) without a log."""
    for each in refusals:
        if each.code not in BY_CODE:
            raise Error(PARAMETER_INVALID, name="code", reason="there is no such code")
        if each.count < 1:
            raise Error(PARAMETER_INVALID, name="count", reason="one or more are due")
        if not 0 <= each.first < _LATEST:
            raise Error(PARAMETER_INVALID, name="first", reason="milliseconds since 1970 are due")
    for each in refusals:
        call.report(replace(each, source=sources.spelled(each.source)))
