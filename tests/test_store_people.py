"""Groups, settings and failed logins in the store: sealed where that decides; what goes with what."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from hsmd.errors import STORAGE_FAILED, Error
from hsmd.store import SealBroken, Store, Tx, groups, identity, logins, settings
from hsmd.store import access_keys as keys
from hsmd.store.access_keys import AccessKey
from hsmd.store.groups import Group, Membership
from hsmd.store.identity import Domain, Project, RoleAssignment, User
from hsmd.store.logins import Logins
from tests.stores import behind_its_back

ONE, TWO = Group("g1", "d1", "b", "first", 5), Group("g2", "d1", "a", "", 6)
ANN = User("u1", "d1", "ann", "$argon2id$...", enabled=True, password_reset=True, created=7)
BOB = User("u2", "d1", "bob", "", enabled=False)


@pytest.fixture
def filled(store: Store) -> Store:
    with store.write() as tx:
        identity.insert_domain(tx, Domain("d1", "one", owner_id="u1", enabled=True))
        identity.insert_domain(tx, Domain("d2", "two"))
        identity.insert_project(tx, Project("p1", "d1", "x", description="first"))
        for user in (ANN, BOB):
            identity.insert_user(tx, user)
        for group in (ONE, TWO):
            groups.insert_group(tx, group)
        for user in (ANN, BOB):
            groups.add_member(tx, Membership("g1", user.id))
        groups.add_member(tx, Membership("g2", "u1"))
    return store


def test_what_is_found(filled: Store) -> None:
    with filled.read() as tx:
        assert groups.find_groups(tx, "d1") == [TWO, ONE]
        assert groups.find_groups(tx, "d2") == []
        assert groups.get_group_by_name(tx, "d1", "b") == ONE
        assert groups.get_group_by_name(tx, "d2", "b") is None
        assert groups.groups_of(tx, "u1") == ["g1", "g2"]
        assert groups.members_of(tx, "g1") == [ANN, BOB]
        assert groups.is_member(tx, Membership("g2", "u1"))
        assert not groups.is_member(tx, Membership("g2", "u2"))
        assert (groups.count_groups(tx, "d1"), groups.count_groups(tx, "d2")) == (2, 0)
        assert identity.users_of(tx, "d1") == [ANN, BOB]
        assert (identity.count_users(tx, "d1"), identity.count_projects(tx, "d1")) == (2, 1)
        assert [each.name for each in identity.domains(tx)] == ["one", "two"]


def test_a_member_twice_is_one(filled: Store) -> None:
    with filled.write() as tx:
        groups.add_member(tx, Membership("g1", "u1"))
    with filled.read() as tx:
        assert groups.members_of(tx, "g1") == [ANN, BOB]


def test_a_name_once_in_a_domain(filled: Store) -> None:
    with pytest.raises(Error) as caught, filled.write() as tx:
        groups.insert_group(tx, replace(TWO, id="g3", name="b"))
    assert caught.value.fault is STORAGE_FAILED


def test_what_goes_with_a_user(filled: Store) -> None:
    with filled.write() as tx:
        identity.insert_role(tx, RoleAssignment("u1", "p1", "A"))
        keys.insert_access_key(tx, AccessKey("AK1", "u1", b"wrapped", "root", enabled=True, created=1))
        identity.delete_user(tx, "u1")
    with filled.read() as tx:
        assert identity.get_user(tx, "u1") is None
        assert groups.members_of(tx, "g1") == [BOB]
        assert keys.get_access_key(tx, "AK1") is None
        assert identity.roles_of(tx, "u1") == []


def test_what_goes_with_a_group_and_a_project(filled: Store) -> None:
    with filled.write() as tx:
        identity.insert_role(tx, RoleAssignment("u1", "p1", "A"))
        groups.delete_group(tx, "g1")
        identity.delete_project(tx, "p1")
    with filled.read() as tx:
        assert groups.get_group(tx, "g1") is None
        assert groups.groups_of(tx, "u1") == ["g2"]
        assert identity.get_project(tx, "p1") is None
        assert identity.roles_of(tx, "u1") == []
        assert identity.get_user(tx, "u1") == ANN


def test_rows_change(filled: Store) -> None:
    changed = replace(ANN, email="a@b.example", tokens_not_before=9, password_history="x\ny")
    with filled.write() as tx:
        identity.update_user(tx, changed)
        groups.update_group(tx, replace(ONE, description="other"))
        identity.update_project(tx, Project("p1", "d1", "x", enabled=False))
        identity.update_domain(tx, Domain("d2", "two", enabled=False))
    with filled.read() as tx:
        assert identity.get_user(tx, "u1") == changed
        group = groups.get_group(tx, "g1")
        project, domain = identity.get_project(tx, "p1"), identity.get_domain(tx, "d2")
    assert group is not None
    assert group.description == "other"
    assert project is not None
    assert domain is not None
    assert (project.is_enabled, domain.is_enabled) == (False, False)


@pytest.mark.parametrize(
    ("change", "look"),
    [
        (
            "UPDATE memberships SET user_id = 'u2' WHERE group_id = 'g2'",
            lambda tx: groups.groups_of(tx, "u2"),
        ),
        ("UPDATE groups SET name = 'admin' WHERE id = 'g1'", lambda tx: groups.get_group(tx, "g1")),
        ("UPDATE users SET tokens_not_before = 0 WHERE id = 'u1'", lambda tx: identity.get_user(tx, "u1")),
        ("UPDATE domains SET owner_id = 'u2' WHERE id = 'd1'", lambda tx: identity.get_domain(tx, "d1")),
    ],
)
def test_what_is_changed_behind_its_back_is_noticed(
    filled: Store, store_url: str, change: str, look: Callable[[Tx], object]
) -> None:
    behind_its_back(store_url, change)
    with filled.read() as tx, pytest.raises(SealBroken):
        look(tx)


def test_settings(filled: Store) -> None:
    with filled.write() as tx:
        assert settings.setting(tx, "d1", settings.API_ACL) is None
        settings.put_setting(tx, "d1", settings.API_ACL, "{}")
        settings.put_setting(tx, "d1", settings.LOGIN_POLICY, '{"a": 1}')
        settings.put_setting(tx, "d1", settings.API_ACL, '{"b": 2}')
    with filled.read() as tx:
        assert settings.setting(tx, "d1", settings.API_ACL) == '{"b": 2}'
        assert settings.setting(tx, "d1", settings.LOGIN_POLICY) == '{"a": 1}'
        assert settings.setting(tx, "d2", settings.API_ACL) is None


def test_logins(store: Store) -> None:
    first = Logins("c1", since=10, last=20, failures=2)
    with store.write() as tx:
        assert logins.get_logins(tx, "c1") is None
        logins.put_logins(tx, first)
        logins.put_logins(tx, replace(first, failures=3, last=30))
        logins.put_logins(tx, Logins("c2", last=5, succeeded=5))
        logins.put_logins(tx, Logins("c3", last=5, until=40))
        logins.put_logins(tx, Logins("c4", last=5))
    with store.write() as tx:
        logins.forget_failures(tx, 30)
    with store.read() as tx:
        assert logins.get_logins(tx, "c1") == replace(first, failures=3, last=30)
        assert logins.get_logins(tx, "c2") == Logins("c2", last=5, succeeded=5)
        assert logins.get_logins(tx, "c3") is not None, "it still refuses"
        assert logins.get_logins(tx, "c4") is None
    with store.write() as tx:
        logins.delete_logins(tx, "c2")
        assert logins.get_logins(tx, "c2") is None
