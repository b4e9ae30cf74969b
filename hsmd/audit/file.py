"""The audit file itself: whole lines only, whatever the disk does, for one writer.

Used by the thread that `log.py` keeps for it, so that a disk that stalls holds up nobody else.
"""

import contextlib
import fcntl
import os
from pathlib import Path

_BLOCK = 64 * 1024


class LineFile:
    """Appends lines to the file at `path`, which is opened when it is needed and again after a failure.

    Another process that has the file open with such a writer keeps this one out. A file that was moved
    away (rotated) is followed by a new one. When a write fails, what it left is cut off again, at once if
    the disk lets it and else when the file is opened next, so that no half line stays and no line of a call
    that was refused. Methods raise OSError.
    """

    def __init__(self, path: Path, *, durable: bool) -> None:
        self._path = path
        self._durable = durable
        self._handle: int | None = None
        self._identity = (0, 0)  # device and inode of the open file

    def append(self, lines: bytes) -> None:
        """Write whole lines; they are on disk afterwards when durable."""
        handle, size = self._current()
        try:
            _write_all(handle, lines)
        except BaseException:
            self._undo(handle, size)
            raise

    def close(self) -> None:
        """Let go of the file, and of the lock on it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

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
            return self._path.stat()
        except FileNotFoundError:
            return None

    def _open(self) -> int:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        # With O_DSYNC a write is a write and fdatasync in one call, and so in one turn without the GIL.
        handle = os.open(self._path, flags | (os.O_DSYNC if self._durable else 0), 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _cut_to_whole_lines(handle)
            if self._durable:
                _sync_directory(self._path.parent)  # a new file's name, too
        except BaseException:
            os.close(handle)
            raise
        return handle

    def _undo(self, handle: int, size: int) -> None:
        with contextlib.suppress(OSError):  # it is done again when the file is opened next
            os.ftruncate(handle, size)
        self.close()


def _write_all(handle: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _cut_to_whole_lines(handle: int) -> None:
    """Drop what a crash left behind the last newline: it was never acknowledged."""
    size = end = os.fstat(handle).st_size
    while end > 0:
        start = max(0, end - _BLOCK)
        newline = os.pread(handle, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(handle, end)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
