"""What is known of callers and keys goes when it changes: on every worker, and for nobody else's sake."""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from hsmd.caller import Caller
from hsmd.client import Client
from hsmd.config import Limits
from hsmd.domain import access, builtin, entitlements
from hsmd.domain.cache import Cache, of_none
from hsmd.domain.core import Call, Core
from hsmd.domain.identity import Identity, act, by_gateway, by_ukey, enabled_user
from hsmd.domain.permissions import NOTHING
from hsmd.errors import Error
from hsmd.hsm import Token
from hsmd.keyring import Keyring
from hsmd.pb.v1 import assignments_pb2, groups_pb2, policies_pb2
from hsmd.store import Store, Tx, agencies, groups, identity, keys, policies, settings
from hsmd.store.agencies import Agency
from hsmd.store.groups import Group, Membership
from hsmd.store.identity import Domain, Project, User
from hsmd.store.policies import Assignment, Policy
from tests.credentials import show
from tests.people import Person, login, person
from tests.policies import document, made, new_group
from tests.stand import Stand, elsewhere
from tests.stores import make_key, make_version

READER, ADMINISTRATOR = "KMS CMKReadOnlyAccess", "KMS Administrator"
NOT_THERE = "not there"


# The cache


def _kept(cache: Cache, owner: str, name: str = "x") -> bool:
    return cache.get(owner, name, lambda: None) is not None


def test_a_domain_s_change_evicts_what_may_depend_on_it() -> None:
    cache = Cache()
    for owner, domains in (("a", ["1"]), ("b", ["2"]), ("both", ["1", "2"])):
        cache.get(owner, "x", lambda: "row", lambda _row, domains=domains: domains)  # type: ignore[misc]  # mypy sees no default
    cache.get("any", "x", lambda: "row")
    cache.get("none", "x", lambda: "row", of_none)
    cache.evict_domain("1")
    assert [each for each in ("a", "b", "both", "any", "none") if _kept(cache, each)] == ["b", "none"]
    cache.evict_all()
    assert not _kept(cache, "b")
    assert not _kept(cache, "none")


def test_an_owner_goes_with_all_its_rows() -> None:
    cache = Cache()
    for name, domain in (("x", "1"), ("y", "2")):
        cache.get("a", name, lambda: "row", lambda _row, domain=domain: [domain])  # type: ignore[misc]  # mypy sees no default
    cache.evict_domain("2")
    assert not _kept(cache, "a", "x")
    assert not _kept(cache, "a", "y")


def test_what_is_evicted_while_it_is_read_is_not_kept() -> None:
    cache = Cache()

    def load() -> str:
        cache.evict_domain("1")
        return "row"

    assert cache.get("a", "x", load, lambda _: ["1"]) == "row"
    assert not _kept(cache, "a")


def test_nothing_is_left_of_who_makes_room() -> None:
    cache = Cache(capacity=3)
    for number in range(100):
        cache.get(f"owner {number}", "x", lambda: "row", lambda _: ["1", "2"])
    assert [_kept(cache, f"owner {number}") for number in (96, 97, 98, 99)] == [False, True, True, True]
    assert {len(each) for each in cache._owners.values()} == {3}
    assert len(cache._domains) == 3
    cache.evict_domain("1")
    assert not cache._owners
    assert not cache._domains


# What is known, and the store


class _NoToken(Token):
    """Nothing here asks the HSM for anything but seals, which the store of these tests makes itself."""

    def __init__(self) -> None:
        pass


@pytest.fixture
def core(sqlite_store: Store) -> Core:
    """A process with two domains: in each a user, in a group that may read in its project; and an agency."""
    with sqlite_store.write() as tx:
        for number in "12":
            domain, project, user, group = (f"{kind}{number}" for kind in "dpug")
            identity.insert_domain(tx, Domain(domain, f"domain {number}"))
            identity.insert_project(tx, Project(project, domain, "x"))
            identity.insert_user(tx, User(user, domain, "ann", "", enabled=True))
            groups.insert_group(tx, Group(group, domain, "readers", "", 1))
            groups.add_member(tx, Membership(group, user))
            _give(tx, policies.GROUP, group, project)
            policies.insert_policy(tx, _policy(number, "Allow"))
            _give(tx, policies.USER, user, project, f"policy{number}")
        agencies.insert_agency(tx, Agency("a1", "d1", "agency", "d2", "domain 2", "", "FOREVER", 1, None))
        _give(tx, policies.AGENCY, "a1", "p1")
        keys.insert_key(tx, make_key(1), make_version(make_key(1)))
    token = _NoToken()
    made = Core(sqlite_store, token, Keyring(token, 1), lambda: 1, Limits(), "region")
    made.refresh()
    return made


def _give(tx: Tx, kind: str, subject: str, project: str, role: str = builtin.BY_NAME[READER].id) -> None:
    policies.assign(tx, Assignment(kind, subject, policies.PROJECT, project, role))


def _policy(number: str, effect: str) -> Policy:
    text = document({"Effect": effect, "Action": ["kms:cmk:encrypt"]})
    return Policy(f"policy{number}", f"d{number}", "", f"policy {number}", "", "", "XA", text, 1, 1)


def _known(core: Core, number: str) -> dict[str, Any]:
    """What a process knows of a domain; the same objects for as long as nothing was evicted."""
    core.refresh()
    user = f"u{number}"
    try:
        found: Any = enabled_user(core, user)
    except Error:
        found = NOT_THERE
    return {
        "user": found,
        "held": entitlements.in_project(core, policies.USER, user, f"p{number}").held,
        "setting": core.people.get(
            f"d{number}", "s", lambda: _setting(core, number), lambda _: [f"d{number}"]
        ),
        "agency": entitlements.in_project(core, policies.AGENCY, "a1", "p1").held if number == "1" else (),
    }


def _setting(core: Core, number: str) -> str:
    with core.store.read() as tx:
        return settings.setting(tx, f"d{number}", settings.LOGIN_POLICY) or "none"


def _names(known: dict[str, Any]) -> list[str]:
    return [each.name for each in known["held"]]


def _change_user(tx: Tx) -> None:
    user = identity.get_user(tx, "u1")
    assert user is not None
    identity.update_user(tx, replace(user, enabled=False))


CHANGES: dict[str, tuple[Callable[[Tx], None], Callable[[dict[str, Any]], bool]]] = {
    "user disabled": (_change_user, lambda now: now["user"] == NOT_THERE),
    "user deleted": (lambda tx: identity.delete_user(tx, "u1"), lambda now: now["user"] == NOT_THERE),
    "out of the group": (
        lambda tx: groups.remove_member(tx, Membership("g1", "u1")),
        lambda now: _names(now) == ["policy 1"],
    ),
    "group deleted": (lambda tx: groups.delete_group(tx, "g1"), lambda now: _names(now) == ["policy 1"]),
    "role taken": (
        lambda tx: policies.unassign(tx, Assignment(policies.USER, "u1", policies.PROJECT, "p1", "policy1")),
        lambda now: _names(now) == [READER],
    ),
    "policy changed": (
        lambda tx: policies.update_policy(tx, _policy("1", "Deny")),
        lambda now: "Deny" in next(each.document for each in now["held"] if each.name == "policy 1"),
    ),
    "policy deleted": (lambda tx: policies.delete_policy(tx, "policy1"), lambda now: _names(now) == [READER]),
    "project suspended": (
        lambda tx: identity.update_project(tx, Project("p1", "d1", "x", enabled=False)),
        lambda now: now["held"] == () and now["agency"] == (),
    ),
    "the agency's role taken": (
        lambda tx: policies.unassign(
            tx, Assignment(policies.AGENCY, "a1", policies.PROJECT, "p1", builtin.BY_NAME[READER].id)
        ),
        lambda now: now["agency"] == (),
    ),
    "setting": (
        lambda tx: settings.put_setting(tx, "d1", settings.LOGIN_POLICY, "{}"),
        lambda now: now["setting"] == "{}",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_counts_in_its_domain_and_costs_no_other_one_anything(core: Core, case: str) -> None:
    change, has_come = CHANGES[case]
    before, theirs = _known(core, "1"), _known(core, "2")
    assert not has_come(before)
    key = core.cache.get("key-1", "key", lambda: "a row")
    with core.store.write() as tx:
        change(tx)
    now = _known(core, "2")
    assert all(now[each] is theirs[each] for each in ("user", "held"))
    assert core.cache.get("key-1", "key", lambda: "another") is key
    assert has_come(_known(core, "1"))


def test_what_concerns_all_evicts_all(core: Core) -> None:
    theirs = _known(core, "2")
    with core.store.write() as tx:
        identity.update_domain(tx, Domain("d1", "domain 1", enabled=False))
    now = _known(core, "2")
    assert now["held"] is not theirs["held"]
    assert now["held"] == theirs["held"]
    assert _known(core, "1")["user"] == NOT_THERE


def test_nothing_is_kept_of_what_is_made_up(core: Core) -> None:
    """Anybody can name projects, users and keys that there are not: that costs no memory."""
    user = enabled_user(core, "u1")
    call = Call(core, Caller("anonymous"), lambda: None)
    act(call, Identity("token", user), "")
    before = {name: dict(cache._rows) for name, cache in (("people", core.people), ("keys", core.cache))}
    for number in range(300):
        made_up = f"{number:032x}"
        with pytest.raises(Error):
            act(call, Identity("access-key", user), made_up)
        with pytest.raises(Error):
            enabled_user(core, made_up)
        assert entitlements.project_name(core, made_up) == ""
        assert entitlements.domain_name(core, made_up) == ""
        caller = Caller("token", "u1", "ann", "d1", "p1", frozenset([READER]))
        for reference in (str(uuid.UUID(made_up)), f"alias/{made_up}"):
            with pytest.raises(Error):
                access.key(Call(core, caller, lambda: None), reference)
    assert {"people": core.people._rows, "keys": core.cache._rows} == before


def test_who_acts_next_has_nothing_of_who_acted_before(core: Core) -> None:
    user = Identity("certificate", enabled_user(core, "u1"))
    call = Call(core, Caller("anonymous"), lambda: None)
    for who in (by_ukey("k1", "eve", "auditor"), by_gateway("CN:gateway")):
        act(call, user, "p1")
        assert READER in call.permissions.names == call.caller.roles
        act(call, who, "")
        assert call.permissions is NOTHING
        assert READER not in call.caller.roles


# On every worker, while another tenant writes


@pytest.fixture(scope="module")
def busy(strange: Client) -> Iterator[None]:
    """Another domain makes groups all the time."""
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            group = new_group(strange)
            strange.groups.DeleteGroup(groups_pb2.DeleteGroupRequest(group_id=group))

    thread = threading.Thread(target=write)
    thread.start()
    yield
    stop.set()
    thread.join(60)


def _statuses(stand: Stand, token: str) -> set[int]:
    return {stand.kms("list-keys", {}, token=token, source=elsewhere()).status for _ in range(8)}


@contextmanager
def _comes_in(stand: Stand, ann: Person) -> Iterator[str]:
    """A token of hers that every worker knows, and that none takes after the block."""
    token = login(stand, ann, {"project": {"id": stand.dev.project_id}})
    assert _statuses(stand, token) == {200}
    yield token
    assert 200 not in _statuses(stand, token)


@pytest.mark.usefixtures("busy")
def test_what_is_revoked_is_so_for_the_next_call(stand: Stand, client: Client) -> None:
    project, role = stand.dev.project_id, builtin.BY_NAME[ADMINISTRATOR].id
    ann, team, other = person(client), new_group(client), new_group(client)
    policy = made(client, {"Effect": "Allow", "Action": ["kms:cmk:list"]})

    def give(group: str, role_id: str = role) -> Any:
        return assignments_pb2.GroupRoleRequest(project_id=project, group_id=group, role_id=role_id)

    member = {each: groups_pb2.AddUserToGroupRequest(group_id=each, user_id=ann.id) for each in (team, other)}
    client.assignments.GrantRoleToGroupOnProject(give(team))
    client.assignments.GrantRoleToGroupOnProject(give(other, policy.id))
    client.groups.AddUserToGroup(member[team])
    with _comes_in(stand, ann):
        gone = groups_pb2.RemoveUserFromGroupRequest(group_id=team, user_id=ann.id)
        client.groups.RemoveUserFromGroup(gone)
    client.groups.AddUserToGroup(member[team])
    with _comes_in(stand, ann):
        client.assignments.RevokeRoleFromGroupOnProject(give(team))
    client.groups.AddUserToGroup(member[other])
    with _comes_in(stand, ann):
        text = document({"Effect": "Deny", "Action": ["kms:cmk:list"]})
        change = policies_pb2.UpdatePolicyRequest.Role(policy=text)
        client.policies.UpdatePolicy(policies_pb2.UpdatePolicyRequest(role_id=policy.id, role=change))
    client.groups.DeleteGroup(groups_pb2.DeleteGroupRequest(group_id=other))
    client.assignments.GrantRoleToGroupOnProject(give(team))
    with _comes_in(stand, ann) as token:
        assert show(stand, token, verb="DELETE").status == 204
    with _comes_in(stand, ann):
        client.groups.DeleteGroup(groups_pb2.DeleteGroupRequest(group_id=team))
