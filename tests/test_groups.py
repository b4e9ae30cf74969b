"""Groups: made, shown, changed and removed; who is in them; what comes and goes with that."""

from typing import Any

import huaweicloudsdkiam.v3 as iam
import pytest
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

from hsmd.client import Client
from hsmd.pb.v1 import groups_pb2 as pb
from tests.calls import record, refusal, refused
from tests.people import Person, iam_client, login, name, person
from tests.stand import Stand, standing
from tests.test_sdk import checked
from tests.test_users import domain_token

LEFT_OUT = frozenset(
    {
        *("Links.previous", "Links.next", "KeystoneUserResult.last_project_id"),
        *("KeystoneUserResult.password_expires_at", "KeystoneUserResult.pwd_strength"),
    }
)


def made(client: Client, **changes: Any) -> pb.Group:
    given = {"name": name("group"), **changes}
    request = pb.CreateGroupRequest(group=pb.CreateGroupRequest.Group(**given))
    group: pb.Group = client.groups.CreateGroup(request).group
    return group


@pytest.fixture
def group(client: Client) -> pb.Group:
    return made(client)


@pytest.fixture
def ann(client: Client) -> Person:
    return person(client)


def test_the_sdk_makes_changes_and_removes_a_group(stand: Stand) -> None:
    admin = iam_client(stand)
    option = iam.KeystoneCreateGroupOption(
        name=name("Büro"), description="one", domain_id=stand.dev.domain_id
    )
    request = iam.KeystoneCreateGroupRequest(body=iam.KeystoneCreateGroupRequestBody(group=option))
    group = checked(admin.keystone_create_group(request), absent=LEFT_OUT).group
    assert (group.name, group.description, group.domain_id) == (option.name, "one", stand.dev.domain_id)
    assert group.create_time > 1_600_000_000_000
    shown = checked(
        admin.keystone_show_group(iam.KeystoneShowGroupRequest(group_id=group.id)), absent=LEFT_OUT
    ).group
    assert (shown.id, shown.create_time) == (group.id, group.create_time)
    update = iam.KeystoneUpdateGroupRequest(
        group_id=group.id,
        body=iam.KeystoneUpdateGroupRequestBody(group=iam.KeystoneUpdateGroupOption(description="two")),
    )
    changed = checked(admin.keystone_update_group(update), absent=LEFT_OUT).group
    assert (changed.name, changed.description) == (option.name, "two")
    listed = admin.keystone_list_groups(iam.KeystoneListGroupsRequest(name=option.name))
    assert [each.id for each in checked(listed, absent=LEFT_OUT).groups] == [group.id]
    gone = admin.keystone_delete_group(iam.KeystoneDeleteGroupRequest(group_id=group.id))
    assert gone.status_code == 204
    with pytest.raises(ClientRequestException) as caught:
        admin.keystone_show_group(iam.KeystoneShowGroupRequest(group_id=group.id))
    assert caught.value.status_code == 404


def test_the_sdk_puts_users_into_a_group(stand: Stand, group: pb.Group, ann: Person) -> None:
    admin = iam_client(stand)
    both = {"group_id": group.id, "user_id": ann.id}
    with pytest.raises(ClientRequestException) as caught:
        admin.keystone_check_user_in_group(iam.KeystoneCheckUserInGroupRequest(**both))
    assert caught.value.status_code == 404
    for _ in range(2):  # again changes nothing
        done = admin.keystone_add_user_to_group(iam.KeystoneAddUserToGroupRequest(**both))
        assert done.status_code == 204
    checked_ = admin.keystone_check_user_in_group(iam.KeystoneCheckUserInGroupRequest(**both))
    assert checked_.status_code == 204
    request = iam.KeystoneListUsersForGroupByAdminRequest(group_id=group.id)
    (member,) = checked(admin.keystone_list_users_for_group_by_admin(request), absent=LEFT_OUT).users
    assert (member.id, member.name) == (ann.id, ann.name)
    of_user = admin.keystone_list_groups_for_user(iam.KeystoneListGroupsForUserRequest(user_id=ann.id))
    (held,) = checked(of_user, absent=LEFT_OUT).groups
    assert held.id == group.id
    own = stand.rest("GET", f"/v3/users/{ann.id}/groups", token=login(stand, ann)).json["groups"]
    assert [each["id"] for each in own] == [group.id]
    out = admin.keystone_remove_user_from_group(iam.KeystoneRemoveUserFromGroupRequest(**both))
    assert out.status_code == 204
    with pytest.raises(ClientRequestException) as caught:
        admin.keystone_remove_user_from_group(iam.KeystoneRemoveUserFromGroupRequest(**both))
    assert caught.value.status_code == 404


def test_a_head_has_no_body(stand: Stand, group: pb.Group, ann: Person) -> None:
    answer = stand.rest("HEAD", f"/v3/groups/{group.id}/users/{ann.id}", token=domain_token(stand))
    assert (answer.status, answer.raw) == (404, b"")
    assert record(stand, answer.headers["X-Request-Id"])["result"] == "IAM.0004"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"name": ""}, "KMS.0204"),
        ({"name": " "}, "IAM.0073"),
        ({"name": "accounts "}, "IAM.0073"),
        ({"name": "a/b"}, "IAM.0073"),
        ({"name": "a" * 129}, "KMS.0308"),
        ({"description": "x" * 256}, "KMS.0308"),
        ({"domain_id": "0" * 32}, "IAM.0004"),
    ],
)
def test_bad_input(client: Client, changes: dict[str, Any], code: str) -> None:
    with refusal(code):
        made(client, **changes)


@pytest.mark.parametrize("body", [b"", b"[]", {}, {"group": None}, {"group": {"name": 7}}, {"group": {}}])
def test_bad_bodies(stand: Stand, body: object) -> None:
    refused(stand.rest("POST", "/v3/groups", body, token=domain_token(stand)), "IAM.0011")


def test_a_name_is_taken_once(client: Client, group: pb.Group, strange: Client) -> None:
    with refusal("IAM.0005"):
        made(client, name=group.name)
    assert made(strange, name=group.name).id != group.id
    other = made(client)
    request = pb.UpdateGroupRequest(group_id=other.id, group=pb.UpdateGroupRequest.Group(name=group.name))
    with refusal("IAM.0005"):
        client.groups.UpdateGroup(request)


def test_others_groups_look_like_none(client: Client, strange: Client, group: pb.Group, ann: Person) -> None:
    theirs, mine = made(strange), person(strange)
    for who, group_id, user_id in (
        (strange, group.id, mine.id),
        (strange, theirs.id, ann.id),
        (client, theirs.id, ann.id),
        (client, group.id, mine.id),
        (client, group.id, "0" * 32),
    ):
        with refusal("IAM.0004"):
            who.groups.AddUserToGroup(pb.AddUserToGroupRequest(group_id=group_id, user_id=user_id))
    for group_id in (group.id, "0" * 32):
        with refusal("IAM.0004") as seen:
            strange.groups.ShowGroup(pb.ShowGroupRequest(group_id=group_id))
        assert seen.last.message == f"Could not find group: {group_id}."
        with refusal("IAM.0004"):
            strange.groups.DeleteGroup(pb.DeleteGroupRequest(group_id=group_id))
        with refusal("IAM.0004"):
            strange.groups.ListUsersForGroup(pb.ListUsersForGroupRequest(group_id=group_id))
    assert not strange.groups.ListGroups(pb.ListGroupsRequest(domain_id=ann.domain_id)).groups
    assert group.id not in {each.id for each in strange.groups.ListGroups(pb.ListGroupsRequest()).groups}


def test_who_has_no_role_does_nothing(stand: Stand, group: pb.Group, ann: Person) -> None:
    token = login(stand, ann)
    for verb, path in (
        ("GET", "/v3/groups"),
        ("GET", f"/v3/groups/{group.id}"),
        ("DELETE", f"/v3/groups/{group.id}"),
        ("GET", f"/v3/groups/{group.id}/users"),
        ("PUT", f"/v3/groups/{group.id}/users/{ann.id}"),
        ("DELETE", f"/v3/groups/{group.id}/users/{ann.id}"),
    ):
        refused(stand.rest(verb, path, token=token), "IAM.0003")


def test_the_quota_and_a_restart(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = {"HSMD__LIMITS__GROUPS_PER_DOMAIN": "2"}  # "admin" is the first
    with standing(tmp_path_factory.mktemp("groups"), settings, gateway=False) as small:
        with small.client() as client:
            group, bob = made(client), person(client)
            with refusal("IAM.0103"):
                made(client)
            client.groups.AddUserToGroup(pb.AddUserToGroupRequest(group_id=group.id, user_id=bob.id))
        small.restart_daemon()
        with small.client() as client:
            members = client.groups.ListUsersForGroup(pb.ListUsersForGroupRequest(group_id=group.id))
            assert [each.id for each in members.users] == [bob.id]


def test_audit(stand: Stand, group: pb.Group, ann: Person) -> None:
    path = f"/v3/groups/{group.id}/users/{ann.id}"
    answer = stand.rest("PUT", path, token=domain_token(stand))
    assert answer.status == 204
    one = record(stand, answer.headers["X-Request-Id"])
    assert (one["event"], one["result"]) == ("addUserToGroup", "OK")
    assert one["resource"] == f"group/{group.id}/user/{ann.id}"
