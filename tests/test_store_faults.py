"""Faults of the store, provoked for real: each becomes one of ours, loses nothing and ends with its cause."""

import inspect
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import sqlalchemy.exc
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from hsmd.errors import STORAGE_FAILED, UNAVAILABLE, Error, Fault
from hsmd.store import Store, StoreError, core, faults, upgrade
from hsmd.store.keys import get_key, get_version, insert_key, list_keys
from tests.stores import behind_its_back, child, is_sqlite, make_key, make_version, path_of, seal


def add(store: Store, number: int) -> None:
    key = make_key(number)
    with store.write() as tx:
        insert_key(tx, key, make_version(key))


def keys(store: Store) -> list[str]:
    with store.read() as tx:
        return [key.id for key in list_keys(tx, "project", limit=100_000, offset=0)]


def refused(store: Store, number: int) -> Error:
    with pytest.raises(Error) as caught:
        add(store, number)
    assert caught.value.__cause__ is not None
    return caught.value


# Every class and code has an outcome


def exceptions(module: object) -> list[type[Exception]]:
    found = [each for _, each in inspect.getmembers(module, inspect.isclass) if issubclass(each, Exception)]
    return [each for each in found if not issubclass(each, Warning)]


def test_every_class_of_sqlalchemy_was_thought_of() -> None:
    classes = [each for each in exceptions(sqlalchemy.exc) if issubclass(each, SQLAlchemyError)]
    assert len(classes) > 40
    for each in classes:
        nearest = next(kind for kind in each.__mro__ if kind in faults.BY_CLASS)
        assert nearest is not SQLAlchemyError or each is SQLAlchemyError, each
        assert isinstance(faults.BY_CLASS[nearest](), Error)


def test_every_class_of_the_drivers_has_an_outcome() -> None:
    for each in exceptions(sqlite3):
        assert faults.outcome(each("text")) is not None, each
    for each in exceptions(psycopg.errors) + exceptions(psycopg):
        if issubclass(each, psycopg.Error):
            wrapped = DBAPIError.instance(
                "SELECT", {}, each("text"), psycopg.Error, dialect=None, hide_parameters=True
            )
            assert faults.outcome(wrapped) is not None, each


def test_every_code_of_the_databases_has_an_outcome() -> None:
    for code in range(1, 256):
        error = sqlite3.OperationalError("text")
        error.sqlite_errorcode = code | 3 << 8  # an extended code
        assert faults.outcome(error) is faults.BY_SQLITE_CODE.get(code, faults.FAILED)
    states = [state for each in exceptions(psycopg.errors) if (state := getattr(each, "sqlstate", None))]
    assert len(states) > 200
    for each in states:
        assert faults.outcome(psycopg.errors.lookup(each)("text")) is not None


@pytest.mark.parametrize(
    "error", [ValueError(), KeyError(), OSError(), RuntimeError(), Error(UNAVAILABLE, reason="")]
)
def test_what_is_not_the_stores_passes(store: Store, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, store.write():
        raise error
    assert caught.value is error


def test_no_text_of_an_error_holds_content(store: Store) -> None:
    add(store, 1)
    error: BaseException | None = refused(store, 1)
    secret = repr(make_version(make_key(1)).wrapped)
    while error is not None:
        assert secret[2:-1] not in str(error) + repr(error)
        error = error.__cause__ or error.__context__


# Faults of both databases


@pytest.fixture
def busy(store: Store, store_url: str) -> Iterator[Store]:
    """Another process is writing, and goes on with it."""
    if is_sqlite(store_url):
        raw = store._writers.raw_connection()
        raw.cursor().execute("PRAGMA busy_timeout=50")  # the pool's only writer
        raw.close()
        with closing(sqlite3.connect(path_of(store_url), isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield store
    else:
        with closing(psycopg.connect(store_url)) as server:
            server.execute("SELECT pg_advisory_xact_lock(%s)", [core.ADVISORY_LOCK])
            yield store


def test_another_writer_makes_it_busy_for_writers_only(busy: Store, store_url: str) -> None:
    assert keys(busy) == []
    busy.version()
    error = refused(busy, 1)
    assert error.fault is UNAVAILABLE
    assert "busy" in error.message
    assert keys(busy) == []


def test_it_is_over_when_it_is_over(store: Store, store_url: str) -> None:
    with closing(Store(store_url, seal)) as other, other.write():
        thread = threading.Thread(target=add, args=(store, 1))  # waits
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    thread.join(60)
    assert not thread.is_alive()
    assert keys(store) == ["key-1"]


# Faults of SQLite


def test_a_full_store_refuses_and_recovers(sqlite_store: Store) -> None:
    add(sqlite_store, 1)
    raw = sqlite_store._writers.raw_connection()
    [[pages]] = raw.cursor().execute("PRAGMA page_count").fetchall()
    raw.cursor().execute(f"PRAGMA max_page_count={pages}")
    raw.close()
    added, number = [1], 1
    error = None
    while error is None:
        number += 1
        try:
            add(sqlite_store, number)
            added.append(number)
        except Error as full:
            error = full
    assert error.fault is STORAGE_FAILED
    assert refused(sqlite_store, number).fault is STORAGE_FAILED
    assert keys(sqlite_store) == [f"key-{each}" for each in added]
    raw = sqlite_store._writers.raw_connection()
    raw.cursor().execute("PRAGMA max_page_count=1000000")
    raw.close()
    add(sqlite_store, number)
    assert keys(sqlite_store)[-1] == f"key-{number}"


FULL_DISK = """
import resource
from hsmd.errors import Error
store = Store(sys.argv[1], seal)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
added, failed = [], []
for number in range(1, 400):
    key = make_key(number)
    try:
        with store.write() as tx:
            insert_key(tx, key, make_version(key))
        added.append(key.id)
    except Error as error:
        failed.append(error.fault.code)
with store.read() as tx:
    assert [key.id for key in list_keys(tx, "project", limit=1000, offset=0)] == added
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
with store.write() as tx:
    insert_key(tx, make_key(1000), make_version(make_key(1000)))
print(len(added) > 0, set(failed))
"""


def test_a_full_disk_loses_nothing_acknowledged(sqlite_url: str) -> None:
    said, _ = child(FULL_DISK, sqlite_url).communicate(timeout=120)
    assert said == "True {'KMS.0102'}\n"
    assert behind_its_back(sqlite_url, "PRAGMA integrity_check") == [("ok",)]


READ_ONLY = """
import os
from hsmd.errors import Error
path, url = path_of(sys.argv[1]), sys.argv[1]
path.parent.mkdir()
upgrade(url)
store = Store(url, seal)
def add(number):
    with store.write() as tx:
        insert_key(tx, make_key(number), make_version(make_key(number)))
add(1)
store.close()
if os.geteuid() == 0:  # root writes everywhere: be nobody
    for each in (path, path.parent):
        os.chown(each, 65534, 65534)
    os.setuid(65534)
path.chmod(0o400)
path.parent.chmod(0o500)
try:
    add(2)
except Error as error:
    print(error.fault.code)
path.parent.chmod(0o700)
path.chmod(0o600)
add(3)
with store.read() as tx:
    print(*[key.id for key in list_keys(tx, "project", limit=10, offset=0)])
"""


def test_a_read_only_store_refuses_and_recovers() -> None:
    with tempfile.TemporaryDirectory() as top:  # not below tmp_path, which is closed to others
        Path(top).chmod(0o777)
        said, _ = child(READ_ONLY, f"sqlite:///{top}/store/store.db").communicate(timeout=60)
    code, left = said.splitlines()
    assert code in ("KMS.0102", "KMS.0104")  # as SQLite can still open its log or not
    assert left == "key-1 key-3"


def damage(url: str, start: int, size: int) -> None:
    with path_of(url).open("r+b") as file:
        file.seek(start)
        file.write(b"\xa5" * size)


@pytest.fixture
def closed_url(sqlite_url: str) -> str:
    """A store of 200 keys that nobody has open, so that all of it is in the file."""
    with closing(Store(sqlite_url, seal)) as store:
        for number in range(200):
            add(store, number)
    return sqlite_url


def test_a_damaged_page_is_refused(closed_url: str) -> None:
    size = path_of(closed_url).stat().st_size
    damage(closed_url, 4096 * 2, size - 4096 * 2)
    with closing(Store(closed_url, seal)) as store:
        with pytest.raises(Error) as caught:
            keys(store)
        assert caught.value.fault is STORAGE_FAILED
        assert refused(store, 1000).fault is STORAGE_FAILED


def test_what_is_no_database_is_refused(closed_url: str) -> None:
    damage(closed_url, 0, 4096)
    with closing(Store(closed_url, seal)) as store:
        for use in (lambda: keys(store), store.check, store.version, store.last_change):
            with pytest.raises(Error) as caught:
                use()
            assert caught.value.fault is STORAGE_FAILED
    with pytest.raises(Error):
        upgrade(closed_url)


def test_single_damaged_bytes_never_give_a_wrong_key(closed_url: str) -> None:
    """Bytes all over the file, one at a time: a row is right, refused, or (an index was hit) not found."""
    whole = path_of(closed_url).read_bytes()
    outcomes = set()
    for at in range(4096, len(whole), 1459):
        path_of(closed_url).write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with closing(Store(closed_url, seal)) as store:
            for number in (0, 100, 199):
                outcomes.add(_look(store, number))
    assert outcomes >= {"right"}
    assert outcomes <= {"right", "SealBroken", "Error", "absent"}


def _look(store: Store, number: int) -> str:
    key = make_key(number)
    try:
        with store.read() as tx:
            found = get_key(tx, key.id), get_version(tx, key.id, 1)
    except Exception as error:
        return type(error).__name__
    if None in found:
        return "absent"
    return "right" if found == (key, make_version(key)) else "wrong"


def test_a_store_that_went_away_is_not_made_anew(sqlite_url: str) -> None:
    with closing(Store(sqlite_url, seal)) as store:
        add(store, 1)
    path = path_of(sqlite_url)
    moved = path.rename(path.with_name("moved"))
    with closing(Store(sqlite_url, seal)) as store:
        with pytest.raises(StoreError, match="no store"):
            store.check()
        for use in (lambda: keys(store), store.version, lambda: add(store, 2)):
            fault = _fault(use)
            assert fault is UNAVAILABLE
        assert not path.exists()
        moved.rename(path)
        add(store, 2)
        assert keys(store) == ["key-1", "key-2"]
        store.version()


def _fault(use: object) -> Fault:
    assert callable(use)
    with pytest.raises(Error) as caught:
        use()
    return caught.value.fault


# Faults of PostgreSQL


def cut(url: str) -> None:
    """End all other connections to this database, as a restart does."""
    behind_its_back(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
def test_lost_connections_are_replaced(store: Store, store_url: str) -> None:
    add(store, 1)
    cut(store_url)
    assert keys(store) == ["key-1"]
    add(store, 2)
    cut(store_url)
    assert store.version() == store.last_change() == 2


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
def test_a_connection_lost_inside_a_transaction_undoes_it(store: Store, store_url: str) -> None:
    key = make_key(1)

    def lose() -> None:
        with store.write() as tx:
            insert_key(tx, key, make_version(key))
            cut(store_url)

    assert _fault(lose) is UNAVAILABLE
    assert keys(store) == []
    add(store, 1)
    assert keys(store) == ["key-1"]


def test_a_server_that_is_not_there_is_unavailable() -> None:
    pytest.importorskip("psycopg")
    with closing(Store("postgresql://nobody@127.0.0.1:1/none", seal)) as store:
        assert _fault(store.check) is UNAVAILABLE
        assert _fault(store.version) is UNAVAILABLE
        assert _fault(lambda: add(store, 1)) is UNAVAILABLE
