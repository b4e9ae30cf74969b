"""Identity in the store: found by id and name, each name once, nothing of one domain in another."""

from dataclasses import replace

import pytest

from hsmd.errors import STORAGE_FAILED, Error
from hsmd.store import Store
from hsmd.store.access_keys import AccessKey, get_access_key, insert_access_key
from hsmd.store.certificates import CertificateBinding, get_binding, insert_binding
from hsmd.store.identity import (
    Domain,
    Project,
    RoleAssignment,
    User,
    find_projects,
    get_domain,
    get_domain_by_name,
    get_project,
    get_user,
    get_user_by_name,
    insert_domain,
    insert_project,
    insert_role,
    insert_user,
    roles_of,
)

DOMAIN, OTHER_DOMAIN = Domain("d1", "one"), Domain("d2", "two")
PROJECT, LATER_PROJECT = Project("p1", "d1", "b"), Project("p2", "d1", "a")
OTHER_PROJECT = Project("p3", "d2", "b")
USER = User("u1", "d1", "ann", "$argon2id$...", enabled=True)
OTHER_USER = User("u2", "d2", "ann", "$argon2id$other", enabled=False)
ROLES = [RoleAssignment("u1", "p1", "A"), RoleAssignment("u1", "p1", "B"), RoleAssignment("u1", "p2", "A")]
ACCESS_KEY = AccessKey("AK1", "u1", b"\x00wrapped\xff", "hsmd-root-1", enabled=True, created=5)
DISABLED_KEY = replace(ACCESS_KEY, id="AK2", enabled=False)
BINDING = CertificateBinding("URI:spiffe://example/" + "x" * 500, "u1", "p1")


@pytest.fixture
def filled(store: Store) -> Store:
    with store.write() as tx:
        for domain in (DOMAIN, OTHER_DOMAIN):
            insert_domain(tx, domain)
        for project in (PROJECT, LATER_PROJECT, OTHER_PROJECT):
            insert_project(tx, project)
        for user in (USER, OTHER_USER):
            insert_user(tx, user)
        for role in reversed(ROLES):
            insert_role(tx, role)
        for access_key in (ACCESS_KEY, DISABLED_KEY):
            insert_access_key(tx, access_key)
        insert_binding(tx, BINDING)
    return store


def test_all_is_found_as_it_was_added(filled: Store) -> None:
    with filled.read() as tx:
        assert get_domain(tx, "d1") == get_domain_by_name(tx, "one") == DOMAIN
        assert get_project(tx, "p3") == OTHER_PROJECT
        assert find_projects(tx, "d1") == [LATER_PROJECT, PROJECT]
        assert get_user(tx, "u1") == get_user_by_name(tx, "d1", "ann") == USER
        assert get_user(tx, "u2") == get_user_by_name(tx, "d2", "ann") == OTHER_USER
        assert roles_of(tx, "u1") == ROLES
        assert get_access_key(tx, "AK1") == ACCESS_KEY
        assert get_access_key(tx, "AK2") == DISABLED_KEY
        assert get_binding(tx, BINDING.name) == BINDING


def test_what_is_not_there_is_not_found(filled: Store) -> None:
    with filled.read() as tx:
        absent = [
            get_domain(tx, "d3"),
            get_domain_by_name(tx, "ONE"),
            get_project(tx, "d1"),
            get_user(tx, ""),
            get_user_by_name(tx, "d1", "%"),
            get_access_key(tx, "ak1"),
            get_binding(tx, BINDING.name[:-1]),
        ]
        assert absent == [None] * 7
        assert find_projects(tx, "d3") == []
        assert roles_of(tx, "u2") == []


TAKEN = {
    "a domain's id": lambda tx: insert_domain(tx, Domain("d1", "three")),
    "a domain's name": lambda tx: insert_domain(tx, Domain("d3", "one")),
    "a project's name": lambda tx: insert_project(tx, Project("p4", "d1", "a")),
    "a user's name": lambda tx: insert_user(tx, replace(USER, id="u3")),
    "a role": lambda tx: insert_role(tx, ROLES[0]),
    "an access key's id": lambda tx: insert_access_key(tx, ACCESS_KEY),
    "a certificate's name": lambda tx: insert_binding(tx, replace(BINDING, project_id="p2")),
    "nobody's project": lambda tx: insert_project(tx, Project("p4", "d3", "a")),
    "nobody's role": lambda tx: insert_role(tx, RoleAssignment("u3", "p1", "A")),
    "a role nowhere": lambda tx: insert_role(tx, RoleAssignment("u1", "p4", "A")),
    "nobody's access key": lambda tx: insert_access_key(tx, replace(ACCESS_KEY, id="AK3", user_id="u3")),
    "nobody's certificate": lambda tx: insert_binding(tx, CertificateBinding("CN:x", "u3", "p1")),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_is_taken_or_hangs_in_the_air_is_refused(filled: Store, case: str) -> None:
    before = filled.last_change()
    with pytest.raises(Error) as caught, filled.write() as tx:
        TAKEN[case](tx)
    assert caught.value.fault is STORAGE_FAILED
    assert filled.last_change() == before


def test_changes_are_told(filled: Store) -> None:
    changes = filled.changes(0)
    assert {change.subject for change in changes} == {"identity", "access_keys", "certificates"}
    assert [change.id for change in changes][-3:] == ["AK1", "AK2", BINDING.name]
    of_one, of_all = ["p1", "p2", "u1", "AK1", "AK2"], ["d1", "d2", "u1", BINDING.name]
    assert [change.id for change in changes if change.domain == "d1"] == of_one
    assert [change.id for change in changes if change.domain == "d2"] == ["p3", "u2"]
    assert list(dict.fromkeys(change.id for change in changes if not change.domain)) == of_all


def test_a_user_does_not_show_the_password_hash() -> None:
    assert "argon2" not in repr(USER)
