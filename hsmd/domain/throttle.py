"""Slows guessing down: counts failures by source and by claim, and refuses for a while, ever longer.

Pure logic, the clock is an argument (seconds, monotonic). One table a process: N workers multiply the
allowance by up to N.
"""

import hashlib
import threading
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address, IPv6Network
from typing import NamedTuple

from hsmd.errors import RATE_EXCEEDED, Error

WINDOW_SECONDS = 15 * 60.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 5 * 60.0
_DOUBLINGS = 16  # more change nothing, and would only make large numbers


class Limit(NamedTuple):
    """What failures are counted for, and how many may come before the first pause."""

    key: Hashable
    failures: int


@dataclass(slots=True)
class _Run:
    """Failures in a row: `since` is the first, `last` the latest, until `until` attempts are refused."""

    since: float
    last: float
    failures: int = 0
    until: float = 0.0


class Throttle:
    """The failures of at most `capacity` keys, those that failed longest ago out first."""

    def __init__(self, capacity: int = 10_000) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._runs: dict[Hashable, _Run] = {}
        self._good = Recent(WINDOW_SECONDS, capacity)

    def __len__(self) -> int:
        return len(self._runs)

    def is_good(self, key: Hashable, now: float) -> bool:
        """Whether the key has succeeded lately."""
        return self._good.holds(key, now)

    def is_clear(self, key: Hashable, now: float) -> bool:
        """Whether nothing holds it up, and it succeeded so lately that doing so again changes nothing."""
        return self._good.holds(key, now + WINDOW_SECONDS / 2) and key not in self._runs

    def admit(self, limits: Iterable[Limit], now: float) -> None:
        """Raises Error(RATE_EXCEEDED) while a pause of any of the keys lasts. Refusals are not counted."""
        left = 0.0
        for limit in limits:
            if run := self._runs.get(limit.key):
                left = max(left, run.until - now)
        if left > 0:
            reason = f"too many failed attempts; the next one in {int(left) + 1} s"
            raise Error(RATE_EXCEEDED, reason=reason, retry_after=left)

    def failed(self, limits: Iterable[Limit], now: float) -> None:
        """Count a failure for each key; from the limit on, each one doubles the pause."""
        with self._lock:
            for limit in limits:
                run = self._runs.pop(limit.key, None)
                if run is None or _over(run, limit, now):
                    run = _Run(now, now)
                run.failures += 1
                run.last = now
                excess = run.failures - limit.failures
                if excess >= 0:
                    pause = FIRST_PAUSE_SECONDS * 2 ** min(excess, _DOUBLINGS)
                    run.until = now + min(pause, LONGEST_PAUSE_SECONDS)
                self._runs[limit.key] = run  # at the end: the oldest stand first
            while len(self._runs) > self._capacity:
                del self._runs[next(iter(self._runs))]

    def succeeded(self, limit: Limit, now: float) -> None:
        """Forget the key's failures, and know for a while that it is good."""
        if limit.key in self._runs:
            with self._lock:
                self._runs.pop(limit.key, None)
        if not self.is_clear(limit.key, now):  # seldom, as that takes a lock
            self._good.add(limit.key, now)


class Recent:
    """What was seen in the last few seconds: at most `capacity` things, the oldest out first."""

    def __init__(self, seconds: float = 3.0, capacity: int = 1_000) -> None:
        self._seconds = seconds
        self._capacity = capacity
        self._lock = threading.Lock()
        self._ends: dict[Hashable, float] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, thing: Hashable, now: float) -> None:
        """It was seen now."""
        with self._lock:
            self._ends.pop(thing, None)
            self._ends[thing] = now + self._seconds
            while len(self._ends) > self._capacity:
                del self._ends[next(iter(self._ends))]

    def holds(self, thing: Hashable, now: float) -> bool:
        """Whether it was seen in the last seconds."""
        return self._ends.get(thing, now) > now


def key(*parts: str) -> bytes:
    """A key of the table, of one size, and without what people typed into a name field by mistake."""
    return hashlib.sha256(repr(parts).encode()).digest()


@lru_cache(maxsize=4096)
def network(source: str) -> str:
    """An IPv6 source's /64, which a single host may have for itself; anything else as it is."""
    if ":" not in source:
        return source
    try:
        address = IPv6Address(source.partition("%")[0])
    except AddressValueError:
        return source
    mapped = address.ipv4_mapped
    return str(mapped) if mapped else str(IPv6Network((address, 64), strict=False))


def _over(run: _Run, limit: Limit, now: float) -> bool:
    """Below the limit the window begins with the first failure; a pause has to be followed by quiet."""
    begin = run.since if run.failures < limit.failures else run.last
    return now - begin > WINDOW_SECONDS
