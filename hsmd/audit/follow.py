"""Follows the chains while they are written, so that what a checkpoint signs for was read and checked."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hsmd.audit import chain, segments
from hsmd.audit.chain import START, Head
from hsmd.audit.segments import Segment

Sink = Callable[[str, bytes], None]

_BLOCK = 2 * chain.LONGEST_LINE


def _nowhere(_name: str, _line: bytes) -> None:
    pass


@dataclass(slots=True)
class _Chain:
    """One chain, and the place in its files where the reading stands."""

    name: str
    head: Head
    handle: int | None = None
    offset: int = 0
    sought: bool = False  # whether the head was looked for in vain
    trouble: list[str] = field(default_factory=list)

    def read(self, known: list[Segment], sink: Sink) -> int:
        """Read what is new, over all segments; how many records."""
        count = 0
        if self.handle is None:
            self._open(known)
        while self.handle is not None:
            count += self._read_on(self.handle, sink)
            if self._is_active(known[-1]) or not self._open(known):
                break
        return count

    def close(self) -> None:
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None

    def _is_active(self, last: Segment) -> bool:
        """Whether what is read is still being written."""
        assert self.handle is not None  # noqa: S101  # it was read just now
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self.handle), last.path.stat())
        return False

    def _open(self, known: list[Segment]) -> bool:
        """Go to where the record after the head stands; whether there is such a place."""
        for segment in reversed(known):
            if segment.packed:
                continue
            handle, first = _opened(segment.path)
            if first is not None and first.seq <= self.head.seq + 1:
                self.close()
                self.handle, self.offset = handle, 0
                self._skip(handle)
                return True
            os.close(handle)
        return self._begin_anew(known)

    def _begin_anew(self, known: list[Segment]) -> bool:
        """No file holds what follows the head: take what there is, and say so."""
        last = known[-1]
        if self.handle is not None:
            return False
        if last.packed or not last.path.stat().st_size:
            self.seek([each for each in known if each.first != segments.ACTIVE])
            return False
        handle, first = _opened(last.path)
        if first is None:
            os.close(handle)
            return False
        self.trouble.append(f"record {self.head.seq + 1} of {self.name} is missing: {first.seq} comes next")
        self.head = Head(first.seq - 1, first.digest)
        self.handle, self.offset = handle, 0
        return True

    def seek(self, known: list[Segment]) -> None:
        """Once: the files that are there must reach as far as the head."""
        if not self.sought and self.head.seq:
            end = segments.end_of(known[-1]) if known else START
            self._expect_head(end.seq)
        self.sought = True

    def _expect_head(self, end: int) -> None:
        if end < self.head.seq:
            self.trouble.append(f"records {end + 1} to {self.head.seq} of {self.name} are gone")

    def _skip(self, handle: int) -> None:
        """Pass what the head stands for; its own line must be the one it was."""
        passed = 0
        while True:
            lines = _lines_at(handle, self.offset)
            for line in lines[:-1]:
                found = chain.beginning(line)
                if found is None or found.seq > self.head.seq:
                    return
                if found.seq == self.head.seq and chain.head_of(line) != self.head:
                    self.trouble.append(f"record {found.seq} of {self.name} was changed")
                self.offset += len(line) + 1
                passed = found.seq
            if len(lines) == 1:
                break
        self._expect_head(passed)

    def _read_on(self, handle: int, sink: Sink) -> int:
        count = 0
        if os.fstat(handle).st_size < self.offset:
            self.trouble.append(f"{self.name} was cut behind record {self.head.seq}")
            self.offset = os.fstat(handle).st_size
        while True:
            lines = _lines_at(handle, self.offset)
            for line in lines[:-1]:
                self._take(line)
                sink(self.name, line)
            self.offset += sum(len(line) + 1 for line in lines[:-1])
            count += len(lines) - 1
            if len(lines) == 1:
                return count

    def _take(self, line: bytes) -> None:
        found = chain.beginning(line)
        expected = Head(self.head.seq + 1, self.head.digest)
        if found != expected:
            self.trouble.append(f"record {expected.seq} of {self.name} does not follow the one before it")
        seq = found.seq if found else expected.seq
        self.head = chain.after(Head(seq - 1, ""), line)


def _opened(path: Path) -> tuple[int, Head | None]:
    """The file, and what its first line follows. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return handle, chain.beginning(_lines_at(handle, 0)[0])
    except BaseException:
        os.close(handle)
        raise


def _lines_at(handle: int, offset: int) -> list[bytes]:
    """What stands at the offset: whole lines, then the beginning of another one or b""."""
    return os.pread(handle, _BLOCK, offset).split(b"\n")


class Follower:
    """All chains of a directory, from where `heads` says they stood; safe for one thread."""

    def __init__(self, directory: Path, heads: Mapping[str, Head]) -> None:
        self._directory = directory
        self._chains = {name: _Chain(name, head) for name, head in heads.items()}

    @property
    def heads(self) -> dict[str, Head]:
        """Where every chain stands that has begun."""
        return {name: each.head for name, each in self._chains.items() if each.head.seq}

    def look(self, sink: Sink = _nowhere) -> int:
        """Read what was written since the last look, into `sink`; how many records. Raises OSError."""
        if not self._directory.exists():
            return 0
        count = 0
        there = segments.chains(self._directory)
        for name in self._chains.keys() - there:
            self._chains[name].seek([])
        for name, known in there.items():
            one = self._chains.setdefault(name, _Chain(name, START))
            with suppress(FileNotFoundError):  # it was just rotated or packed: the next look finds it
                count += one.read(known, sink)
        return count

    def sync(self) -> None:
        """Put on disk what was read, before anybody vouches for it. Raises OSError."""
        for each in self._chains.values():
            if each.handle is not None:
                os.fdatasync(each.handle)

    def trouble(self) -> list[str]:
        """What was found since the last time that is not as a chain should be."""
        found = [text for each in self._chains.values() for text in each.trouble]
        for each in self._chains.values():
            each.trouble.clear()
        return found

    def close(self) -> None:
        """Let go of the files."""
        for each in self._chains.values():
            each.close()
