"""Aliases and tags in the store: kept whole, sealed, found by indexes."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event

from hsmd.errors import ALIAS_IN_USE, Error
from hsmd.store import SealBroken, Store, Tx, aliases, keys, tags
from hsmd.store.aliases import Alias
from hsmd.store.tags import Tag, Wanted
from tests.stores import behind_its_back, make_key, make_version


def alias(name: str, key: str = "key-1", project: str = "project") -> Alias:
    return Alias(project, name, "domain", key, created=5, updated=6)


def tag(name: str, value: str = "", key: str = "key-1", project: str = "project") -> Tag:
    return Tag(key, name, value, project)


@pytest.fixture
def store(store: Store) -> Store:
    """Three keys with names and tags."""
    with store.write() as tx:
        for number in (1, 2, 3):
            key = make_key(number)
            keys.insert_key(tx, key, make_version(key))
        for each in (alias("b"), alias("a"), alias("c", "key-2")):
            aliases.insert_alias(tx, each)
        for row in (tag("x", "1"), tag("y", "2"), tag("x", "3", "key-2")):
            tags.put_tag(tx, row)
    return store


def test_names_resolve_to_keys(store: Store) -> None:
    with store.read() as tx:
        assert aliases.resolve(tx, "project", "a") == make_key(1)
        assert aliases.resolve(tx, "project", "alias-2") == make_key(2)
        assert aliases.resolve(tx, "other", "a") is None
        assert aliases.get_alias(tx, "project", "c") == alias("c", "key-2")
        assert aliases.get_alias(tx, "project", "alias-1") is None
        assert [row.alias for row in aliases.list_aliases(tx, "project", limit=9)] == ["a", "b", "c"]
        assert [row.alias for row in aliases.list_aliases(tx, "project", limit=1, after="a")] == ["b"]
        of_key = aliases.list_aliases(tx, "project", limit=9, after="a", key_id="key-1")
        assert [row.alias for row in of_key] == ["b"]
        assert [aliases.count_aliases(tx, f"key-{number}") for number in (1, 2, 3)] == [2, 1, 0]


@pytest.mark.parametrize("name", ["a", "alias-3"])
def test_a_name_is_given_once(store: Store, name: str) -> None:
    with pytest.raises(Error) as caught, store.write() as tx:
        aliases.insert_alias(tx, alias(name, "key-3"))
    assert caught.value.fault is ALIAS_IN_USE
    with pytest.raises(Error) as caught, store.write() as tx:
        keys.update_key(tx, make_key(3, alias="a"))
    assert caught.value.fault is ALIAS_IN_USE
    with store.write() as tx:
        key = make_key(4, alias="a", project_id="other")
        keys.insert_key(tx, key, make_version(key))


def test_the_feed_tells_of_names(store: Store) -> None:
    def told(change: Callable[[Tx], None]) -> list[tuple[str, str]]:
        before = store.last_change()
        with store.write() as tx:
            change(tx)
        return [(each.subject, each.id) for each in store.changes(before)]

    assert told(lambda tx: aliases.insert_alias(tx, alias("d"))) == [("aliases", "project/d")]
    assert told(lambda tx: aliases.update_alias(tx, alias("d", "key-2"))) == [("aliases", "project/d")]
    assert told(lambda tx: aliases.delete_alias(tx, alias("d", "key-2"))) == [("aliases", "project/d")]
    assert sorted(told(lambda tx: aliases.release(tx, make_key(1)))) == [
        ("aliases", f"project/{name}") for name in ("a", "alias-1", "b")
    ]
    assert told(lambda tx: tags.put_tag(tx, tag("z"))) == [("keys", "key-1")]
    with store.read() as tx:
        assert aliases.list_aliases(tx, "project", limit=9) == [alias("c", "key-2")]


def test_a_changed_row_is_refused(store: Store, store_url: str) -> None:
    behind_its_back(store_url, "UPDATE aliases SET key_id = 'key-3' WHERE alias = 'a'")
    behind_its_back(store_url, "UPDATE tags SET value = 'other' WHERE key_id = 'key-1' AND name = 'x'")
    with store.read() as tx:
        for look in (
            lambda: aliases.resolve(tx, "project", "a"),
            lambda: aliases.list_aliases(tx, "project", limit=9),
            lambda: tags.tags_of(tx, "key-1"),
            lambda: tags.tags_of_keys(tx, ["key-1"]),
        ):
            with pytest.raises(SealBroken):
                look()


def test_tags_of_many_keys(store: Store) -> None:
    with store.write() as tx:
        tags.put_tag(tx, tag("x", "new"))
        tags.put_tag(tx, tag("a", "", "key-2"))
    with store.read() as tx:
        assert tags.tags_of(tx, "key-1") == [tag("x", "new"), tag("y", "2")]
        assert tags.tags_of_keys(tx, ["key-1", "key-2", "key-3"]) == {
            "key-1": [tag("x", "new"), tag("y", "2")],
            "key-2": [tag("a", "", "key-2"), tag("x", "3", "key-2")],
        }
        assert tags.tags_of_keys(tx, []) == {}
        assert tags.values_by_name(tx, "project") == {"a": [""], "x": ["3", "new"], "y": ["2"]}
        assert tags.values_by_name(tx, "other") == {}
    with store.write() as tx:
        tags.delete_tag(tx, "key-1", "absent")
        tags.release(tx, "key-1")
    with store.read() as tx:
        assert tags.tags_of(tx, "key-1") == []
        assert len(tags.tags_of(tx, "key-2")) == 2


def test_tombstones_are_not_found(store: Store) -> None:
    def found(wanted: Wanted) -> list[str]:
        with store.read() as tx:
            page = tags.find_keys(tx, "project", wanted, limit=9, offset=0)
            assert tags.count_keys(tx, "project", wanted) == len(page)
            return [key.id for key in page]

    assert found(Wanted({"x": []})) == ["key-1", "key-2"]
    assert found(Wanted({"x": ["1", "2"], "y": []})) == ["key-1"]
    assert found(Wanted({}, "IAS-3")) == ["key-3"]
    assert found(Wanted({}, "ias_3")) == []
    with store.write() as tx:
        keys.update_key(tx, make_key(1, state=0))
    assert found(Wanted({"x": []})) == ["key-2"]
    assert found(Wanted({})) == ["key-2", "key-3"]


QUERIES: dict[str, tuple[Callable[[Tx], object], str]] = {
    "an alias": (lambda tx: aliases.get_alias(tx, "p", "a"), "sqlite_autoindex_aliases_1"),
    "a page of aliases": (
        lambda tx: aliases.list_aliases(tx, "p", limit=9, after="a"),
        "sqlite_autoindex_aliases_1",
    ),
    "a key's aliases": (
        lambda tx: aliases.list_aliases(tx, "p", limit=9, key_id="k"),
        "ix_aliases_key_id",
    ),
    "how many aliases": (lambda tx: aliases.count_aliases(tx, "k"), "ix_aliases_key_id"),
    "a key's tags": (lambda tx: tags.tags_of(tx, "k"), "sqlite_autoindex_tags_1"),
    "many keys' tags": (lambda tx: tags.tags_of_keys(tx, ["k", "l"]), "sqlite_autoindex_tags_1"),
    "all tags": (lambda tx: tags.values_by_name(tx, "p"), "COVERING INDEX ix_tags_find"),
    "keys by tags": (
        lambda tx: tags.find_keys(tx, "p", Wanted({"a": ["v", "w"], "b": []}), limit=9, offset=9),
        "ix_tags_find",
    ),
    "keys by name": (
        lambda tx: tags.find_keys(tx, "p", Wanted({}, "part"), limit=9, offset=9),
        "ix_keys_list",
    ),
    "how many by tags": (lambda tx: tags.count_keys(tx, "p", Wanted({"a": ["v"]})), "ix_tags_find"),
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
    assert any(index in step for step in steps), steps
    assert not any(step.startswith("SCAN") for step in steps), steps
