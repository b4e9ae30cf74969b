"""One chain's file: whole lines only, each linked to the one before, whatever the disk does; one writer.

Used by the thread that `log.py` keeps for it, so that a disk that stalls holds up nobody else.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import file_digest, sha256
from pathlib import Path

from hsmd.audit import chain, segments
from hsmd.audit.chain import START, Head
from hsmd.audit.records import of_log
from hsmd.disk import sync_directory

_BLOCK = 64 * 1024
_NEVER = sys.maxsize

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rotation:
    """When a segment is full: bytes, and seconds since its first record; 0 for never."""

    size: int = 0
    seconds: float = 0.0


UNROTATED = Rotation()


def _no_witness() -> Head | None:
    return None


def _as_it_is(line: bytes) -> bytes:
    return line


class ChainFile:
    """Appends linked lines to the file at `path`, which is opened when needed and again after a failure.

    Another process that has the file open with such a writer keeps this one out. The chain goes on where the
    file ends, or the last rotated segment; `witness` knows how far it had come at least. What is found then
    and is not as it should be (a line that a crash tore, records that are gone, a file that is no chain) is
    told by a record of its own, which comes first. A file that was moved away is followed by a new one.

    When a write fails, its half line is cut off again, at once if the disk lets it and else when the file is
    opened next; whole lines stay, as somebody may have seen them. `finish` completes a line before it is
    hashed; `quiet`: such records have no place in this chain. Methods raise OSError, and what `finish` does.
    """

    def __init__(
        self,
        path: Path,
        *,
        durable: bool,
        rotation: Rotation = UNROTATED,
        witness: Callable[[], Head | None] = _no_witness,
        finish: Callable[[bytes], bytes] = _as_it_is,
        quiet: bool = False,
    ) -> None:
        self._path = path
        self._name = str(path)
        self._durable = durable
        self._rotation = rotation
        self._witness = witness
        self._finish = finish
        self._quiet = quiet
        self._handle: int | None = None
        self._identity = (0, 0)  # device and inode of the open file
        self._seq, self._digest = START.seq, START.digest.encode()  # of the last record
        self._known = False  # whether they are: the file was open before
        self._first = 0  # number of the segment's first record
        self._full: float = _NEVER  # the size, and the time, at which it is to be rotated
        self._due: float = _NEVER
        self._notices: list[bytes] = []

    def append(self, bodies: Iterable[bytes]) -> None:
        """Write JSON objects as lines of the chain; they are on disk afterwards when durable."""
        handle, size = self._current()
        if size >= self._full or time.time() >= self._due:
            self._rotate()
            handle, size = self._current()
        if self._notices:
            bodies = [*self._notices, *bodies]
        lines, digest = self._linked(bodies)
        try:
            _write_all(handle, b"".join(lines))
        except BaseException:
            self._undo(handle, size, lines)
            raise
        if self._notices:
            self._notices.clear()
        if not size:
            self._begin(self._seq + 1, time.time())
        self._seq, self._digest = self._seq + len(lines), digest

    def check(self) -> None:
        """Raise OSError where nothing can be written, as far as that shows without writing."""
        handle, _ = self._current()
        volume = os.fstatvfs(handle)
        if volume.f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), self._name)
        if not volume.f_bavail:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._name)

    def close(self) -> None:
        """Let go of the file, and of the lock on it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _linked(self, bodies: Iterable[bytes]) -> tuple[list[bytes], bytes]:
        """The lines of these bodies, and the digest of the last one."""
        seq, digest = self._seq, self._digest
        lines = []
        for body in bodies:
            seq += 1
            line = self._finish(chain.linked(seq, digest, body))
            digest = chain.digest(line)
            lines.append(line + b"\n")
        return lines, digest

    def _current(self) -> tuple[int, int]:
        """The open file and its size."""
        if self._handle is not None:
            there = self._look()
            if there is not None and (there.st_dev, there.st_ino) == self._identity:
                return self._handle, there.st_size
            self.close()
        self._handle = handle = self._open()
        opened = os.fstat(handle)
        self._identity = (opened.st_dev, opened.st_ino)
        return handle, opened.st_size

    def _look(self) -> os.stat_result | None:
        try:
            return os.stat(self._name)  # noqa: PTH116  # half the time of a Path's
        except FileNotFoundError:
            return None

    def _open(self) -> int:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        # With O_DSYNC a write is a write and fdatasync in one call, and so in one turn without the GIL.
        handle = os.open(self._path, flags | (os.O_DSYNC if self._durable else 0), 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._is_no_chain(handle):
                self._set_aside(handle)
                os.close(handle)
                return self._open()
            self._resume(handle)
            if self._durable:
                sync_directory(self._path.parent)  # a new file's name, too
        except BaseException:
            os.close(handle)
            raise
        return handle

    def _undo(self, handle: int, size: int, lines: Sequence[bytes]) -> None:
        """Keep what whole lines were written, and cut off the rest."""
        with contextlib.suppress(OSError):  # it is done again when the file is opened next
            end = os.fstat(handle).st_size
            for line in lines:
                if size + len(line) > end:
                    break
                size += len(line)
            os.ftruncate(handle, size)
        self.close()

    # Where a chain goes on

    def _is_no_chain(self, handle: int) -> bool:
        """Whether there are lines that are no records: of a log from before there were chains."""
        first = os.pread(handle, _BLOCK, 0) if os.fstat(handle).st_size else b""
        return b"\n" in first and chain.beginning(first) is None

    def _set_aside(self, handle: int) -> None:
        number = 1
        while (
            aside := self._path.with_name(f"{self._path.stem}.aside-{number}{self._path.suffix}")
        ).exists():
            number += 1
        with os.fdopen(os.dup(handle), "rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        self._path.rename(aside)
        _log.warning("%s held no chain and is now %s", self._path, aside)
        self._tell("auditFileSetAside", {"file": aside.name, "sha256": digest})

    def _resume(self, handle: int) -> None:
        size = os.fstat(handle).st_size
        end, last = _last_line(handle, size)
        if end < size:
            dropped = os.pread(handle, min(size - end, chain.LONGEST_LINE), end)
            os.ftruncate(handle, end)
            if not self._known:
                self._tell("auditLineTorn", {"bytes": size - end, "sha256": sha256(dropped).hexdigest()})
        self._begin(*(_beginning_of(handle) if end else (0, _NEVER)))
        found = chain.head_of(last) or (segments.end_of(segments.Segment(0, self._path)) if end else START)
        if not self._known:
            self._go_on(self._first_head(found))
        elif found.seq > self._seq:  # whole lines of a write that failed later on
            self._go_on(found)

    def _go_on(self, head: Head) -> None:
        self._seq, self._digest, self._known = head.seq, head.digest.encode(), True

    def _first_head(self, found: Head) -> Head:
        """Where to go on, for a process that has not written yet. Raises OSError."""
        if not found.seq:
            found = self._last_rotated()
        witness = self._witness()
        if witness is not None and witness.seq > found.seq:
            _log.error(
                "records %d to %d of %s are gone: they were there", found.seq + 1, witness.seq, self._path
            )
            self._tell("auditRecordsGone", {"from": found.seq + 1, "to": witness.seq})
            return witness
        return found

    def _last_rotated(self) -> Head:
        known = segments.chains(self._path.parent, self._path.suffix).get(self._path.stem, [])
        earlier = [each for each in known if each.first != segments.ACTIVE]
        return segments.end_of(earlier[-1]) if earlier else START

    def _tell(self, event: str, detail: dict[str, object]) -> None:
        if self._quiet:
            return
        record = of_log(event, self._path.stem, detail)
        self._notices.append(json.dumps(record, separators=(",", ":")).encode())

    # Rotation

    def _begin(self, first: int, written: float) -> None:
        """The segment's first record has this number, and was written at this time."""
        self._first = first
        self._full = self._rotation.size or _NEVER
        self._due = written + (self._rotation.seconds or _NEVER)

    def _rotate(self) -> None:
        """Give the segment its number; a new one begins with the next record."""
        target = segments.rotated(self._path, self._first)
        if not self._first or target.exists():  # the segment stays, grows, and is a verifier's to judge
            _log.error("%s can't be rotated: it holds no record, or %s is there", self._path, target)
            self._full = self._due = _NEVER
            return
        self._path.rename(target)


def _write_all(handle: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _last_line(handle: int, size: int) -> tuple[int, bytes]:
    """Where the last whole line ends, and that line without its newline; 0 and b"" when there is none."""
    end = _newline_before(handle, size) + 1
    if not end:
        return 0, b""
    start = _newline_before(handle, end - 1) + 1
    return end, os.pread(handle, end - 1 - start, start)


def _newline_before(handle: int, end: int) -> int:
    """The place of the last newline before `end`; -1 when there is none."""
    while end > 0:
        start = max(0, end - _BLOCK)
        found = os.pread(handle, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found
        end = start
    return -1


def _beginning_of(handle: int) -> tuple[int, float]:
    """The number of the first record, and when it was written; the file's own time where it doesn't say."""
    line = os.pread(handle, _BLOCK, 0).partition(b"\n")[0]
    begins = chain.beginning(line)
    try:
        written = datetime.fromisoformat(json.loads(line)["time"]).astimezone(UTC).timestamp()
    except (ValueError, KeyError, TypeError):
        written = os.fstat(handle).st_mtime
    return (begins.seq if begins else 0), written
