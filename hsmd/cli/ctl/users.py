"""hsmctl user: create, list, show, update, password, delete."""

from __future__ import annotations

import re
from typing import IO, TYPE_CHECKING, Any

import click

from hsmd.cli.ctl import output, passwords
from hsmd.cli.ctl.context import Context, Group, example, pass_context
from hsmd.client.errors import SetupError

if TYPE_CHECKING:
    from hsmd.client import Client
    from hsmd.pb.v1.users_pb2 import User

_ID = re.compile(r"[0-9a-f]{32}")
_SHOWN = (
    *("id", "name", "domain_id", "enabled", "is_domain_owner", "description", "email", "areacode", "phone"),
    *("access_mode", "pwd_status", "create_time", "update_time", "modify_pwd_time"),
    *("password_expires_at", "last_login_time"),
)


def user_id(client: Client, reference: str) -> str:
    """The id of the user of that name or id. Raises SetupError when there is none of that name."""
    from hsmd.pb.v1 import users_pb2 as pb

    if _ID.fullmatch(reference):
        return reference
    for user in client.users.ListUsers(pb.ListUsersRequest(name=reference)).users:
        return str(user.id)
    raise SetupError(f"there is no user named {reference}")


@click.group("user", cls=Group)
def users() -> None:
    """Users of your domain. USER is a name or an id."""


@users.command("create", epilog=example("hsmctl user create ann --description 'Accounts'"))
@click.argument("name")
@passwords.FROM_FILE
@click.option("--no-password", is_flag=True, help="Without one: for certificates and access keys only.")
@click.option("--description", default="", help="What it is for.")
@click.option("--email", default="", help="Its address.")
@click.option("--disabled", is_flag=True, help="It can't come until it is enabled.")
@pass_context
def create(
    context: Context,
    name: str,
    password_file: IO[str] | None,
    description: str,
    email: str,
    *,
    no_password: bool,
    disabled: bool,
) -> None:
    """Make a user, and print its id. It has no role yet."""
    password = "" if no_password else passwords.ask(password_file)
    with context.client() as client:
        from hsmd.pb.v1 import users_pb2 as pb

        wanted = pb.CreateUserRequest.User(
            name=name, password=password, description=description, email=email, enabled=not disabled
        )
        user = client.users.CreateUser(pb.CreateUserRequest(user=wanted)).user
    _print(context, user, user.id)


@users.command("list", epilog=example("hsmctl user list --json"))
@pass_context
def list_(context: Context) -> None:
    """The users, by name."""
    with context.client() as client:
        from hsmd.pb.v1 import users_pb2 as pb

        found = list(client.users.ListUsers(pb.ListUsersRequest()).users)
    print_users(context, found)


@users.command("show", epilog=example("hsmctl user show ann"))
@click.argument("user")
@pass_context
def show(context: Context, user: str) -> None:
    """One user."""
    with context.client() as client:
        from hsmd.pb.v1 import users_pb2 as pb

        found = client.users.ShowUser(pb.ShowUserRequest(user_id=user_id(client, user))).user
    _print(context, found, None)


@users.command("update", epilog=example("hsmctl user update ann --disable"))
@click.argument("user")
@click.option("--name", help="Another name.")
@click.option("--description", help="Another description.")
@click.option("--email", help="Another address.")
@click.option("--enable/--disable", default=None, help="Whether it may come; disabling ends its tokens.")
@click.option("--new-password", is_flag=True, help="Another password, asked for; it ends the user's tokens.")
@passwords.FROM_FILE
@pass_context
def update(
    context: Context,
    /,
    user: str,
    password_file: IO[str] | None,
    *,
    enable: bool | None,
    new_password: bool,
    **changes: str | None,
) -> None:
    """Change a user, as who administers it."""
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    if enable is not None:
        given["enabled"] = enable
    if new_password or password_file is not None:
        given["password"] = passwords.ask(password_file)
    if not given:
        raise click.UsageError("Say what is to change.")
    with context.client() as client:
        from hsmd.pb.v1 import users_pb2 as pb

        request = pb.UpdateUserRequest(user_id=user_id(client, user), user=pb.UpdateUserRequest.User(**given))
        changed = client.users.UpdateUser(request).user
    _print(context, changed, None)


@users.command("password", epilog=example("hsmctl user password USER-ID"))
@click.argument("user")
@pass_context
def password(context: Context, user: str) -> None:
    """Choose another password for yourself, by the one before; USER may have to be your id."""
    before = passwords.ask(None, "Password now", confirm=False)
    after = passwords.ask(None, "New password")
    with context.client() as client:
        from hsmd.pb.v1 import users_pb2 as pb

        chosen = pb.UpdateUserPasswordRequest.User(password=after, original_password=before)
        request = pb.UpdateUserPasswordRequest(user_id=user_id(client, user), user=chosen)
        client.users.UpdateUserPassword(request)
    tell(context, {"user": user}, "The password is changed.")


@users.command("delete", epilog=example("hsmctl user delete ann"))
@click.argument("user")
@pass_context
def delete(context: Context, user: str) -> None:
    """Remove a user with its access keys, certificates, memberships and roles."""
    with context.client() as client:
        from hsmd.pb.v1 import users_pb2 as pb

        found = user_id(client, user)
        client.users.DeleteUser(pb.DeleteUserRequest(user_id=found))
    tell(context, {"user_id": found}, f"The user {output.clean(user)} is deleted.")


def print_users(context: Context, found: list[User]) -> None:
    """Users as a table or a document."""
    shown = [output.document(each) for each in found]
    if context.json:
        output.print_json({"users": shown})
        return
    output.print_table(
        ("Id", "Name", "Enabled", "Description"),
        [[each["id"], each["name"], each["enabled"], each["description"]] for each in shown],
    )


def tell(context: Context, document: dict[str, Any], text: str) -> None:
    """What was done, where nothing else is to be shown."""
    if context.json:
        output.print_json(document)
    else:
        output.say(text)


def _print(context: Context, user: User, line: str | None) -> None:
    document = output.document(user)
    if context.json:
        output.print_json(document)
    elif line is not None:
        click.echo(line)
    else:
        output.print_fields((name, document[name]) for name in _SHOWN)
