"""What tells of commits on SQLite costs SQLite nothing: its locks stay, and no descriptors pile up."""

import mmap
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from unittest.mock import Mock

import pytest

from hsmd.errors import UNAVAILABLE, Error
from hsmd.store import Store
from hsmd.store.keys import insert_key
from tests.stores import child, make_key, make_version, path_of, seal

# Byte 128 of the file, of which each connection holds a shared lock: who gets it alone begins it anew.
LOCKED = """
import fcntl
with open(sys.argv[1] + "-shm", "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 128)
    except BlockingIOError:
        print("held")
    else:
        print("free")
"""


def add(store: Store, number: int) -> None:
    key = make_key(number)
    with store.write() as tx:
        insert_key(tx, key, make_version(key))


def locked(url: str) -> bool:
    with child(LOCKED, str(path_of(url))) as other:
        assert other.stdout is not None
        return {"held\n": True, "free\n": False}[other.stdout.readline()]


def opened(path: str) -> list[str]:
    """This process's descriptors of files that have or had that name."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # of another thread, closed meanwhile
            found += [each.name] if str(each.readlink()).startswith(path) else []
    return found


def test_locks_stay_when_another_store_of_the_process_is_closed(sqlite_store: Store, sqlite_url: str) -> None:
    add(sqlite_store, 1)
    sqlite_store.version()
    assert locked(sqlite_url)
    for _ in range(3):
        with closing(Store(sqlite_url, seal)) as other:
            other.version()
    assert locked(sqlite_url)
    sqlite_store.close()
    assert sqlite_store.version() is not None
    assert locked(sqlite_url)


def test_a_log_that_begins_anew_repeats_no_version(sqlite_store: Store, sqlite_url: str) -> None:
    seen = []
    for number in range(1, 8):
        add(sqlite_store, number)
        seen.append(sqlite_store.version())
        with closing(sqlite3.connect(path_of(sqlite_url))) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        seen.append(sqlite_store.version())
    assert len(set(seen[::2])) == 7
    assert seen[-1] == sqlite_store.version()


def test_reading_changes_nothing(sqlite_store: Store) -> None:
    add(sqlite_store, 1)
    before = sqlite_store.version()
    assert sqlite_store.last_change() == 1
    assert sqlite_store.version() == before


def test_stores_that_are_closed_leave_no_descriptors(sqlite_url: str) -> None:
    """The last connection removes the file, and the next one makes another."""
    for number in range(1, 6):
        with closing(Store(sqlite_url, seal)) as store:
            add(store, number)
            store.version()
        assert len(opened(f"{path_of(sqlite_url)}-shm")) <= 2  # of the last one only, the mapping's own too


def test_a_link_to_the_file_is_followed(sqlite_url: str, tmp_path: Path) -> None:
    """SQLite does so, and its index lies beside the file itself; what lies beside the link is another's."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    link = folder / "link.db"
    link.symlink_to(path_of(sqlite_url))
    (folder / "link.db-shm").write_bytes(bytes(32768))
    with closing(Store(f"sqlite:///{link}", seal)) as store, closing(Store(sqlite_url, seal)) as other:
        store.check()
        before = store.version()
        add(other, 1)
        assert store.version() != before


def test_an_index_that_is_made_again_is_another(sqlite_url: str) -> None:
    """It has an empty log as the one before had, and so the same header."""
    with closing(Store(sqlite_url, seal)) as store:
        before = store.version()
        store.close()
        with closing(Store(sqlite_url, seal)) as other:
            add(other, 1)
        assert store.version() != before


def test_a_store_without_the_log_is_refused(sqlite_url: str) -> None:
    """Whatever was left beside it would never change."""
    path = path_of(sqlite_url)
    with closing(Store(sqlite_url, seal)) as store:
        store.version()
        left = path.with_name(f"{path.name}-shm").read_bytes()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    path.with_name(f"{path.name}-shm").write_bytes(left)
    with closing(Store(sqlite_url, seal)) as store, pytest.raises(Error) as caught:
        store.version()
    assert caught.value.fault is UNAVAILABLE


def test_what_can_not_be_mapped_costs_one_descriptor(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Store(sqlite_url, seal)) as store:
        with monkeypatch.context() as patched:
            patched.setattr(mmap, "mmap", Mock(side_effect=OSError("no memory")))
            for _ in range(3):
                with pytest.raises(Error):
                    store.version()
            assert len(opened(f"{path_of(sqlite_url)}-shm")) <= 3  # SQLite's own, too
        before = store.version()
        add(store, 1)
        assert store.version() != before
