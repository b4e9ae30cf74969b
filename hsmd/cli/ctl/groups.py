"""hsmctl group: create, list, users, update, add, remove, delete."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Group, example, pass_context
from hsmd.cli.ctl.users import print_users, tell, user_id
from hsmd.client.errors import SetupError

if TYPE_CHECKING:
    from hsmd.client import Client

_ID = re.compile(r"[0-9a-f]{32}")


def group_id(client: Client, reference: str) -> str:
    """The id of the group of that name or id. Raises SetupError when there is none of that name."""
    from hsmd.pb.v1 import groups_pb2 as pb

    if _ID.fullmatch(reference):
        return reference
    for group in client.groups.ListGroups(pb.ListGroupsRequest(name=reference)).groups:
        return str(group.id)
    raise SetupError(f"there is no group named {reference}")


@click.group("group", cls=Group)
def groups() -> None:
    """Groups of users, which are given the same roles. GROUP and USER are names or ids."""


@groups.command("create", epilog=example("hsmctl group create accounts"))
@click.argument("name")
@click.option("--description", default="", help="What it is for.")
@pass_context
def create(context: Context, name: str, description: str) -> None:
    """Make a group, and print its id."""
    with context.client() as client:
        from hsmd.pb.v1 import groups_pb2 as pb

        wanted = pb.CreateGroupRequest.Group(name=name, description=description)
        group = client.groups.CreateGroup(pb.CreateGroupRequest(group=wanted)).group
    if context.json:
        output.print_json(output.document(group))
    else:
        click.echo(group.id)


@groups.command("list", epilog=example("hsmctl group list --user ann"))
@click.option("--user", help="Those that this user is in.")
@pass_context
def list_(context: Context, user: str | None) -> None:
    """The groups, by name."""
    with context.client() as client:
        from hsmd.pb.v1 import groups_pb2 as pb

        if user is None:
            found = client.groups.ListGroups(pb.ListGroupsRequest()).groups
        else:
            request = pb.ListGroupsForUserRequest(user_id=user_id(client, user))
            found = client.groups.ListGroupsForUser(request).groups
    shown = [output.document(each) for each in found]
    if context.json:
        output.print_json({"groups": shown})
        return
    output.print_table(
        ("Id", "Name", "Description"), [[each["id"], each["name"], each["description"]] for each in shown]
    )


@groups.command("users", epilog=example("hsmctl group users accounts"))
@click.argument("group")
@pass_context
def users(context: Context, group: str) -> None:
    """The users in a group, by name."""
    with context.client() as client:
        from hsmd.pb.v1 import groups_pb2 as pb

        request = pb.ListUsersForGroupRequest(group_id=group_id(client, group))
        found = list(client.groups.ListUsersForGroup(request).users)
    print_users(context, found)


@groups.command("update", epilog=example("hsmctl group update accounts --name ledger"))
@click.argument("group")
@click.option("--name", help="Another name.")
@click.option("--description", help="Another description.")
@pass_context
def update(context: Context, /, group: str, **changes: str | None) -> None:
    """Change a group."""
    given = {name: value for name, value in changes.items() if value is not None}
    if not given:
        raise click.UsageError("Say what is to change.")
    with context.client() as client:
        from hsmd.pb.v1 import groups_pb2 as pb

        request = pb.UpdateGroupRequest(
            group_id=group_id(client, group), group=pb.UpdateGroupRequest.Group(**given)
        )
        changed = client.groups.UpdateGroup(request).group
    tell(context, output.document(changed), f"The group {output.clean(group)} is changed.")


@groups.command("add", epilog=example("hsmctl group add accounts ann"))
@click.argument("group")
@click.argument("user")
@pass_context
def add(context: Context, group: str, user: str) -> None:
    """Put a user into a group."""
    with context.client() as client:
        from hsmd.pb.v1 import groups_pb2 as pb

        request = pb.AddUserToGroupRequest(group_id=group_id(client, group), user_id=user_id(client, user))
        client.groups.AddUserToGroup(request)
    done = {"group_id": request.group_id, "user_id": request.user_id}
    tell(context, done, f"The user {output.clean(user)} is in the group {output.clean(group)}.")


@groups.command("remove", epilog=example("hsmctl group remove accounts ann"))
@click.argument("group")
@click.argument("user")
@pass_context
def remove(context: Context, group: str, user: str) -> None:
    """Take a user out of a group."""
    with context.client() as client:
        from hsmd.pb.v1 import groups_pb2 as pb

        request = pb.RemoveUserFromGroupRequest(
            group_id=group_id(client, group), user_id=user_id(client, user)
        )
        client.groups.RemoveUserFromGroup(request)
    done = {"group_id": request.group_id, "user_id": request.user_id}
    tell(context, done, f"The user {output.clean(user)} is out of the group {output.clean(group)}.")


@groups.command("delete", epilog=example("hsmctl group delete accounts"))
@click.argument("group")
@pass_context
def delete(context: Context, group: str) -> None:
    """Remove a group with its roles; its users stay."""
    with context.client() as client:
        from hsmd.pb.v1 import groups_pb2 as pb

        found = group_id(client, group)
        client.groups.DeleteGroup(pb.DeleteGroupRequest(group_id=found))
    tell(context, {"group_id": found}, f"The group {output.clean(group)} is deleted.")
