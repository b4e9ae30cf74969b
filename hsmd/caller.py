"""Who calls: the identity, and where and as whom it acts, handed to every rule."""

from dataclasses import dataclass
from typing import Literal

IdentityKind = Literal[
    "certificate", "access-key", "token", "password", "socket", "peer", "system", "anonymous"
]


@dataclass(frozen=True, slots=True)
class Caller:
    """An established identity acting in one project.

    `user_id`, `domain_id` and `project_id` are 32 hex digits, or "" where there is none (anonymous
    callers, calls outside any project). `roles` holds the names that count in this project. A peer has none
    of these: `user_name` is its region.
    """

    kind: IdentityKind
    user_id: str = ""
    user_name: str = ""
    domain_id: str = ""
    project_id: str = ""
    roles: frozenset[str] = frozenset()
    source: str = ""
    request_id: str = ""
