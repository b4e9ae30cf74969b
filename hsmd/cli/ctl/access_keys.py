"""hsmctl access-key: create, list, show, enable, disable, describe, delete, temporary."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

import click

from hsmd.cli.ctl import agencies, output
from hsmd.cli.ctl.context import Context, Group, example, pass_context
from hsmd.cli.ctl.users import tell, user_id

if TYPE_CHECKING:
    from hsmd.pb.v1.access_keys_pb2 import AccessKey

_SHOWN = ("access", "user_id", "status", "description", "create_time", "last_use_time")


@click.group("access-key", cls=Group)
def access_keys() -> None:
    """Access keys, by which REST requests are signed: two a user, and temporary ones.

    Everybody sees to its own; USER is a name or an id.
    """


@access_keys.command("create", epilog=example("hsmctl access-key create ann --description 'build server'"))
@click.argument("user")
@click.option("--description", default="", help="What it is for.")
@pass_context
def create(context: Context, user: str, description: str) -> None:
    """Make an access key of a user, and print it with its secret, this once."""
    with context.client() as client:
        from hsmd.pb.v1 import access_keys_pb2 as pb

        wanted = pb.CreatePermanentAccessKeyRequest.Credential(
            user_id=user_id(client, user), description=description
        )
        request = pb.CreatePermanentAccessKeyRequest(credential=wanted)
        made = client.access_keys.CreatePermanentAccessKey(request).credential
    if context.json:
        output.print_json(output.document(made))
    else:
        output.print_fields([("access", made.access), ("secret", made.secret)])


@access_keys.command("list", epilog=example("hsmctl access-key list ann"))
@click.argument("user", required=False)
@pass_context
def list_(context: Context, user: str | None) -> None:
    """The access keys of a user, or your own, oldest first."""
    with context.client() as client:
        from hsmd.pb.v1 import access_keys_pb2 as pb

        owner = user_id(client, user) if user else ""
        request = pb.ListPermanentAccessKeysRequest(user_id=owner)
        found = [output.document(e) for e in client.access_keys.ListPermanentAccessKeys(request).credentials]
    if context.json:
        output.print_json({"credentials": found})
        return
    output.print_table(
        ("Access key", "Status", "Created", "Description"),
        [[each["access"], each["status"], each["create_time"], each["description"]] for each in found],
    )


@access_keys.command("show", epilog=example("hsmctl access-key show ACCESS-KEY"))
@click.argument("access_key")
@pass_context
def show(context: Context, access_key: str) -> None:
    """One access key, and when it was last used."""
    with context.client() as client:
        from hsmd.pb.v1 import access_keys_pb2 as pb

        request = pb.ShowPermanentAccessKeyRequest(access_key=access_key)
        found = output.document(client.access_keys.ShowPermanentAccessKey(request).credential)
    if context.json:
        output.print_json(found)
    else:
        output.print_fields((name, found[name]) for name in _SHOWN)


@access_keys.command("enable", epilog=example("hsmctl access-key enable ACCESS-KEY"))
@click.argument("access_key")
@pass_context
def enable(context: Context, access_key: str) -> None:
    """Let an access key sign again."""
    _print(context, _update(context, access_key, enabled=True))


@access_keys.command("disable", epilog=example("hsmctl access-key disable ACCESS-KEY"))
@click.argument("access_key")
@pass_context
def disable(context: Context, access_key: str) -> None:
    """Refuse what an access key signs, from the next call on."""
    _print(context, _update(context, access_key, enabled=False))


@access_keys.command("describe", epilog=example("hsmctl access-key describe ACCESS-KEY 'build server'"))
@click.argument("access_key")
@click.argument("description")
@pass_context
def describe(context: Context, access_key: str, description: str) -> None:
    """Describe an access key anew."""
    _print(context, _update(context, access_key, description=description))


@access_keys.command("delete", epilog=example("hsmctl access-key delete ACCESS-KEY"))
@click.argument("access_key")
@pass_context
def delete(context: Context, access_key: str) -> None:
    """Remove an access key and its secret."""
    with context.client() as client:
        from hsmd.pb.v1 import access_keys_pb2 as pb

        request = pb.DeletePermanentAccessKeyRequest(access_key=access_key)
        client.access_keys.DeletePermanentAccessKey(request)
    tell(context, {"access": access_key}, f"The access key {output.clean(access_key)} is deleted.")


@access_keys.command("temporary", epilog=example("hsmctl access-key temporary --minutes 60"))
@click.option("--minutes", type=click.IntRange(15, 1440), default=15, show_default=True, help="How long.")
@agencies.AS_AGENCY
@agencies.OF_DOMAIN
@click.option("--session", default="", help="Name in audit records of who acts as the agency.")
@click.option("--policy", "policy_file", type=click.File("r"), help="A JSON policy that narrows it.")
@pass_context
def temporary(
    context: Context,
    minutes: int,
    agency: str | None,
    domain: str | None,
    session: str,
    policy_file: IO[str] | None,
) -> None:
    """Make a temporary access key of your own, or as an agency; print it, its secret and security token."""
    agencies.check_pair(agency, domain)
    policy = policy_file.read() if policy_file else ""
    with context.client() as client:
        from hsmd.pb.v1 import temporary_keys_pb2 as pb

        methods = pb.CreateTemporaryAccessKeyRequest.IdentityMethods(policy=policy)
        if agency and domain:
            methods.methods.append("assume_role")
            role = methods.assume_role
            role.agency_name, role.domain_name, role.session_user.name = agency, domain, session
            role.duration_seconds = minutes * 60
        else:
            methods.methods.append("token")
            methods.token.duration_seconds = minutes * 60
        auth = pb.CreateTemporaryAccessKeyRequest.Auth(identity=methods)
        request = pb.CreateTemporaryAccessKeyRequest(auth=auth)
        made = output.document(client.temporary_keys.CreateTemporaryAccessKey(request).credential)
    if context.json:
        output.print_json(made)
    else:
        output.print_fields(
            (name, made[name]) for name in ("access", "secret", "securitytoken", "expires_at")
        )


def _update(
    context: Context, access_key: str, *, enabled: bool | None = None, description: str | None = None
) -> AccessKey:
    with context.client() as client:
        from hsmd.pb.v1 import access_keys_pb2 as pb

        wanted = pb.UpdatePermanentAccessKeyRequest.Credential()
        if enabled is not None:
            wanted.status = pb.ACCESS_KEY_STATUS_ACTIVE if enabled else pb.ACCESS_KEY_STATUS_INACTIVE
        if description is not None:
            wanted.description = description
        request = pb.UpdatePermanentAccessKeyRequest(access_key=access_key, credential=wanted)
        changed: AccessKey = client.access_keys.UpdatePermanentAccessKey(request).credential
        return changed


def _print(context: Context, access_key: AccessKey) -> None:
    document = output.document(access_key)
    if context.json:
        output.print_json(document)
    else:
        output.print_fields((name, document[name]) for name in _SHOWN if name in document)
