"""Passwords: argon2id hashes, checked a few at a time, since each check takes 64 MiB and a core."""

import base64
import threading

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
_PATIENCE_SECONDS = 5.0  # of those who are known already
_checks = threading.BoundedSemaphore(CHECKS_AT_ONCE)


def hash_password(password: str) -> str:
    """The argon2id hash to store. Raises Error(RATE_EXCEEDED) when there is no room for it for seconds."""
    if not _checks.acquire(timeout=_PATIENCE_SECONDS):
        raise Error(RATE_EXCEEDED, reason="too many passwords are being checked at once")
    try:
        return _HASHER.hash(password)
    finally:
        _checks.release()


def is_right(stored: str, password: str, *, patient: bool = False) -> bool:
    """Whether the password is the hash's; never where `stored` is "", after the same work.

    Raises Error(RATE_EXCEEDED) when as many checks run already as may; `patient` waits for some seconds.
    """
    if not _checks.acquire(timeout=_PATIENCE_SECONDS if patient else 0):
        raise Error(RATE_EXCEEDED, reason="too many passwords are being checked at once")
    try:
        return _HASHER.verify(stored or _NOBODY, password) and stored != ""
    except argon2.exceptions.VerificationError:
        return False
    finally:
        _checks.release()
