"""What conditions of policies may be on: who calls, from where and when, for what, and the key it is about.

Found out one by one, when a condition asks for it: most policies ask for one or two, most for none.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache

from hsmd.domain import entitlements
from hsmd.domain.conditions import Told
from hsmd.domain.core import Call
from hsmd.domain.documents import TAG
from hsmd.store.keys import Key
from hsmd.store.tags import Tag


class CallFacts:
    """The facts of a call: what its request says, and who calls, when and from where. Each is found once."""

    __slots__ = ("_call", "_known")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._known: dict[str, tuple[str, ...]] = {}

    def get(self, name: str, default: tuple[str, ...], /) -> tuple[str, ...]:
        """The values of that name, the default where there is nothing of it."""
        found = self._known.get(name)
        if found is None:
            found = self._known[name] = self._find(name)
        return found or default

    def _find(self, name: str) -> tuple[str, ...]:
        tell = _OF_CALL.get(name)
        if tell is None:
            return self._call.asked(name)
        value = tell(self._call)
        return (value,) if value else ()


class KeyFacts:
    """The facts of a key, and of the call that is about it. `tags` is asked when a condition is on a tag."""

    __slots__ = ("_call", "_key", "_tags")

    def __init__(self, call: CallFacts, key: Key, tags: Callable[[], Told]) -> None:
        self._call = call
        self._key = key
        self._tags = tags

    def get(self, name: str, default: tuple[str, ...], /) -> tuple[str, ...]:
        """The values of that name, the default where there is nothing of it."""
        tell = _OF_KEY.get(name)
        if tell is not None:
            return (tell(self._key),)
        if name.startswith(TAG):
            return self._tags().get(name, default)
        return self._call.get(name, default)


def of_key(key: Key) -> Told:
    """What is known of a key without its tags."""
    return {name: (tell(key),) for name, tell in _OF_KEY.items()}


def of_tags(tags: Iterable[Tag]) -> Told:
    """What is known of a key by its tags."""
    return {TAG + tag.name: (tag.value,) for tag in tags}


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

_OF_KEY: dict[str, Callable[[Key], str]] = {
    "kms:keyspec": lambda key: key.spec,
    "kms:keyusage": lambda key: key.usage,
    "kms:keyorigin": lambda key: key.origin,
    "g:enterpriseprojectid": lambda key: key.enterprise_project_id,
}

NAMES: tuple[str, ...] = (*_OF_CALL, *_OF_KEY)
"""Every fact there is but those that requests say and tags."""
