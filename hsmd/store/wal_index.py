"""Whether anything was committed to an SQLite store: read where SQLite tells its own connections.

In WAL mode each commit writes a header at the beginning of the file `-shm`, which all connections have
mapped (https://www.sqlite.org/walformat.html, 2.1). `PRAGMA data_version` compares the same bytes, between
locks and with the interpreter's lock let go of: a tenth of what a call takes (docs/decisions/0028).
"""

import itertools
import mmap
import os
import sqlite3
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from hsmd.store.faults import AWAY, faulted

_HEADER_BYTES = 48  # a counter of commits, the log's length, its checksum so far and its salts
_FORMAT = (3007000).to_bytes(4, sys.byteorder)  # how it begins
_IS_INITIALISED = 12  # the place of a byte that is 1 then


@dataclass(slots=True)
class _Mapped:
    path: Path
    file: int
    memory: mmap.mmap | None = None


# POSIX ends all locks that a process has on a file when it closes any descriptor of it, SQLite's locks too.
# So nothing is closed here that is there under its name: SQLite's last connection removes it.
_mapped: dict[tuple[int, int], _Mapped] = {}  # by device and inode
_lock = threading.Lock()
_numbers = itertools.count()


class WalIndex:
    """The WAL index of the store that a connection has open, good as long as that stays open."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Raises Error(UNAVAILABLE), also for a store that is not in WAL mode or has another format of it."""
        self._number = next(_numbers)  # an index that was removed may look the same when it is made again
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()  # makes it, if need be
            (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
            (path,) = (file for _, name, file in connection.execute("PRAGMA database_list") if name == "main")
            self._memory = _memory(Path(f"{path}-shm"))  # SQLite's own path: links are followed
            found = self._memory[:_HEADER_BYTES]
            if mode != "wal" or not found.startswith(_FORMAT) or not found[_IS_INITIALISED]:
                raise FileNotFoundError(f"{path} has no WAL index that can be read")
        except (OSError, ValueError) as error:
            raise faulted(AWAY) from error

    def header(self) -> tuple[int, bytes]:
        """What differs after any commit, by whichever thread or process.

        What is read while it is written is followed by something else.
        """
        return self._number, self._memory[:_HEADER_BYTES]


def _memory(path: Path) -> mmap.mmap:
    with _lock:
        for place in [place for place, each in _mapped.items() if _is_gone(place, each)]:
            os.close(_mapped.pop(place).file)  # who uses its memory keeps that
        place = _place(path.stat())
        if place not in _mapped:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            _mapped[_place(os.fstat(file))] = _Mapped(path, file)
        found = _mapped.get(place)
        if found is None:
            raise FileNotFoundError(f"another file came in the place of {path}")
        if found.memory is None:
            found.memory = mmap.mmap(found.file, _HEADER_BYTES, prot=mmap.PROT_READ)
        return found.memory


def _is_gone(place: tuple[int, int], mapped: _Mapped) -> bool:
    if os.fstat(mapped.file).st_nlink:
        return False
    try:
        return _place(mapped.path.stat()) != place
    except FileNotFoundError:
        return True


def _place(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
