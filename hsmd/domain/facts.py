"""What conditions of policies may be on: who calls, from where and when, for what, and the key it is about.

Found out one by one, when a condition asks for it: most policies ask for one or two, most for none.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType

from hsmd.domain import entitlements
from hsmd.domain.conditions import Told
from hsmd.domain.core import Call
from hsmd.store.keys import Key

_NOTHING: Told = MappingProxyType({})


class CallFacts:
    """The facts of a call, and of a key where there is one (`more`), which count first."""

    __slots__ = ("_call", "_known", "_more")

    def __init__(self, call: Call, known: dict[str, tuple[str, ...]], more: Told = _NOTHING) -> None:
        self._call = call
        self._known = known
        self._more = more

    def get(self, name: str, default: tuple[str, ...], /) -> tuple[str, ...]:
        """The values of that name, the default where there is nothing of it."""
        found = self._more.get(name)
        if found is None:
            found = self._known.get(name)
        if found is None:
            tell = _OF_CALL.get(name)
            if tell is None:
                return default
            value = tell(self._call)
            found = self._known[name] = (value,) if value else ()
        return found or default

    def beside(self, more: Told) -> "CallFacts":
        """These facts and those, which count first."""
        return CallFacts(self._call, self._known, more)


def of_call(call: Call) -> CallFacts:
    """What is known before a key is: of the caller, and what the request says."""
    return CallFacts(call, dict(call.asked()))


def of_key(row: Key, tagged: Iterable[tuple[str, str]] = ()) -> Told:
    """What is known of a key, and of its tags (name and value)."""
    return {
        "kms:keyspec": (row.spec,),
        "kms:keyusage": (row.usage,),
        "kms:keyorigin": (row.origin,),
        "g:enterpriseprojectid": (row.enterprise_project_id,),
        **{f"g:resourcetag/{name}": (value,) for name, value in tagged},
    }


def principal_type(*, is_agency: bool) -> str:
    """How conditions call those who act."""
    return "AssumedAgency" if is_agency else "User"


def moment(millis: int) -> str:
    """A time (ms since 1970 UTC) as conditions have it: ISO 8601, to the second like theirs."""
    return _second(millis // 1000)


@lru_cache(maxsize=16)  # one at a time
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


_OF_CALL: dict[str, Callable[[Call], str]] = {
    "g:userid": lambda call: call.caller.user_id,
    "g:username": lambda call: call.caller.user_name,
    "g:domainid": lambda call: call.caller.domain_id,
    "g:domainname": lambda call: entitlements.domain_name(call.core, call.caller.domain_id),
    "g:projectid": lambda call: call.caller.project_id,
    "g:projectname": lambda call: entitlements.project_name(call.core, call.caller.project_id),
    "g:principaltype": lambda call: principal_type(is_agency=call.caller.is_agency),
    "g:sourceip": lambda call: call.caller.source,
    "g:currenttime": lambda call: moment(call.core.clock()),
    "g:mfapresent": lambda _: "false",  # nobody is asked for a second factor
    "hsmd:identitykind": lambda call: call.caller.kind,
}

NAMES: tuple[str, ...] = (*_OF_CALL, "kms:keyspec", "kms:keyusage", "kms:keyorigin", "g:enterpriseprojectid")
"""Every fact there is but those that requests say and tags."""
