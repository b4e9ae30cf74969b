"""Reads the log from its end, newest records first, from a place on and within a bound, for who asks often.

What is passed over costs little: whole segments by the time of their first record, whole blocks by the texts
that a wanted record must hold. A packed segment is read to its end at once, however the bound is.
"""

import gzip
import os
import re
import zlib
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

from hsmd.audit import blocks, chain, segments
from hsmd.audit.search import Found, Search, Wanted, spelled
from hsmd.audit.segments import ACTIVE, Lines

Fits = Callable[[Found], bool]

_TIME = re.compile(rb'"time":"([^"]{1,40})"')
_FRONT = 256  # bytes of a line that hold its time
# So far records of one chain may be out of the order of time: they are numbered when they are written.
_DISORDER = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Page:
    """Records, newest first, and where to go on: by chain, all before that number; {} at the end."""

    found: list[Found]
    before: dict[str, int]


@dataclass(slots=True)
class _Bound:
    """How many bytes may still be read; but no page ends where it began."""

    left: int
    moved: bool = False

    @property
    def reached(self) -> bool:
        return self.left <= 0 and self.moved


def newest(
    directory: Path,
    wanted: Wanted,
    count: int,
    fits: Fits,
    *,
    bound: int,
    before: Mapping[str, int] | None = None,
) -> Page:
    """At most `count` records that are wanted and fit, by reading little more than `bound` bytes.

    `before` is where another page ended. So there may be fewer of them, or none, and still more to come.
    What a damaged file holds behind the damage is passed over. Raises OSError.
    """
    limit = _Bound(bound)
    chains = {
        name: _Chain(Search(directory, wanted), wanted, known, fits, count, limit)
        for name, known in segments.snapshot(directory).items()
    }
    try:
        if before is not None:
            chains = {name: each.start(before[name]) for name, each in chains.items() if name in before}
        return _merged(chains, count)
    finally:
        for each in chains.values():
            each.close()


def _merged(chains: "Mapping[str, _Chain]", count: int) -> Page:
    for each in chains.values():
        each.advance()
    found: list[Found] = []
    while len(found) < count and all(each.head or each.done for each in chains.values()):
        heads = [each for each in chains.values() if each.head]
        if not heads:
            break
        found.append(max(heads, key=lambda each: each.place).take(last=len(found) + 1 == count))
    return Page(found, {name: each.before for name, each in chains.items() if not each.done})


class _Chain:
    """One chain, read backwards. `before`: what has a smaller number is not given yet."""

    def __init__(
        self, search: Search, wanted: Wanted, known: list[Lines], fits: Fits, most: int, bound: _Bound
    ) -> None:
        self._search = search
        self._texts = wanted.texts()
        self._since = spelled(wanted.since - _DISORDER if wanted.since else None).encode()
        self._until = spelled(wanted.until + _DISORDER if wanted.until else None).encode()
        self._segments = known
        self._fits = fits
        self._most = most
        self._bound = bound
        self._steps = self._run()
        self.before = ACTIVE
        self.head: Found | None = None
        self.done = False

    def start(self, before: int) -> "_Chain":
        """Begin before that number."""
        self.before = before
        return self

    @property
    def place(self) -> tuple[str, str, int]:
        """What heads are compared by."""
        assert self.head is not None  # noqa: S101  # who asks has looked
        return self.head.place

    def take(self, *, last: bool) -> Found:
        """The head; unless it is the last that is wanted, the next one comes up."""
        found = self.head
        assert found is not None  # noqa: S101  # who asks has looked
        self.head = None
        self._reach(_seq(found))
        if not last:
            self.advance()
        return found

    def advance(self) -> None:
        """Go on to the next one, or as far as the bound allows."""
        while not self._bound.reached:
            try:
                self.head = next(self._steps)
            except StopIteration:
                self.done = True
                return
            if self.head is not None:
                self.before = _seq(self.head) + 1
                return

    def _reach(self, number: int) -> None:
        """All from that number on is given, or not wanted."""
        if number < self.before:
            self.before, self._bound.moved = number, True

    def close(self) -> None:
        """Let go of the files."""
        self._steps.close()  # type: ignore[attr-defined]  # it is a generator
        for each in self._segments:
            if each.file is not None:
                each.file.close()

    def _run(self) -> Iterator[Found | None]:
        """What fits, newest first; None where the bound may be looked at."""
        known = self._segments
        if self._until:
            known = known[: bisect_left(known, self._until, key=_begins)]
        for lines in reversed(known):
            if lines.segment.first != ACTIVE and lines.segment.first >= self.before:
                continue
            try:
                with lines.open() as file:
                    yield from self._packed(file) if isinstance(file, gzip.GzipFile) else self._plain(file)
            except (FileNotFoundError, segments.UnreadableError):  # archived just now, or damaged
                pass
            if lines.segment.first != ACTIVE:
                self._reach(lines.segment.first)
                if _begins(lines) < self._since:
                    return

    def _plain(self, file: BinaryIO) -> Iterator[Found | None]:
        handle = file.fileno()
        for chunk in blocks.backwards(handle, blocks.span(handle, self.before)[1]):
            self._bound.left -= len(chunk)
            yield from self._fitting(chunk, reversed)
            if found := chain.beginning(chunk):
                self._reach(found.seq)
            if _time(chunk[chunk.rfind(b"\n", 0, -1) + 1 :]) < self._since:
                return
            yield None

    def _packed(self, file: BinaryIO) -> Iterator[Found | None]:
        """The last ones that fit, again and again from its beginning while there are more of them."""
        full = True
        while full:
            kept: deque[Found] = deque(maxlen=self._most)
            file.seek(0)
            for chunk in blocks.forwards(file):
                self._bound.left -= len(chunk)
                begins = chain.beginning(chunk)
                if begins and begins.seq >= self.before:
                    break
                kept += self._fitting(chunk, iter)
            full = len(kept) == self._most
            yield from reversed(kept)
            yield None

    def _fitting(self, chunk: bytes, order: Callable[[list[bytes]], Iterator[bytes]]) -> Iterator[Found]:
        """Those of some whole lines that are wanted, fit, and were not given yet."""
        if all(text in chunk for text in self._texts):
            for line in order(chunk.split(b"\n")):
                begins = chain.beginning(line)
                found = self._search.take(line) if begins and begins.seq < self.before else None
                if found and self._fits(found):
                    yield found


def _seq(found: Found) -> int:
    seq = found.record.get("seq")
    return seq if type(seq) is int else ACTIVE


def _time(line: bytes) -> bytes:
    found = _TIME.search(line, 0, _FRONT)
    return found[1] if found else b""


def _begins(lines: Lines) -> bytes:
    """The time of the segment's first record; b"" when that can't be told."""
    try:
        if lines.file is not None:
            return _time(os.pread(lines.file.fileno(), _FRONT, 0))
        with lines.open() as file:
            return _time(file.read(_FRONT))
    except (OSError, EOFError, zlib.error):
        return b""
