"""What each of the daemon's processes is doing, and how loud they are to be, for all of them to see.

It lies in memory that the supervisor maps before it forks. A process writes its own seat only and nobody
locks it, so one that is killed leaves a seat that nobody writes to until its successor sits down.
"""

import mmap
import os
import struct
import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

_BUCKETS = 64
_WORD = 8
_FIELDS = (
    "pid",
    "started",
    "beat",
    "running",
    "answered",
    "refused",
    "failed",
    "loaded_keys",
    "token",
    "failing",
    "unsigned",
    "unsigned_since",
    "due",
)
_PLACES = {name: place for place, name in enumerate(_FIELDS)}
_WORDS = len(_FIELDS) + _BUCKETS
_RUNNING = _PLACES["running"]
_LATE_SECONDS = 5.0  # a process that was silent for longer is not at work
_SERVER_FAULT, _REFUSAL = 500, 400
_NOTE = struct.Struct("qq64s")
_CHECK = struct.Struct("I")


@dataclass(frozen=True, slots=True)
class Seat:
    """What one process wrote. `started` in ms since 1970; `token` and `failing` are numbers of its own.

    `unsigned` audit records wait for a checkpoint since `unsigned_since` (monotonic, ms), `due` is the jobs'
    backlog: the warden's. `latency` holds how many calls took how long, see `quantile`.
    """

    name: str
    pid: int
    started: int
    ready: bool
    running: int
    answered: int
    refused: int
    failed: int
    loaded_keys: int
    token: int
    failing: int
    unsigned: int
    unsigned_since: int
    due: int
    latency: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Loudness:
    """A level (a number of logging) for one logger and those below it, until then (ms since 1970)."""

    level: int
    until: int
    logger: str


class Board:
    """A seat for each process of these names, and one note for all. Each process has its own copy of this."""

    def __init__(self, names: Sequence[str] = ("process",)) -> None:
        memory = memoryview(mmap.mmap(-1, len(names) * _WORDS * _WORD + _NOTE.size + _CHECK.size))
        self._names = tuple(names)
        self._words = memory[: len(names) * _WORDS * _WORD].cast("q")
        self._note = memory[len(names) * _WORDS * _WORD :]
        self._at = 0
        self._lock = threading.Lock()  # of this process's threads

    def sit(self, name: str) -> None:
        """Write to the seat of this name from now on; what stood there was another one's."""
        self._at = self._names.index(name) * _WORDS
        for place in range(self._at, self._at + _WORDS):
            self._words[place] = 0
        self.write(pid=os.getpid(), started=time.time_ns() // 1_000_000)

    def begin(self) -> None:
        """A call begins."""
        with self._lock:
            self._words[self._at + _RUNNING] += 1

    def end(self, seconds: float, status: int) -> None:
        """A call ends, with that HTTP status, 0 for success, after so long."""
        outcome = "failed" if status >= _SERVER_FAULT else "refused" if status >= _REFUSAL else "answered"
        with self._lock:
            self._words[self._at + _RUNNING] -= 1
            self._words[self._at + _PLACES[outcome]] += 1
            self._words[self._at + len(_FIELDS) + _bucket(seconds)] += 1

    def write(self, **values: int) -> None:
        """Set what is not counted by calls, and show that this process is at work."""
        self._words[self._at + _PLACES["beat"]] = time.monotonic_ns()
        for name, value in values.items():
            self._words[self._at + _PLACES[name]] = value

    def look(self) -> list[Seat]:
        """All seats, as they are now."""
        return [self._seat(number) for number in range(len(self._names))]

    def _seat(self, number: int) -> Seat:
        words = self._words[number * _WORDS : (number + 1) * _WORDS].tolist()
        found = dict(zip(_FIELDS, words, strict=False))
        silent = (time.monotonic_ns() - found.pop("beat")) / 1e9
        ready = found["pid"] != 0 and silent < _LATE_SECONDS
        return Seat(self._names[number], ready=ready, latency=tuple(words[len(_FIELDS) :]), **found)

    # How loud

    def post(self, loudness: Loudness) -> None:
        """Ask all processes to log so; the last word counts."""
        note = _NOTE.pack(loudness.level, loudness.until, loudness.logger.encode())
        self._note[:] = note + _CHECK.pack(zlib.crc32(note))

    def posted(self) -> Loudness | None:
        """What was asked for, if it holds; half of one word and half of another count for none."""
        note = bytes(self._note)
        level, until, logger = _NOTE.unpack_from(note)
        if not until or zlib.crc32(note[: _NOTE.size]) != _CHECK.unpack_from(note, _NOTE.size)[0]:
            return None
        if until <= time.time_ns() // 1_000_000:
            return None
        return Loudness(level, until, logger.rstrip(b"\0").decode())


def _bucket(seconds: float) -> int:
    """Two buckets for each doubling of the time, from a microsecond to half an hour."""
    micros = int(seconds * 1e6)
    bits = micros.bit_length()
    half = micros >> (bits - 2) & 1 if bits > 1 else 0
    return min(2 * bits + half, _BUCKETS - 1)


def quantile(latency: Sequence[int], part: float) -> float:
    """Seconds within which that part of the calls ended, at most a half too long; 0 where there was none."""
    total, reached = sum(latency), 0
    for bucket, count in enumerate(latency):
        reached += count
        if count and reached >= part * total:
            bits, half = divmod(bucket, 2)
            return (1 << bits) * (1.0 if half else 0.75) / 1e6
    return 0.0
