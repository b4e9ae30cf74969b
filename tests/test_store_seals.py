"""Sealed rows: whatever is changed in the store behind our back is refused and named."""

# ruff: noqa: S608 # the SQL here is put together from our own tables' names

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Table

from hsmd.store import (
    SealBroken,
    Store,
    Tx,
    access_keys,
    access_points,
    agencies,
    aliases,
    certificates,
    grants,
    groups,
    identity,
    key_policies,
    keys,
    keystores,
    limits,
    policies,
    proposals,
    replicas,
    revocations,
    service_settings,
    settings,
    tags,
    ukeys,
)
from hsmd.store.schema import METADATA, Blob
from hsmd.store.seals import Sealed, Value, canonical
from tests.stores import behind_its_back, is_sqlite, make_key, make_version, seal

values = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.binary())
contents = st.dictionaries(st.text(), values)

MODULES = (identity, groups, settings, limits, access_keys, certificates, agencies, revocations)
AFTER_KEYS = (keystores, replicas, access_points, key_policies)
DECIDING = (service_settings, ukeys, proposals)
SEALED: dict[str, Sealed[Any]] = {
    each.table.name: each
    for module in (*MODULES, policies, keys, aliases, tags, grants, *AFTER_KEYS, *DECIDING)
    for each in vars(module).values()
    if isinstance(each, Sealed)
}


def decoded(data: bytes) -> tuple[str, dict[str, tuple[bytes, bytes]]]:
    """What `canonical` wrote, read from the bytes alone: so it can be read in one way only."""
    parts = []
    while data:
        size = int.from_bytes(data[:4], "big")
        assert len(data) >= 4 + size
        parts.append(data[4 : 4 + size])
        data = data[4 + size :]
    _, table, *rest = parts
    names = [part.decode() for part in rest[0::3]]
    assert names == sorted(set(names))
    return table.decode(), dict(zip(names, zip(rest[1::3], rest[2::3], strict=True), strict=True))


def said(value: bool | int | str | bytes) -> tuple[bytes, bytes]:
    if isinstance(value, bool):
        return b"?", b"1" if value else b"0"
    if isinstance(value, int):
        return b"i", str(value).encode()
    return (b"s", value.encode()) if isinstance(value, str) else (b"b", value)


@given(st.text(), contents)
def test_the_encoding_says_everything(table: str, content: dict[str, Value]) -> None:
    expected = {name: said(value) for name, value in content.items() if value is not None}
    assert decoded(canonical(table, content)) == (table, expected)


@given(st.text(), contents, st.text(), contents)
def test_different_rows_have_different_encodings(
    table: str, content: dict[str, Value], other_table: str, other: dict[str, Value]
) -> None:
    def typed(row: dict[str, Value]) -> dict[str, tuple[type, Value]]:
        return {name: (type(value), value) for name, value in row.items() if value is not None}

    same = table == other_table and typed(content) == typed(other)
    assert (canonical(table, content) == canonical(other_table, other)) == same


def test_the_format_stays_as_it_is() -> None:
    # Rows of users are sealed so. This vector may not change without the rule in `canonical`.
    encoded = canonical("t", {"b": b"\x00", "a": -1, "n": None, "c": "é", "d": True})
    assert encoded.hex() == (
        "0000000b" + b"hsmd seal 1".hex() + "0000000174"
        "0000000161"
        "0000000169"
        "000000022d31"
        "0000000162"
        "0000000162"
        "0000000100"
        "0000000163"
        "0000000173"
        "00000002c3a9"
        "0000000164"
        "000000013f"
        "0000000131"
    )


def test_every_table_with_a_seal_is_tried_here() -> None:
    assert set(SEALED) == {table.name for table in METADATA.tables.values() if "seal" in table.c}


@pytest.fixture
def filled(store: Store) -> Store:
    """Two rows in every sealed table."""
    with store.write() as tx:
        for number in (1, 2):
            identity.insert_domain(tx, identity.Domain(f"d{number}", f"domain {number}"))
            identity.insert_project(tx, identity.Project(f"p{number}", "d1", f"project {number}"))
            user = identity.User(f"u{number}", "d1", f"user {number}", f"hash {number}", enabled=True)
            identity.insert_user(tx, user)
            identity.insert_role(tx, identity.RoleAssignment(f"u{number}", "p1", "KMS Administrator"))
            _fill_identity(tx, number)
            key = make_key(number)
            keys.insert_key(tx, key, make_version(key))
            aliases.insert_alias(tx, aliases.Alias("p1", f"other {number}", "d1", key.id, number, number))
            tags.put_tag(tx, tags.Tag(key.id, f"tag {number}", f"value {number}", "p1"))
            grant = grants.Grant(
                f"g{number}",
                key.id,
                "p1",
                f"grant {number}",
                "u1",
                "user",
                "u2",
                "u1",
                "encrypt-data",
                number,
            )
            grants.insert_grant(tx, grant)
            _fill_places(tx, number, key.id)
            _fill_deciding(tx, number)
    return store


def _fill_places(tx: Tx, number: int, key_id: str) -> None:
    """Where else keys live, and what keyspaces have."""
    keystores.insert_keystore(
        tx,
        keystores.Keystore(f"k{number}", "d1", f"keystore {number}", f"c{number}", enabled=True, created=1),
    )
    keystores.insert_draft(tx, keystores.Draft(f"draft{number}", f"k{number}", 1))
    replicas.put_replica(tx, replicas.Replica(key_id, "west", "current", 1, 2, 1, 3))
    created, updated, on = 1, 2, True
    point = access_points.AccessPoint(
        f"x{number}", "p1", "d1", "s", f"point {number}", 3, "i", "c", "text", on, "u1", created, updated
    )
    access_points.insert(tx, point)
    policy = key_policies.KeyPolicy(
        f"y{number}", "p1", "d1", "s", f"policy {number}", "{}", "text", "u1", 1, 2
    )
    key_policies.insert(tx, policy)


def _fill_deciding(tx: Tx, number: int) -> None:
    """UKeys and what they decide; both keep a setting of the service, which makes two."""
    ukeys.insert_ukey(
        tx,
        ukeys.UKey(
            f"uk{number}", f"ukey {number}", "operator", "s", f"f{number}", b"key", b"cert", "ecdh", 1, "x"
        ),
    )
    proposals.insert_proposal(
        tx, proposals.Proposal(f"pr{number}", "enrol-ukey", "{}", "{}", "uk1", 1, 2, proposals.OPEN)
    )
    proposals.insert_approval(tx, proposals.Approval(f"pr{number}", "uk1", b"signature", number))


def _fill_identity(tx: Tx, number: int) -> None:
    """What belongs to domains, projects and users."""
    access_key = access_keys.AccessKey(f"a{number}", "u1", b"%d" % number, "rk", enabled=True, created=1)
    access_keys.insert_access_key(tx, access_key)
    certificates.insert_binding(tx, certificates.CertificateBinding(f"CN:{number}", "u1", "p1"))
    certificates.insert_pattern(tx, certificates.CertificatePattern(f"CN:{number}-*", "u1", "p1"))
    agency = agencies.Agency(f"ag{number}", "d1", f"agency {number}", "d2", "d 2", "text", "24", number)
    agencies.insert_agency(tx, agency)
    revocations.put_revocation(tx, revocations.Revocation(f"t{number}", number), 0, "d1")
    groups.insert_group(tx, groups.Group(f"g{number}", "d1", f"group {number}", "text", number))
    groups.add_member(tx, groups.Membership(f"g{number}", "u1"))
    settings.put_setting(tx, "d1", f"setting {number}", "{}")
    limits.put_limit(tx, limits.ProjectLimit("p1", f"limit {number}", number))
    policy = policies.Policy(
        f"po{number}", "d1", "custom", f"policy {number}", "text", "also", "XA", "{}", number, number
    )
    policies.insert_policy(tx, policy)
    policies.assign(tx, policies.Assignment("user", "u1", "project", "p1", f"role {number}"))


def rows(store: Store, sealed: Sealed[Any]) -> list[Any]:
    with store.read() as tx:
        return sealed.many(tx, sealed.where().order_by(*sealed.table.primary_key))


def identifier(table: Table, record: Any) -> str:
    return "/".join(str(getattr(record, column.name)) for column in table.primary_key)


def changed(value: Any, column: Any) -> list[Any]:
    """Other values of the same type, and NULL where the table lets it."""
    if value is None:
        return [b"new"] if isinstance(column.type, Blob) else ["new" if column.type.python_type is str else 7]
    nothing = [None] if column.nullable else []
    if isinstance(value, bool):
        return [int(not value), 2, *nothing]
    if isinstance(value, int):
        return [value + 1, -value, 1 << 20, *nothing]
    if isinstance(value, bytes):
        return [value[:-1], value + b"\0", bytes([value[0] ^ 1]) + value[1:], b"", *nothing]
    return [value + " ", value.swapcase(), value[:-1], "", *nothing]


def each_table(store: Store, url: str, check: Callable[[Store, str, str], None]) -> None:
    """Check all sealed tables in one store, since that costs more to make than the checks do."""
    for name in SEALED:
        try:
            check(store, url, name)
        except BaseException as error:
            error.add_note(f"table {name}")
            raise


def test_any_change_of_any_column_is_refused(filled: Store, store_url: str) -> None:
    each_table(filled, store_url, _change_columns)


def _change_columns(filled: Store, store_url: str, name: str) -> None:
    sealed = SEALED[name]
    table = sealed.table
    first = rows(filled, sealed)[0]
    where = " AND ".join(f"{column.name} = ?" for column in table.primary_key)
    before = [getattr(first, column.name) for column in table.primary_key]
    tried = 0
    for field in fields(first):
        old = getattr(first, field.name)
        for new in changed(old, table.c[field.name]):
            if new == old:
                continue
            behind_its_back(store_url, f"UPDATE {name} SET {field.name} = ? WHERE {where}", new, *before)
            moved = [
                new if column.name == field.name else getattr(first, column.name)
                for column in table.primary_key
            ]
            with pytest.raises(SealBroken) as caught:
                rows(filled, sealed)
            assert (caught.value.table, caught.value.id) == (name, "/".join(map(str, moved)))
            stored = int(old) if isinstance(old, bool) else old
            behind_its_back(store_url, f"UPDATE {name} SET {field.name} = ? WHERE {where}", stored, *moved)
            assert rows(filled, sealed)[0] == first
            tried += 1
    assert tried >= sum(1 if getattr(first, field.name) is None else 2 for field in fields(first))


def test_any_change_of_a_seal_is_refused(filled: Store, store_url: str) -> None:
    each_table(filled, store_url, _change_seal)


def _change_seal(filled: Store, store_url: str, name: str) -> None:
    [[right]] = behind_its_back(store_url, f"SELECT seal FROM {name} ORDER BY 1 LIMIT 1")
    for wrong in (bytes([right[0] ^ 1]) + right[1:], right[:-1] + bytes([right[-1] ^ 128]), right[:-1], b""):
        behind_its_back(store_url, f"UPDATE {name} SET seal = ? WHERE seal = ?", wrong, right)
        with pytest.raises(SealBroken, match=name):
            rows(filled, SEALED[name])
        behind_its_back(store_url, f"UPDATE {name} SET seal = ? WHERE seal = ?", right, wrong)
    assert len(rows(filled, SEALED[name])) == 2


def test_swapped_seals_and_swapped_rows_are_refused(filled: Store, store_url: str) -> None:
    each_table(filled, store_url, _swap)


def _swap(filled: Store, store_url: str, name: str) -> None:
    table = SEALED[name].table
    first, second = rows(filled, SEALED[name])
    where = " AND ".join(f"{column.name} = ?" for column in table.primary_key)
    at = {
        number: [getattr(row, column.name) for column in table.primary_key]
        for number, row in ((1, first), (2, second))
    }
    seals = {
        number: behind_its_back(store_url, f"SELECT seal FROM {name} WHERE {where}", *at[number])[0][0]
        for number in (1, 2)
    }
    behind_its_back(store_url, f"UPDATE {name} SET seal = ? WHERE {where}", seals[2], *at[1])
    behind_its_back(store_url, f"UPDATE {name} SET seal = ? WHERE {where}", seals[1], *at[2])
    with pytest.raises(SealBroken, match=name):
        rows(filled, SEALED[name])

    # the second row's content and seal under the first row's name
    content = {key: value for key, value in asdict(second).items() if key not in table.primary_key.columns}
    stored = [int(value) if isinstance(value, bool) else value for value in content.values()]
    behind_its_back(store_url, f"DELETE FROM {name} WHERE {where}", *at[2])
    sets = ", ".join(f"{key} = ?" for key in (*content, "seal"))
    behind_its_back(store_url, f"UPDATE {name} SET {sets} WHERE {where}", *stored, seals[2], *at[1])
    with pytest.raises(SealBroken) as caught:
        rows(filled, SEALED[name])
    assert caught.value.id == identifier(table, first)


# SQLite keeps a value of any type in any column
TYPES = {
    "text in a blob": "UPDATE key_versions SET wrapped = CAST(wrapped AS TEXT)",
    "a number in a blob": "UPDATE key_versions SET wrapped = 5",
    "a real number in a blob": "UPDATE key_versions SET wrapped = 0.5",
    "a blob in text": "UPDATE key_versions SET algorithm = CAST(algorithm AS BLOB)",
    "no UTF-8 in text": "UPDATE key_versions SET algorithm = CAST(x'ff41' AS TEXT)",
    "an end in text": "UPDATE key_versions SET algorithm = algorithm || char(0)",
    "a blob in a number": "UPDATE key_versions SET created = CAST(created AS BLOB)",
    "a real number": "UPDATE key_versions SET created = created + 0.5",
    "text for a seal": "UPDATE key_versions SET seal = 'seal'",
    "a number for a seal": "UPDATE key_versions SET seal = 5",
}


@pytest.mark.parametrize("change", TYPES)
def test_a_value_of_another_type_is_refused(sqlite_store: Store, sqlite_url: str, change: str) -> None:
    with sqlite_store.write() as tx:
        keys.insert_key(tx, make_key(), make_version(make_key()))
    behind_its_back(sqlite_url, TYPES[change])
    with sqlite_store.read() as tx, pytest.raises(SealBroken) as caught:
        keys.get_version(tx, "key-1", 1)
    assert (caught.value.table, caught.value.id) == ("key_versions", "key-1/1")


def test_another_sealing_key_fits_nothing(filled: Store, store_url: str) -> None:
    with closing(Store(store_url, lambda content: seal(b"other" + content))) as other:
        for sealed in SEALED.values():
            with pytest.raises(SealBroken):
                rows(other, sealed)


def test_a_removed_row_is_named_when_it_is_changed(filled: Store, store_url: str) -> None:
    with filled.read() as tx:
        key = keys.get_key(tx, "key-1")
    assert key is not None
    behind_its_back(store_url, "DELETE FROM keys WHERE id = 'key-1'")
    with pytest.raises(SealBroken, match="key-1"), filled.write() as tx:
        keys.update_key(tx, key)
    behind_its_back(store_url, "DELETE FROM key_usage WHERE key_id = 'key-2'")
    with pytest.raises(SealBroken, match="key-2/1"), filled.write() as tx:
        keys.reserve_usage(tx, "key-2", 1, 10, 100)


def test_a_broken_row_spoils_no_other(filled: Store, store_url: str) -> None:
    behind_its_back(store_url, "UPDATE keys SET state = 4 WHERE id = 'key-1'")
    with filled.read() as tx:
        with pytest.raises(SealBroken):
            keys.get_key(tx, "key-1")
        assert keys.get_key(tx, "key-2") == make_key(2)


def test_a_refusal_that_is_kept_holds_no_old_state(filled: Store, store_url: str) -> None:
    [[right]] = behind_its_back(store_url, "SELECT seal FROM keys WHERE id = 'key-1'")
    behind_its_back(store_url, "UPDATE keys SET seal = ? WHERE id = 'key-1'", b"wrong")
    with pytest.raises(SealBroken) as kept:
        rows(filled, SEALED["keys"])
    behind_its_back(store_url, "UPDATE keys SET seal = ? WHERE id = 'key-1'", right)
    assert [key.id for key in rows(filled, SEALED["keys"])] == ["key-1", "key-2"]
    assert kept.value.id == "key-1"


def test_without_a_seal_no_sealed_row_is_read_or_written(filled: Store, store_url: str) -> None:
    with closing(Store(store_url, None)) as unsealed:
        with pytest.raises(RuntimeError), unsealed.read() as tx:
            keys.get_key(tx, "key-1")
        with pytest.raises(RuntimeError), unsealed.write() as tx:
            keys.insert_key(tx, make_key(3), make_version(make_key(3)))
        assert unsealed.last_change() == filled.last_change()
        unsealed.seal = seal
        with unsealed.read() as tx:
            assert keys.get_key(tx, "key-1") == make_key(1)


def test_the_rows_are_what_was_written(filled: Store, store_url: str) -> None:
    stored = behind_its_back(store_url, "SELECT enabled FROM users")
    assert stored == [(1,), (1,)]
    assert is_sqlite(store_url) or len(rows(filled, SEALED["users"])) == 2
    assert rows(filled, SEALED["key_usage"])[0] == keys.KeyUsage("key-1", 1, 0)
