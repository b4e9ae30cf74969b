"""The files of the log: each process writes a chain of its own, in segments that rotate and are packed.

    worker-0.jsonl                     the segment being written
    worker-0.000000000001.jsonl.gz     earlier ones, by the number of their first record, packed or not
    checkpoints.chain                  the chain of signed checkpoints, with segments like these

A file of another name is no part of the log.
"""

import fcntl
import gzip
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hsmd.audit import chain
from hsmd.audit.chain import START, Head

RECORDS, CHECKPOINTS = ".jsonl", ".chain"
PACKED = ".gz"
ACTIVE = 10**18  # sorts behind every number

_NAME = re.compile(r"([A-Za-z0-9_-]{1,100})(?:\.([0-9]{12,18}))?(\.jsonl|\.chain)(\.gz)?")
_ASIDE = re.compile(r"[A-Za-z0-9_-]{1,100}\.aside-[0-9]{1,9}\.jsonl")
_BLOCK = 1024 * 1024


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """One file of a chain. `first` is the number of its first record, ACTIVE for the one being written."""

    first: int
    path: Path

    @property
    def packed(self) -> bool:
        """Whether it is compressed."""
        return self.path.suffix == PACKED


class UnreadableError(Exception):
    """A segment can't be read to its end: it was cut or changed while it was packed."""


def rotated(path: Path, first: int) -> Path:
    """The name that the active segment at `path` gets when it is full."""
    return path.with_name(f"{path.stem}.{first:012d}{path.suffix}")


def chains(directory: Path, suffix: str = RECORDS) -> dict[str, list[Segment]]:
    """The segments of every chain, in order. Where one is there packed and not, the packed one is left out.

    Raises OSError.
    """
    found: dict[str, dict[int, Segment]] = {}
    for path in sorted(directory.iterdir()):  # a packed one comes after the other
        name = _NAME.fullmatch(path.name)
        if name is None or name[3] != suffix or (name[4] and not name[2]):
            continue
        first = int(name[2]) if name[2] else ACTIVE
        found.setdefault(name[1], {}).setdefault(first, Segment(first, path))
    return {name: sorted(segments.values()) for name, segments in sorted(found.items())}


def strangers(directory: Path) -> list[str]:
    """Names of files that are no part of the log, but look as if they wanted to be."""
    return sorted(
        path.name
        for path in directory.iterdir()
        if {RECORDS, CHECKPOINTS}.intersection(path.suffixes) and not _NAME.fullmatch(path.name)
    )


def aside(directory: Path) -> list[Segment]:
    """Files that were set aside since they held no chain. Raises OSError."""
    found = [path for path in directory.iterdir() if _ASIDE.fullmatch(path.name)]
    return [Segment(0, path) for path in sorted(found)]


def is_held(path: Path) -> bool:
    """Whether a process writes to the segment. Raises OSError."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def first_record(path: Path) -> int:
    """The number of the record that a segment begins with; 0 when there is none. Raises OSError."""
    with path.open("rb") as file:
        begins = chain.beginning(file.readline(chain.LONGEST_LINE))
        return begins.seq if begins else 0


def last_line(segment: Segment) -> bytes:
    """Its last whole line; b"" when there is none. Raises OSError, UnreadableError."""
    line = b""
    if segment.packed:
        for line in Lines(segment):  # noqa: B007  # the last one is wanted
            pass
        return line
    with segment.path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - chain.LONGEST_LINE))
        return (b"\n" + file.read()).rpartition(b"\n")[0].rpartition(b"\n")[2]


def last_record(known: Sequence[Segment]) -> int:
    """The number of the last record of a chain with these segments; 0 when it has none. Raises OSError."""
    for segment in reversed(known):
        with suppress(UnreadableError, FileNotFoundError):  # it was just packed
            if begins := chain.beginning(last_line(segment)):
                return begins.seq
    return 0


def end_of(segment: Segment) -> Head:
    """The head after the last line that is a record. Raises OSError."""
    last = b""
    with suppress(UnreadableError):
        for line in Lines(segment):
            if chain.beginning(line):
                last = line
    return chain.head_of(last) or START


class Lines:
    """The lines of one segment, without their newlines. `torn` is what stands behind the last newline.

    `file` is the segment, opened before; to be read once. A plain one that was packed since is read packed.
    """

    def __init__(self, segment: Segment, file: BinaryIO | None = None) -> None:
        self.segment = segment
        self.file = file
        self.torn = b""

    def __iter__(self) -> Iterator[bytes]:
        """Read on to the end. Raises UnreadableError, OSError."""
        rest = b""
        with self.open() as file:
            while block := _read(file):
                pieces = (rest + block).split(b"\n")
                rest = pieces.pop()
                yield from pieces
                if len(rest) > chain.LONGEST_LINE:
                    raise UnreadableError(f"more than {chain.LONGEST_LINE} bytes without a newline")
        self.torn = rest

    def open(self) -> BinaryIO:
        """The segment as it was before it was packed. Raises OSError."""
        path = self.segment.path
        if self.file is not None:
            return self.file
        if not self.segment.packed:
            try:
                return path.open("rb")
            except FileNotFoundError:
                path = Path(f"{path}{PACKED}")
        return gzip.open(path, "rb")  # type: ignore[return-value]  # it reads alike


def snapshot(directory: Path, suffix: str = RECORDS, only: str = "") -> dict[str, list[Lines]]:
    """All chains as they stand now; a rotation meanwhile takes nothing away and adds nothing. Raises OSError.

    So the files that are being written are opened before the others are looked for. `only`: that chain.
    """
    writing: dict[str, BinaryIO] = {}
    for name, known in chains(directory, suffix).items():
        if known[-1].first == ACTIVE and only in ("", name):
            with suppress(FileNotFoundError):
                writing[name] = known[-1].path.open("rb")
    found = {}
    for name, known in chains(directory, suffix).items():
        if only not in ("", name):
            continue
        file = writing.get(name)
        lines = [Lines(each) for each in known if each.first != ACTIVE and not _is_same(each, file)]
        found[name] = [*lines, *([Lines(known[-1], file)] if file else [])]
    return found


def _is_same(segment: Segment, file: BinaryIO | None) -> bool:
    with suppress(FileNotFoundError):
        return file is not None and os.path.samestat(segment.path.stat(), os.fstat(file.fileno()))
    return False


def _read(file: BinaryIO) -> bytes:
    try:
        return file.read(_BLOCK)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnreadableError(str(error)) from error
