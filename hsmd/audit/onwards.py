"""Reads one chain on from a record, over all its segments, packed ones too, for who takes it elsewhere."""

import gzip
from collections.abc import Generator
from pathlib import Path

from hsmd.audit import blocks, chain, segments
from hsmd.audit.segments import ACTIVE, Lines

Record = tuple[int, bytes]
"""A record's number and its line, without the newline."""


class Onwards:
    """The records of a chain behind that number, as they are written; keeps a file open between looks.

    What can't be had any more is left out: numbers tell. For one thread.
    """

    def __init__(self, directory: Path, name: str, suffix: str, after: int) -> None:
        self._place = (directory, suffix, name)
        self._after = after
        self._records: Generator[Record, None, None] | None = None

    def take(self, most: int, most_bytes: int) -> list[Record]:
        """The next ones, one at least if there is one. Raises OSError, UnreadableError."""
        taken: list[Record] = []
        size = 0
        while len(taken) < most and size < most_bytes:
            self._records = self._records or self._read()
            found = next(self._records, None)
            if found is None:
                self._records = None  # the next look begins anew: there may be more by then
                break
            self._after = found[0]
            taken.append(found)
            size += len(found[1])
        return taken

    def close(self) -> None:
        """Let go of the file."""
        if self._records is not None:
            self._records.close()
            self._records = None

    def _read(self) -> Generator[Record, None, None]:
        directory, suffix, name = self._place
        known = segments.snapshot(directory, suffix, name).get(name, [])
        try:
            for lines, following in zip(known, [*known[1:], None], strict=True):
                if following is None or not 0 < _first(following) <= self._after + 1:
                    yield from self._of(lines)
        finally:
            for lines in known:
                if lines.file is not None:
                    lines.file.close()

    def _of(self, lines: Lines) -> Generator[Record, None, None]:
        with lines.open() as file:
            if not isinstance(file, gzip.GzipFile):
                file.seek(blocks.span(file.fileno(), self._after + 1)[0])
            for block in blocks.forwards(file):
                for line in block.split(b"\n"):
                    begins = chain.beginning(line)
                    if begins and begins.seq > self._after:
                        yield begins.seq, line


def _first(lines: Lines) -> int:
    """The number of a segment's first record; 0 when it has none."""
    if lines.segment.first != ACTIVE:
        return lines.segment.first
    return segments.first_record(lines.segment.path) if lines.file is None else _of_open(lines)


def _of_open(lines: Lines) -> int:
    assert lines.file is not None  # noqa: S101  # who asks has looked
    begins = chain.beginning(lines.file.readline(chain.LONGEST_LINE))
    lines.file.seek(0)
    return begins.seq if begins else 0


def behind(directory: Path, name: str, suffix: str, after: int) -> int:
    """How many records the chain has behind that number. Raises OSError."""
    known = segments.chains(directory, suffix).get(name, [])
    return max(segments.last_record(known) - after, 0)
