"""Whether anything was committed to an SQLite store: read where SQLite tells its own connections.

In WAL mode each commit writes a header at the beginning of the file `-shm`, which all connections have
mapped (https://www.sqlite.org/walformat.html, 2.1). `PRAGMA data_version` compares the same bytes, between
locks and with the interpreter's lock let go of: an eighth of what a call takes (docs/decisions/0028).
"""

import mmap
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from hsmd.store.faults import AWAY, faulted

_HEADER_BYTES = 48  # a counter of commits, the log's length, its checksum so far and its salts


@dataclass(frozen=True, slots=True)
class _Mapped:
    file: int
    memory: mmap.mmap


# POSIX ends all locks that a process has on a file when it closes any descriptor of it, SQLite's locks too.
# So nothing is closed here that has a name: SQLite's last connection unlinks it.
_mapped: dict[tuple[int, int], _Mapped] = {}  # by device and inode
_lock = threading.Lock()


class WalIndex:
    """The WAL index of a store, to be made while a connection that has read is open, and used as long."""

    def __init__(self, store: Path) -> None:
        """Raises Error(UNAVAILABLE)."""
        try:
            self._memory = _memory(store.with_name(f"{store.name}-shm"))
        except OSError as error:
            raise faulted(AWAY) from error

    def header(self) -> bytes:
        """48 bytes that differ after any commit, by whichever thread or process.

        One that is read while it is written differs from those before and behind, and is followed by another.
        """
        return self._memory[:_HEADER_BYTES]


def _memory(path: Path) -> mmap.mmap:
    with _lock:
        for place, each in list(_mapped.items()):
            if os.fstat(each.file).st_nlink == 0:
                os.close(_mapped.pop(place).file)  # who uses its memory keeps it
        there = path.stat()
        place = there.st_dev, there.st_ino
        if place not in _mapped:
            if there.st_size < _HEADER_BYTES:
                raise FileNotFoundError(f"{path} is no WAL index yet")
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            _mapped[place] = _Mapped(file, mmap.mmap(file, _HEADER_BYTES, prot=mmap.PROT_READ))
        return _mapped[place].memory
