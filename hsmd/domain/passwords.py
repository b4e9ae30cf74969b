"""Passwords: argon2id hashes, checked a few at a time, since each check takes 64 MiB and a core.

Who logs in and who chooses a password have places apart: whoever changes many passwords keeps nobody out.
"""

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import argon2

from hsmd.errors import RATE_EXCEEDED, Error

# RFC 9106's second recommended option but for its four lanes: a check keeps to one core.
_HASHER = argon2.PasswordHasher(time_cost=3, memory_cost=64 * 1024, parallelism=1)

# Verified against when there is no hash, so that this takes as long as with one. Not computed: each process
# would start a quarter of a second later. No password is known to give zeros.
_NOBODY = "$argon2id$v=19$m={memory},t={time},p={lanes}${salt}${value}".format(
    memory=_HASHER.memory_cost,
    time=_HASHER.time_cost,
    lanes=_HASHER.parallelism,
    salt=base64.b64encode(bytes(_HASHER.salt_len)).decode().rstrip("="),
    value=base64.b64encode(bytes(_HASHER.hash_len)).decode().rstrip("="),
)

CHECKS_AT_ONCE = 2  # a process; the other call threads are for other calls
CHANGES_AT_ONCE = 4  # of which one is at work and the others wait, each with a thread of its own
_PATIENCE_SECONDS = 5.0  # of those who wait: they are known already


class _Places:
    """Rooms for work that is dear: one for each who is let in, and a `desk` for each who is at work."""

    def __init__(self, rooms: int, desks: int) -> None:
        self._rooms = threading.BoundedSemaphore(rooms)
        self._desks = threading.BoundedSemaphore(desks)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Raises Error(RATE_EXCEEDED) when there is no room, or no desk for seconds."""
        with _one_of(self._rooms, 0), _one_of(self._desks, _PATIENCE_SECONDS):
            yield


_LOGINS = _Places(CHECKS_AT_ONCE, CHECKS_AT_ONCE)
_CHANGES = _Places(CHANGES_AT_ONCE, 1)


def hash_password(password: str) -> str:
    """The argon2id hash to store. Raises Error(RATE_EXCEEDED) when there is no room for it."""
    with _CHANGES.taken():
        return _HASHER.hash(password)


def is_right(stored: str, password: str, *, changing: bool = False) -> bool:
    """Whether the password is the hash's; never where `stored` is "", after the same work.

    `changing`: it is asked for a change, not for a login. Raises Error(RATE_EXCEEDED) when as many checks run
    already as may.
    """
    with (_CHANGES if changing else _LOGINS).taken():
        try:
            return _HASHER.verify(stored or _NOBODY, password) and stored != ""
        except argon2.exceptions.VerificationError:
            return False


@contextmanager
def _one_of(places: threading.BoundedSemaphore, seconds: float) -> Iterator[None]:
    if not places.acquire(timeout=seconds):
        raise Error(RATE_EXCEEDED, reason="too many passwords are being checked at once")
    try:
        yield
    finally:
        places.release()
