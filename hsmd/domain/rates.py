"""Token buckets that the daemon's processes share: how many calls a second a project or source may make.

A bucket is a single number: the time at which it will be full again (the generic cell rate algorithm). It
lies in memory that the supervisor maps before it forks. Nobody locks it, so a process that is killed holds
nothing, and a number is written whole or not at all. What others take while a process stands between its look
and its word is not counted: a microsecond, unless it is held up just there.
"""

import hashlib
import mmap
import secrets

_SLOTS = 16_384  # buckets that are not full, at one time
_PROBES = 8  # slots that a name may stand in
_BYTES = 8
_SECOND = 1_000_000_000


class Buckets:
    """Buckets by name, for all processes forked after this was made. Times are CLOCK_MONOTONIC's, in ns.

    A full bucket is as good as none, so its slot goes to whoever needs one. While all slots of a name are
    taken by buckets that are not, the fullest of those gives way: its owner begins anew with a full one.
    """

    def __init__(self, slots: int = _SLOTS) -> None:
        memory = memoryview(mmap.mmap(-1, 2 * slots * _BYTES))
        self._slots = slots
        self._owners = memory[: slots * _BYTES].cast("Q")  # marks of names, 0: nobody's
        self._full = memory[slots * _BYTES :].cast("Q")  # when each is full again
        self._secret = secrets.token_bytes(16)  # nobody can choose names that share another's slots
        self._places: dict[str, tuple[int, int]] = {}  # name → its mark and slot, as this process knows

    def take(self, name: str, rate: float, depth: float, now: int) -> float:
        """Take a token; 0, or the seconds until there will be one.

        The bucket fills with `rate` tokens a second and holds those of `depth` seconds, at least one.
        """
        mark, slot = self._places.get(name) or self._place(name)
        if self._owners[slot] != mark:
            slot = self._claim(name, mark, now)
        step = int(_SECOND / rate)
        room = max(int(depth * _SECOND), step)
        full = self._full[slot]
        ahead = (full - now if full > now else 0) + step
        if ahead > room:
            return (ahead - room) / _SECOND
        self._full[slot] = now + ahead
        return 0.0

    def _place(self, name: str) -> tuple[int, int]:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8, key=self._secret)
        mark = int.from_bytes(digest.digest(), "big") or 1
        return mark, mark % self._slots

    def _claim(self, name: str, mark: int, now: int) -> int:
        """The name's slot, found or made."""
        owners, full = self._owners, self._full
        slots = [(mark + probe) % self._slots for probe in range(_PROBES)]
        slot = next((each for each in slots if owners[each] == mark), None)
        if slot is None:
            slot = next((each for each in slots if full[each] <= now), None)
            slot = min(slots, key=full.__getitem__) if slot is None else slot
            full[slot] = 0
            owners[slot] = mark
        if len(self._places) > self._slots:
            self._places.clear()
        self._places[name] = mark, slot
        return slot
