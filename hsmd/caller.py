"""Who calls: the identity, and where and as whom it acts, handed to every rule."""

from contextvars import ContextVar
from typing import Literal, NamedTuple

IdentityKind = Literal[
    "certificate",
    "access-key",
    "temporary-key",
    "token",
    "password",
    "socket",
    "keystone",
    "oidc",
    "peer",
    "ukey",
    "gateway",
    "system",
    "anonymous",
]

_request_id: ContextVar[str] = ContextVar("request_id", default="")


class logged_as:  # noqa: N801 -- it is used as a function is; as a generator it would take longer
    """What this thread or task logs within belongs to that call or job."""

    __slots__ = ("_before", "_request_id")

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id

    def __enter__(self) -> None:
        self._before = _request_id.set(self._request_id)

    def __exit__(self, *_: object) -> None:
        _request_id.reset(self._before)


def logged_request() -> str:
    """The id of the call or job that a log line belongs to, "" for none."""
    return _request_id.get()


class Caller(NamedTuple):
    """An established identity acting in one project, or in its domain when `project_id` is "".

    `user_id`, `domain_id` and `project_id` are 32 hex digits, or "" where there is none (anonymous
    callers, calls outside any project). `roles` holds the names that count in this project or domain.
    A peer has none of these: `user_name` is its region; nor has a gateway that speaks for itself: it is its
    certificate's name. Of a UKey `user_id` and `user_name` are its own,
    and `roles` holds its role; it has no domain and no project.

    Who acts as an agency is that agency: `user_id` and `user_name` are the agency's, `domain_id` is the
    domain that trusts, and `assumed_by` the user who took it on. `session_policy` is the JSON policy that
    narrows temporary credentials, "" for none.

    `groups` (ids) are what counts for somebody whom an external provider knows and who is no user here.
    """

    kind: IdentityKind
    user_id: str = ""
    user_name: str = ""
    domain_id: str = ""
    project_id: str = ""
    roles: frozenset[str] = frozenset()
    source: str = ""
    request_id: str = ""
    assumed_by: str = ""
    session_policy: str = ""
    groups: tuple[str, ...] = ()

    @property
    def is_agency(self) -> bool:
        """Whether a user of another domain, or a service, acts as an agency."""
        return self.assumed_by != ""
