"""What access points and key policies have in common: ids, names, pages, and the keyspace that they share.

A keyspace is an id of the caller's choice. There is nothing else to it: it begins with the first thing that
is made in it, and a project's quotas go over all of its keyspaces.
"""

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from hsmd.domain.core import Call
from hsmd.errors import (
    KEYSPACE_LIMIT_INVALID,
    KEYSPACE_MARKER_INVALID,
    PARAMETER_INVALID,
    Error,
)

PAGE, LARGEST_PAGE = 50, 100

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NAME = re.compile(r"[a-zA-Z0-9:/_-]{1,255}")
_DESCRIPTION_LENGTH = 255


class _Thing(Protocol):
    @property
    def id(self) -> str: ...


Thing = TypeVar("Thing", bound=_Thing)


@dataclass(frozen=True, slots=True)
class Page(Generic[Thing]):
    """One page of a list, by id: `next_marker` is "" on the last one."""

    things: list[Thing]
    next_marker: str


def new_id(call: Call) -> str:
    """The id of something new."""
    return str(uuid.UUID(bytes=call.core.token.random(16), version=4))


def checked_id(name: str, text: str) -> str:
    """The UUID in lower case. Raises Error(PARAMETER_INVALID) with the parameter's name."""
    if not _UUID.fullmatch(text):
        raise Error(PARAMETER_INVALID, name=name, reason="a UUID is due")
    return text.lower()


def check_name(parameter: str, name: str) -> None:
    """Raises Error(PARAMETER_INVALID) for what is no name."""
    if not _NAME.fullmatch(name):
        reason = "1 to 255 of letters, digits and :/_- are due"
        raise Error(PARAMETER_INVALID, name=parameter, reason=reason)


def check_description(description: str) -> None:
    """Raises Error(PARAMETER_INVALID) beyond 255 characters."""
    if len(description) > _DESCRIPTION_LENGTH:
        reason = f"at most {_DESCRIPTION_LENGTH} characters are due"
        raise Error(PARAMETER_INVALID, name="description", reason=reason)


def page_bounds(limit: int | None, marker: str) -> tuple[int, str]:
    """(how many, behind which id) of a list."""
    size = PAGE if limit is None else limit
    if not 1 <= size <= LARGEST_PAGE:
        raise Error(KEYSPACE_LIMIT_INVALID)
    if marker and not _UUID.fullmatch(marker):
        raise Error(KEYSPACE_MARKER_INVALID)
    return size, marker.lower()


def cut(found: Sequence[Thing], size: int) -> Page[Thing]:
    """The page, from one more than it has room for, if there are so many."""
    shown = list(found[:size])
    return Page(shown, shown[-1].id if len(found) > size else "")
