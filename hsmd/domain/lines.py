"""What regions say to each other: the messages as the rules see them, and the line that carries them.

Every message may be sent again. About an answer that doesn't come, or can't be told from one, a line raises
Error(REGION_UNAVAILABLE): what was asked for may have been done. Any other fault is the peer's refusal, and
nothing was done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hsmd.algorithms import GCM_MESSAGES_PER_VERSION

VERSIONS_AT_ONCE = 250
SHARE = GCM_MESSAGES_PER_VERSION >> 4
"""Messages of a version's 2^32 that a replica may encrypt: what each region does is counted there alone."""


@dataclass(frozen=True, slots=True)
class RootKey:
    """A root key as both tokens can tell it: its label and key check value (hexadecimal, "" for none)."""

    label: str
    check_value: str


@dataclass(frozen=True, slots=True)
class Material:
    """A version, wrapped by the root key of that label; `messages` is how many the replica may encrypt.

    `created` is in milliseconds since 1970 UTC, `public_key` DER SubjectPublicKeyInfo or b"".
    """

    version: int
    wrapped: bytes
    root_label: str
    created: int
    public_key: bytes
    messages: int


@dataclass(frozen=True, slots=True)
class Versions:
    """Some of a key's versions, at most VERSIONS_AT_ONCE, and the root keys that wrapped them."""

    roots: Sequence[RootKey]
    materials: Sequence[Material]


@dataclass(frozen=True, slots=True)
class Offer:
    """A replica to be: `domain_id` is the primary's, `project_id` and all that was chosen the replica's."""

    key_id: str
    spec: str
    usage: str
    domain_id: str
    project_id: str
    alias: str
    description: str
    enterprise_project_id: str
    tags: Sequence[tuple[str, str]]
    current_version: int
    versions: Versions


@dataclass(frozen=True, slots=True)
class Handover:
    """What a replica needs to be the primary; `replicas` are (region, newest version told) of all others."""

    key_id: str
    current_version: int
    rotation_days: int | None
    rotation_due: int | None
    replicas: Sequence[tuple[str, int]]


class Line(Protocol):
    """The way to one peer. `request_id` is that of the call for which it is asked.

    Where True and False are answered, False says that the key is not there any more.
    """

    @property
    def shared_domains(self) -> frozenset[tuple[str, str]]:
        """(a domain of theirs, a domain of ours) for each that may bring its keys here; by their ids."""

    def holds(self, seconds: float) -> int:
        """How many threads have waited for an answer for so long."""

    def offer(self, offer: Offer, request_id: str) -> str:
        """Make a replica; the id of its domain."""

    def send(self, key_id: str, versions: Versions, current: int, request_id: str) -> bool:
        """Give it versions that it lacks; it encrypts with the version `current` then, unless that is 0."""

    def hand_over(self, handover: Handover, request_id: str) -> None:
        """Make it the primary."""

    def follow(self, key_id: str, region: str, request_id: str) -> bool:
        """Tell it that the primary is from now on in that region."""

    def find(self, key_id: str, request_id: str) -> bool:
        """Ask whether it is there."""
