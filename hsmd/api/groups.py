"""Servicer of groups.proto."""

from google.protobuf.empty_pb2 import Empty

from hsmd.api.convert import timestamp
from hsmd.api.users import user
from hsmd.domain import groups
from hsmd.domain.core import Call
from hsmd.pb.v1 import groups_pb2 as pb
from hsmd.pb.v1.identity_pb2 import Links
from hsmd.store.groups import Group

SERVICE = pb.DESCRIPTOR.services_by_name["Groups"]


def create_group(call: Call, request: pb.CreateGroupRequest) -> pb.CreateGroupResponse:
    """IAM: POST /v3/groups."""
    given = request.group
    made = groups.create(call, given.domain_id, name=given.name, description=given.description)
    return pb.CreateGroupResponse(group=_group(made))


def list_groups(call: Call, request: pb.ListGroupsRequest) -> pb.ListGroupsResponse:
    """IAM: GET /v3/groups."""
    found = groups.find(call, domain_id=request.domain_id, name=request.name)
    return pb.ListGroupsResponse(groups=[_group(each) for each in found], links=Links())


def show_group(call: Call, request: pb.ShowGroupRequest) -> pb.ShowGroupResponse:
    """IAM: GET /v3/groups/{group_id}."""
    return pb.ShowGroupResponse(group=_group(groups.show(call, request.group_id)))


def update_group(call: Call, request: pb.UpdateGroupRequest) -> pb.UpdateGroupResponse:
    """IAM: PATCH /v3/groups/{group_id}."""
    given = request.group
    changed = groups.update(
        call,
        request.group_id,
        given.domain_id,
        name=given.name if given.HasField("name") else None,
        description=given.description if given.HasField("description") else None,
    )
    return pb.UpdateGroupResponse(group=_group(changed))


def delete_group(call: Call, request: pb.DeleteGroupRequest) -> Empty:
    """IAM: DELETE /v3/groups/{group_id}."""
    groups.delete(call, request.group_id)
    return Empty()


def list_users_for_group(call: Call, request: pb.ListUsersForGroupRequest) -> pb.ListUsersForGroupResponse:
    """IAM: GET /v3/groups/{group_id}/users."""
    found = groups.members(call, request.group_id)
    return pb.ListUsersForGroupResponse(users=[user(each) for each in found], links=Links())


def list_groups_for_user(call: Call, request: pb.ListGroupsForUserRequest) -> pb.ListGroupsForUserResponse:
    """IAM: GET /v3/users/{user_id}/groups."""
    found = groups.of_user(call, request.user_id)
    return pb.ListGroupsForUserResponse(groups=[_group(each) for each in found], links=Links())


def add_user_to_group(call: Call, request: pb.AddUserToGroupRequest) -> Empty:
    """IAM: PUT /v3/groups/{group_id}/users/{user_id}."""
    groups.add(call, request.group_id, request.user_id)
    return Empty()


def check_user_in_group(call: Call, request: pb.CheckUserInGroupRequest) -> Empty:
    """IAM: HEAD /v3/groups/{group_id}/users/{user_id}."""
    groups.check(call, request.group_id, request.user_id)
    return Empty()


def remove_user_from_group(call: Call, request: pb.RemoveUserFromGroupRequest) -> Empty:
    """IAM: DELETE /v3/groups/{group_id}/users/{user_id}."""
    groups.remove(call, request.group_id, request.user_id)
    return Empty()


def _group(row: Group) -> pb.Group:
    return pb.Group(
        id=row.id,
        name=row.name,
        domain_id=row.domain_id,
        description=row.description,
        create_time=timestamp(row.created),
        links=Links(),
    )
