"""Servicer of users.proto."""

from google.protobuf.empty_pb2 import Empty

from hsmd.api.convert import timestamp
from hsmd.domain import users
from hsmd.domain.core import Call
from hsmd.domain.users import Described, Profile
from hsmd.pb.v1 import users_pb2 as pb
from hsmd.pb.v1.identity_pb2 import Links

SERVICE = pb.DESCRIPTOR.services_by_name["Users"]


def create_user(call: Call, request: pb.CreateUserRequest) -> pb.CreateUserResponse:
    """IAM: POST /v3.0/OS-USER/users, POST /v3/users."""
    made = users.create(call, request.user.domain_id, _profile(request.user))
    return pb.CreateUserResponse(user=user(made))


def list_users(call: Call, request: pb.ListUsersRequest) -> pb.ListUsersResponse:
    """IAM: GET /v3/users."""
    found = users.find(
        call,
        domain_id=request.domain_id,
        name=request.name,
        enabled=request.enabled if request.HasField("enabled") else None,
        expires=request.password_expires_at,
    )
    return pb.ListUsersResponse(users=[user(each) for each in found], links=Links())


def show_user(call: Call, request: pb.ShowUserRequest) -> pb.ShowUserResponse:
    """IAM: GET /v3.0/OS-USER/users/{user_id}, GET /v3/users/{user_id}."""
    return pb.ShowUserResponse(user=user(users.show(call, request.user_id)))


def update_user(call: Call, request: pb.UpdateUserRequest) -> pb.UpdateUserResponse:
    """IAM: PUT /v3.0/OS-USER/users/{user_id}, PATCH /v3/users/{user_id}."""
    changed = users.update(call, request.user_id, request.user.domain_id, _profile(request.user))
    return pb.UpdateUserResponse(user=user(changed))


def delete_user(call: Call, request: pb.DeleteUserRequest) -> Empty:
    """IAM: DELETE /v3/users/{user_id}."""
    users.delete(call, request.user_id)
    return Empty()


def update_user_password(call: Call, request: pb.UpdateUserPasswordRequest) -> Empty:
    """IAM: POST /v3/users/{user_id}/password."""
    users.change_password(call, request.user_id, request.user.original_password, request.user.password)
    return Empty()


def update_user_information(call: Call, request: pb.UpdateUserInformationRequest) -> Empty:
    """IAM: PUT /v3.0/OS-USER/users/{user_id}/info."""
    given = request.user
    users.update_information(
        call,
        request.user_id,
        given.email if given.HasField("email") else None,
        given.mobile if given.HasField("mobile") else None,
    )
    return Empty()


def user(described: Described) -> pb.User:
    """A user as the API shows it."""
    row = described.user
    return pb.User(
        id=row.id,
        name=row.name,
        domain_id=row.domain_id,
        enabled=row.enabled,
        description=row.description or "",
        email=row.email or "",
        areacode=row.areacode or "",
        phone=row.phone or "",
        pwd_status=bool(row.password_reset),
        access_mode=row.access_mode or "default",
        xuser_id=row.xuser_id or "",
        xuser_type=row.xuser_type or "",
        is_domain_owner=described.is_owner,
        create_time=timestamp(row.created),
        update_time=timestamp(row.updated),
        modify_pwd_time=timestamp(row.password_changed),
        password_expires_at=timestamp(described.expires),
        last_login_time=timestamp(described.last_login),
        links=Links(),
    )


_GIVEN = {
    **{name: name for name in ("name", "password", "enabled", "description", "email", "areacode", "phone")},
    **{name: name for name in ("access_mode", "xuser_id", "xuser_type")},
    "pwd_status": "password_reset",
}


def _profile(given: pb.CreateUserRequest.User | pb.UpdateUserRequest.User) -> Profile:
    """What of a profile is given; what is empty and can't be told from absent is not."""
    fields = given.DESCRIPTOR.fields_by_name
    return Profile(
        **{
            ours: getattr(given, name)
            for name, ours in _GIVEN.items()
            if (given.HasField(name) if fields[name].has_presence else getattr(given, name))
        }
    )
