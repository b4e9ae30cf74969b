"""Transactions: all or nothing, one state for readers, and a version that never misses a commit."""

import os
import threading
from collections.abc import Callable
from contextlib import closing

import pytest
from sqlalchemy import select

from hsmd.errors import ALIAS_IN_USE, UNAVAILABLE, Error
from hsmd.store import Change, Forgotten, Store, core, feed
from hsmd.store.keys import get_key, get_version, insert_key, list_keys, reserve_usage, update_key
from hsmd.store.schema import CHANGES
from tests.stores import behind_its_back, child, is_sqlite, make_key, make_version, path_of, seal

PATIENCE = 60.0


def add(
    store: Store,
    number: int,
    *,
    before_commit: Callable[[], None] | None = None,
    and_then: Callable[[], object] = lambda: None,
) -> None:
    key = make_key(number)
    with store.write(before_commit) as tx:
        insert_key(tx, key, make_version(key))
        and_then()


def fail() -> None:
    raise ZeroDivisionError


def in_thread(work: Callable[[], object]) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert failures == []


def keys(store: Store) -> list[str]:
    with store.read() as tx:
        return [key.id for key in list_keys(tx, "project", limit=1000, offset=0)]


def test_an_exception_undoes_everything_and_goes_on(store: Store) -> None:
    add(store, 1)
    before = store.last_change()
    with pytest.raises(ZeroDivisionError):
        add(store, 2, and_then=fail)
    assert keys(store) == ["key-1"]
    assert store.last_change() == before
    add(store, 2)
    assert keys(store) == ["key-1", "key-2"]


def test_before_commit_comes_last_and_can_refuse(store: Store) -> None:
    steps: list[str] = []

    def refuse() -> None:
        steps.append("before commit")
        in_thread(lambda: steps.append(f"others see {keys(store)}"))
        raise Error(UNAVAILABLE, reason="no record")

    with pytest.raises(Error, match="no record"):
        add(store, 1, before_commit=refuse, and_then=lambda: steps.append("body"))
    assert steps == ["body", "before commit", "others see []"]
    assert keys(store) == []

    add(store, 1, before_commit=lambda: steps.append("fine"))
    assert steps[-1] == "fine"
    assert keys(store) == ["key-1"]


def test_before_commit_is_not_called_after_a_failed_body(store: Store) -> None:
    called: list[bool] = []
    with pytest.raises(ZeroDivisionError):
        add(store, 1, before_commit=lambda: called.append(True), and_then=fail)
    assert called == []


def test_readers_see_one_state(store: Store) -> None:
    add(store, 1)
    with store.read() as tx:
        assert len(list_keys(tx, "project", limit=10, offset=0)) == 1
        in_thread(lambda: add(store, 2))
        assert len(list_keys(tx, "project", limit=10, offset=0)) == 1
    assert keys(store) == ["key-1", "key-2"]


def test_readers_can_not_write(store: Store) -> None:
    with pytest.raises(Error), store.read() as tx:
        insert_key(tx, make_key(), make_version(make_key()))
    assert keys(store) == []


def test_writers_are_one_at_a_time(store: Store, store_url: str) -> None:
    add(store, 1)
    limit = 10_000

    def reserve(own: Store) -> None:
        for _ in range(20):
            with own.write() as tx:
                assert reserve_usage(tx, "key-1", 1, 7, limit) == 7

    with closing(Store(store_url, seal)) as other:  # its own connections, as another process has
        threads = [threading.Thread(target=reserve, args=(each,)) for each in (store, other) * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    with store.write() as tx:  # nothing was lost: exactly the rest is left
        assert reserve_usage(tx, "key-1", 1, limit, limit) == limit - 20 * 6 * 7


def test_a_writer_that_waits_too_long_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "WAIT_SECONDS", 0.05)

    def blocked() -> None:
        with pytest.raises(Error, match="busy"), store.write():
            pass

    with store.write() as tx:
        insert_key(tx, make_key(), make_version(make_key()))
        in_thread(blocked)
    assert keys(store) == ["key-1"]


def test_the_version_changes_with_every_commit_of_any_thread(store: Store) -> None:
    seen = [store.version()]

    def look() -> None:
        seen.append(store.version())

    for number in range(1, 6):
        add(store, number)
        look()
    for number in range(6, 11):
        in_thread(lambda number=number: add(store, number))  # type: ignore[misc] # the loop's value, now
        look()
    for number in range(11, 16):
        add(store, number)
        in_thread(look)
    assert len(set(seen)) == len(seen) == 16
    assert store.version() == store.version()


def test_the_version_changes_with_commits_of_other_processes(store: Store, store_url: str) -> None:
    writer = child(
        """
store = Store(sys.argv[1], seal)
for line in sys.stdin:
    key = make_key(int(line))
    with store.write() as tx:
        insert_key(tx, key, make_version(key))
    print("done", flush=True)
""",
        store_url,
    )
    with writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        for number in range(1, 11):
            before = store.version()
            assert store.version() == before
            writer.stdin.write(f"{number}\n")
            assert writer.stdout.readline() == "done\n"
            assert store.version() != before
        writer.stdin.close()
    assert [change.id for change in store.changes(5)] == [f"key-{number}" for number in range(6, 11)]


def test_the_version_does_not_repeat_after_the_connection_was_lost(store: Store) -> None:
    seen = set()
    for number in range(1, 6):
        add(store, number)
        seen.add(store.version())
        store.close()
    assert len(seen) == 5


def test_scrubbing_waits_for_readers_and_leaves_nothing_in_the_log(
    sqlite_store: Store, sqlite_url: str
) -> None:
    log = path_of(sqlite_url).with_name(path_of(sqlite_url).name + "-wal")
    add(sqlite_store, 1)
    with sqlite_store.read() as tx:
        tx.connection.exec_driver_sql("SELECT count(*) FROM keys").all()
        add(sqlite_store, 2)
        assert not sqlite_store.scrub()
        assert log.stat().st_size > 0
    assert sqlite_store.scrub()
    assert log.stat().st_size == 0
    assert len(keys(sqlite_store)) == 2


def test_the_feed_tells_what_changed(store: Store) -> None:
    assert store.last_change() == 0
    assert store.changes(0) == []
    add(store, 1)
    with store.write() as tx:
        update_key(tx, make_key(1, state=3))
        tx.changed("other", "thing")
    first = store.changes(0)[0].seq
    assert [(change.subject, change.id) for change in store.changes(first)] == [
        ("keys", "key-1"),
        ("other", "thing"),
    ]
    assert store.changes(0)[-1] == Change(store.last_change(), "other", "thing")


def test_numbers_of_the_feed_are_not_given_twice(store: Store, store_url: str) -> None:
    add(store, 1)
    last = store.last_change()
    behind_its_back(store_url, "DELETE FROM changes")
    add(store, 2)
    assert store.last_change() > last


def test_the_feed_forgets_its_oldest_and_says_so(store: Store) -> None:
    for number in range(10):
        add(store, number)
    ids = [change.id for change in store.changes(0)]
    first, last = store.changes(0)[0].seq, store.last_change()
    with store.write() as tx:
        assert feed.surplus(tx, 4) == 6
        feed.prune(tx, 4, 2)
        assert feed.surplus(tx, 4) == 4
        feed.prune(tx, 4, 100)
        assert feed.surplus(tx, 4) == 0
        feed.prune(tx, 4, 100)
    seen = first + 5  # of which the entries behind are all there
    assert [change.id for change in store.changes(seen)] == ids[6:]
    assert [change.id for change in store.changes(last)] == []
    for since in (0, first, seen - 1):
        with pytest.raises(Forgotten):
            store.changes(since)
    with store.write() as tx:
        feed.prune(tx, 0, 100)  # the newest stays, as it numbers those to come
    assert store.last_change() == last
    add(store, 11)
    assert [change.id for change in store.changes(last)] == ["key-11"]
    assert store.last_change() > last


def test_a_refused_alias_leaves_the_transaction_usable(store: Store) -> None:
    add(store, 1)
    with store.write() as tx:
        with pytest.raises(Error) as caught:
            insert_key(tx, make_key(2, alias="alias-1"), make_version(make_key(2)))
        insert_key(tx, make_key(3), make_version(make_key(3)))
    assert caught.value.fault is ALIAS_IN_USE
    assert keys(store) == ["key-1", "key-3"]


def test_a_store_does_not_survive_a_fork(store: Store) -> None:
    add(store, 1)
    child_id = os.fork()
    if child_id == 0:
        refused = 0
        for use in (lambda: keys(store), lambda: add(store, 2), lambda: store.check()):
            try:
                use()
            except RuntimeError:
                refused += 1
        os._exit(refused)
    _, status = os.waitpid(child_id, 0)
    assert os.waitstatus_to_exitcode(status) == 3
    assert keys(store) == ["key-1"]


@pytest.mark.parametrize("answered", [1, 25])
def test_kill_9_loses_nothing_acknowledged_and_leaves_nothing_half(
    store: Store, store_url: str, answered: int
) -> None:
    writer = child(
        """
store = Store(sys.argv[1], seal)
number = 0
while True:
    number += 1
    key = make_key(number)
    with store.write() as tx:
        insert_key(tx, key, make_version(key))
    print(key.id, flush=True)
""",
        store_url,
    )
    with writer:
        assert writer.stdout is not None
        told = [writer.stdout.readline().strip() for _ in range(answered)]
        writer.kill()
        told += [line.strip() for line in writer.stdout if line.endswith("\n")]
    _nothing_is_half(store, store_url, told)


def test_kill_9_inside_a_transaction_undoes_it_and_frees_the_lock(store: Store, store_url: str) -> None:
    writer = child(
        """
store = Store(sys.argv[1], seal)
with store.write() as tx:
    insert_key(tx, make_key(1), make_version(make_key(1)))
with store.write() as tx:
    insert_key(tx, make_key(2), make_version(make_key(2)))
    print("inside", flush=True)
    sys.stdin.read()
""",
        store_url,
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "inside\n"
        writer.kill()
        writer.wait()
        add(store, 3)
    assert keys(store) == ["key-1", "key-3"]
    _nothing_is_half(store, store_url, ["key-1", "key-3"])


def _nothing_is_half(store: Store, store_url: str, told: list[str]) -> None:
    with store.read() as tx:
        found = [key.id for key in list_keys(tx, "project", limit=100_000, offset=0)]
        assert set(told) <= set(found)
        assert len(found) <= len(told) + 1  # one may have been committed and not told
        assert all(get_key(tx, key_id) and get_version(tx, key_id, 1) for key_id in found)
        # Seen in one state: a server may commit what it was sent by who is dead now.
        assert len(tx.connection.execute(select(CHANGES.c.seq)).all()) == len(found)
    if is_sqlite(store_url):
        assert behind_its_back(store_url, "PRAGMA integrity_check") == [("ok",)]
