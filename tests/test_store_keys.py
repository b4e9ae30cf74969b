"""Keys in the store: found, listed, counted, destroyed, and by indexes however many there are."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event

from hsmd.errors import ALIAS_IN_USE, STORAGE_FAILED, Error
from hsmd.store import Store, Tx
from hsmd.store.keys import (
    Key,
    count_keys,
    destroy_versions,
    due_deletions,
    get_key,
    get_key_by_alias,
    get_version,
    insert_key,
    list_keys,
    reserve_usage,
    update_key,
)
from hsmd.store.schema import COUNT_INDEX, DUE_INDEX, LIST_INDEX
from tests.stores import make_key, make_version, path_of, seal


def add(store: Store, *keys: Key) -> None:
    with store.write() as tx:
        for key in keys:
            insert_key(tx, key, make_version(key))


def change(store: Store, key: Key) -> None:
    with store.write() as tx:
        update_key(tx, key)


def test_a_key_comes_back_as_it_went(store: Store) -> None:
    odd = make_key(1, alias="Zoë 'or' 1=1 --", description="", is_default=True, deletion_date=2**40)
    add(store, odd, make_key(2))
    with store.read() as tx:
        assert get_key(tx, "key-1") == odd
        assert get_key_by_alias(tx, "project", odd.alias) == odd
        assert get_version(tx, "key-1", 1) == make_version(odd)
        assert get_key(tx, "key-3") is None
        assert get_key_by_alias(tx, "other", odd.alias) is None
        assert get_version(tx, "key-1", 2) is None


def test_a_key_can_be_replaced_whole(store: Store) -> None:
    add(store, make_key(1), make_key(2))
    new = make_key(1, alias="new", description="d", state=4, deletion_date=5, current_version=2)
    change(store, new)
    with store.read() as tx:
        assert get_key(tx, "key-1") == new
        assert get_key(tx, "key-2") == make_key(2)
    change(store, new)  # its own alias is not in use by another


def test_an_alias_belongs_to_one_living_key_of_a_project(store: Store) -> None:
    add(store, make_key(1), make_key(2), make_key(3, project_id="other", alias="alias-1"))
    taken = make_key(4, alias="alias-1")
    with pytest.raises(Error) as caught:
        add(store, taken)
    assert caught.value.fault is ALIAS_IN_USE
    with pytest.raises(Error) as caught:
        change(store, make_key(2, alias="alias-1"))
    assert caught.value.fault is ALIAS_IN_USE
    change(store, make_key(1, state=0))
    add(store, taken)
    with store.read() as tx:
        assert get_key_by_alias(tx, "project", "alias-1") == taken
        assert get_key(tx, "key-1") == make_key(1, state=0)
    with pytest.raises(Error) as caught:  # nor can the dead one come back
        change(store, make_key(1))
    assert caught.value.fault is ALIAS_IN_USE


def test_an_id_is_given_once(store: Store) -> None:
    add(store, make_key(1))
    with pytest.raises(Error) as caught:
        add(store, make_key(1, alias="another"))
    assert caught.value.fault is STORAGE_FAILED


def test_keys_are_listed_by_their_making(store: Store) -> None:
    same_time = [make_key(number, created=5) for number in (8, 6, 7)]
    add(store, *same_time, make_key(1, created=9), make_key(2, created=1), make_key(3, state=0))
    add(store, make_key(4, project_id="other"))

    def listed(**filters: Any) -> list[str]:
        with store.read() as tx:
            return [key.id for key in list_keys(tx, "project", **({"limit": 10, "offset": 0} | filters))]

    assert listed() == ["key-2", "key-6", "key-7", "key-8", "key-1"]
    assert listed(limit=2, offset=1) == ["key-6", "key-7"]
    assert listed(offset=5) == []
    change(store, replace(same_time[1], state=3))
    assert listed(state=3) == ["key-6"]
    assert listed(state=0) == []
    assert listed(spec="AES_256", state=2) == ["key-2", "key-7", "key-8", "key-1"]
    assert listed(spec="RSA_2048") == []


def test_keys_are_counted(store: Store) -> None:
    add(store, *(make_key(number, is_default=number == 1) for number in range(1, 6)))
    add(store, make_key(6, state=0), make_key(7, project_id="other"), make_key(8, state=3, spec="RSA_2048"))
    with store.read() as tx:
        assert count_keys(tx, "project") == 6
        assert count_keys(tx, "project", custom_only=True) == 5
        assert count_keys(tx, "project", state=3) == 1
        assert count_keys(tx, "project", state=2, spec="AES_256", custom_only=True) == 4
        assert count_keys(tx, "project", at_most=3) == 3
        assert count_keys(tx, "nobody") == 0


def test_due_deletions_are_those_pending_and_due(store: Store) -> None:
    add(
        store,
        make_key(1, state=4, deletion_date=200),
        make_key(2, state=4, deletion_date=100),
        make_key(3, state=4, deletion_date=201),
        make_key(4, state=0, deletion_date=100),
        make_key(5, state=3),
    )
    with store.read() as tx:
        assert due_deletions(tx, 200) == ["key-2", "key-1"]
        assert due_deletions(tx, 200, limit=1) == ["key-2"]
        assert due_deletions(tx, 99) == []


def test_destroyed_versions_keep_their_record_and_nothing_else(store: Store) -> None:
    add(store, make_key(1), make_key(2))
    with store.write() as tx:
        destroy_versions(tx, "key-1", 77)
    with store.read() as tx:
        assert get_version(tx, "key-1", 1) == replace(make_version(make_key(1)), wrapped=None, destroyed=77)
        assert get_version(tx, "key-2", 1) == make_version(make_key(2))
    assert store.changes(0)[-1].id == "key-1"
    with store.write() as tx:
        destroy_versions(tx, "key-1", 99)  # again: the time stays
    with store.read() as tx:
        version = get_version(tx, "key-1", 1)
    assert version is not None
    assert version.destroyed == 77


@pytest.mark.parametrize("size", [40, 2000, 20_000])
def test_destroyed_material_is_gone_from_the_files(sqlite_store: Store, sqlite_url: str, size: int) -> None:
    material = {number: bytes([64 + number]) * size for number in (1, 2)}
    with sqlite_store.write() as tx:
        for number, wrapped in material.items():
            insert_key(tx, make_key(number), replace(make_version(make_key(number)), wrapped=wrapped))

    def found(number: int) -> bool:
        directory = path_of(sqlite_url).parent
        # a page's worth at most stands in one piece
        return any(material[number][:1000] in path.read_bytes() for path in directory.iterdir())

    assert found(1)
    assert found(2)
    with sqlite_store.write() as tx:
        destroy_versions(tx, "key-1", 77)
    assert not found(1)
    assert found(2)


def test_usage_is_reserved_up_to_the_limit(store: Store, store_url: str) -> None:
    add(store, make_key(1), make_key(2))
    before = store.last_change()
    limit = 2**32

    def reserve(own: Store, block: int) -> int:
        with own.write() as tx:
            return reserve_usage(tx, "key-1", 1, block, limit)

    assert reserve(store, 2**31) == 2**31
    with closing(Store(store_url, seal)) as other:
        assert reserve(other, 2**31 - 10) == 2**31 - 10
    assert reserve(store, 100) == 10
    assert reserve(store, 100) == 0
    assert store.last_change() == before
    with store.write() as tx:
        assert reserve_usage(tx, "key-2", 1, 5, limit) == 5
        assert reserve_usage(tx, "key-2", 1, 5, 3) == 0  # a limit that was lowered


QUERIES: dict[str, tuple[Callable[[Tx], object], str | None]] = {
    "by id": (lambda tx: get_key(tx, "k"), None),
    "by alias": (lambda tx: get_key_by_alias(tx, "p", "a"), "uq_keys_alias"),
    "a version": (lambda tx: get_version(tx, "k", 1), None),
    "a page": (lambda tx: list_keys(tx, "p", limit=10, offset=20), LIST_INDEX.name),
    "a page of a state": (lambda tx: list_keys(tx, "p", limit=10, offset=20, state=2), LIST_INDEX.name),
    "a page of a spec": (
        lambda tx: list_keys(tx, "p", limit=9, offset=0, state=2, spec="A"),
        LIST_INDEX.name,
    ),
    "a count": (lambda tx: count_keys(tx, "p"), f"COVERING INDEX {COUNT_INDEX.name}"),
    "a quota": (
        lambda tx: count_keys(tx, "p", custom_only=True, at_most=9),
        f"COVERING INDEX {COUNT_INDEX.name}",
    ),
    "a count of a state": (
        lambda tx: count_keys(tx, "p", state=2, spec="A"),
        f"COVERING INDEX {COUNT_INDEX.name}",
    ),
    "due deletions": (lambda tx: due_deletions(tx, 1), DUE_INDEX.name),
}


@pytest.mark.parametrize("name", QUERIES)
def test_queries_find_by_an_index(sqlite_store: Store, name: str) -> None:
    query, index = QUERIES[name]
    statements: list[tuple[str, Any]] = []

    def remember(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        statements.append((statement, parameters))

    event.listen(sqlite_store._readers, "before_cursor_execute", remember)
    with sqlite_store.read() as tx:
        query(tx)
        [(statement, parameters)] = [each for each in statements if each[0].startswith("SELECT")]
        rows = tx.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    steps = [row[3] for row in rows]
    assert any(step.startswith("SEARCH key") for step in steps), steps
    assert not any("TEMP B-TREE" in step or step.startswith("SCAN key") for step in steps), steps
    if index is not None:
        assert any(index in step for step in steps), steps
