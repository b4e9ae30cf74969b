"""Groups of users, which are given the same roles. One of another domain looks like one that is not there."""

import re
import uuid
from dataclasses import replace

from hsmd.domain import operators, users
from hsmd.domain.core import Call
from hsmd.domain.users import Described
from hsmd.errors import IAM_EXISTS, IAM_INPUT_INVALID, IAM_NOT_FOUND, IAM_QUOTA_EXCEEDED, Error
from hsmd.store import Tx, policies
from hsmd.store import groups as rows
from hsmd.store.groups import Group, Membership

_NAME = re.compile(r"[\w -]{1,128}")


def create(call: Call, domain_id: str, *, name: str, description: str) -> Group:
    """A group of the caller's domain, without users and roles.

    Raises Error(IAM_INPUT_INVALID, IAM_EXISTS, IAM_QUOTA_EXCEEDED). IAM: POST /v3/groups.
    """
    users.check_domain(call, domain_id)
    _check_name(name)
    group = Group(uuid.uuid4().hex, call.caller.domain_id, name, description, call.core.clock())
    call.resource = f"group/{group.id}"
    with call.change() as tx:
        quota = call.core.limits.groups_per_domain
        if rows.count_groups(tx, group.domain_id) >= quota:
            raise Error(IAM_QUOTA_EXCEEDED, quota=quota, kind="groups")
        _check_free(tx, group.domain_id, name)
        rows.insert_group(tx, group)
    return group


def show(call: Call, group_id: str) -> Group:
    """One group. IAM: GET /v3/groups/{group_id}."""
    with call.read() as tx:
        return existing(call, tx, group_id)


def find(call: Call, *, domain_id: str = "", name: str = "") -> list[Group]:
    """The domain's groups that fit, by name. IAM: GET /v3/groups."""
    if domain_id not in ("", call.caller.domain_id):
        return []
    with call.read() as tx:
        found = rows.find_groups(tx, call.caller.domain_id)
    return [each for each in found if name in ("", each.name)]


def update(
    call: Call, group_id: str, domain_id: str, *, name: str | None = None, description: str | None = None
) -> Group:
    """Change what is given. IAM: PATCH /v3/groups/{group_id}."""
    call.resource = f"group/{group_id}"
    users.check_domain(call, domain_id)
    with call.change() as tx:
        group = existing(call, tx, group_id)
        if name is not None and name != group.name:
            _check_name(name)
            _check_free(tx, group.domain_id, name)
            group = replace(group, name=name)
        if description is not None:
            group = replace(group, description=description)
        rows.update_group(tx, group)
    return group


def delete(call: Call, group_id: str) -> None:
    """Remove a group with its roles; its users stay. IAM: DELETE /v3/groups/{group_id}."""
    with call.change() as tx:
        group = existing(call, tx, group_id)
        operators.check(call, tx, policies.GROUP, group.id)
        policies.forget_subject(tx, policies.GROUP, group.id, group.domain_id)
        rows.delete_group(tx, group.id)


def members(call: Call, group_id: str) -> list[Described]:
    """The users in a group, by name. IAM: GET /v3/groups/{group_id}/users."""
    with call.read() as tx:
        group = existing(call, tx, group_id)
        return users.describe(call, tx, rows.members_of(tx, group.id))


def of_user(call: Call, user_id: str) -> list[Group]:
    """The groups that a user is in, by name; everybody may see one's own.

    IAM: GET /v3/users/{user_id}/groups.
    """
    users.allow_oneself(call, user_id)
    with call.read() as tx:
        users.existing(call, tx, user_id)
        found = (rows.get_group(tx, group_id) for group_id in rows.groups_of(tx, user_id))
        return sorted((each for each in found if each is not None), key=lambda each: each.name)


def add(call: Call, group_id: str, user_id: str) -> None:
    """Put a user into a group, or leave it there. IAM: PUT /v3/groups/{group_id}/users/{user_id}."""
    with call.change() as tx:
        membership = _membership(call, tx, group_id, user_id)
        operators.check(call, tx, policies.GROUP, group_id)
        operators.check(call, tx, policies.USER, user_id)  # what the group is given may be to deny
        rows.add_member(tx, membership)


def check(call: Call, group_id: str, user_id: str) -> None:
    """Raises Error(IAM_NOT_FOUND) for a user who is not in the group. IAM: HEAD of the same."""
    with call.read() as tx:
        _check_member(tx, _membership(call, tx, group_id, user_id))


def remove(call: Call, group_id: str, user_id: str) -> None:
    """Take a user out of a group. Raises as `check` does. IAM: DELETE of the same."""
    with call.change() as tx:
        membership = _membership(call, tx, group_id, user_id)
        _check_member(tx, membership)
        operators.check(call, tx, policies.GROUP, group_id)
        rows.remove_member(tx, membership)


def existing(call: Call, tx: Tx, group_id: str) -> Group:
    """The group of the caller's domain. Raises Error(IAM_NOT_FOUND), also for another domain's."""
    call.resource = f"group/{group_id}"
    group = rows.get_group(tx, group_id)
    if group is None or group.domain_id != call.caller.domain_id:
        raise Error(IAM_NOT_FOUND, kind="group", id=group_id)
    return group


def _membership(call: Call, tx: Tx, group_id: str, user_id: str) -> Membership:
    call.resource = f"group/{group_id}/user/{user_id}"
    resource = call.resource
    group = existing(call, tx, group_id)
    call.resource = resource
    return Membership(group.id, users.existing(call, tx, user_id).id)


def _check_member(tx: Tx, membership: Membership) -> None:
    if not rows.is_member(tx, membership):
        raise Error(IAM_NOT_FOUND, kind="user in the group", id=membership.user_id)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name != name.strip():
        raise Error(
            IAM_INPUT_INVALID, name="name", reason="1 to 128 letters, digits, -, _ and spaces inside are due"
        )


def _check_free(tx: Tx, domain_id: str, name: str) -> None:
    if rows.get_group_by_name(tx, domain_id, name) is not None:
        raise Error(IAM_EXISTS, kind="group")
