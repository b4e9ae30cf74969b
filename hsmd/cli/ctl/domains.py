"""hsmctl domain: create, list, update; and what one's own domain settles for its users."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

import click

from hsmd.cli.ctl import output, passwords
from hsmd.cli.ctl.context import Context, Group, example, pass_context
from hsmd.cli.ctl.users import tell

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from hsmd.client import Client


@click.group("domain", cls=Group)
def domains() -> None:
    """Domains, for who operates the daemon; and the rules of your own one."""


@domains.command("create", epilog=example("hsmctl domain create sales --user sally"))
@click.argument("name")
@click.option("--user", required=True, metavar="NAME", help="The user who is to administer it.")
@click.option(
    "--project", default="", metavar="NAME", help="Its first project; unless given, the region's name."
)
@click.option("--description", default="", help="What it is for.")
@passwords.FROM_FILE
@pass_context
def create(
    context: Context, name: str, user: str, project: str, description: str, password_file: IO[str] | None
) -> None:
    """Make a domain with its first project and the user who administers it; print their ids."""
    password = passwords.ask(password_file)
    with context.client() as client:
        from hsmd.pb.v1 import domains_pb2 as pb

        request = pb.CreateDomainRequest(
            name=name, description=description, project=project, user=user, password=password
        )
        made = client.domains.CreateDomain(request)
    ids = {"domain_id": made.domain.id, "project_id": made.project_id, "user_id": made.user_id}
    if context.json:
        output.print_json(ids)
    else:
        output.print_fields(ids.items())


@domains.command("list", epilog=example("hsmctl domain list"))
@pass_context
def list_(context: Context) -> None:
    """All domains, by name."""
    with context.client() as client:
        from hsmd.pb.v1 import domains_pb2 as pb

        found = client.domains.ListAllDomains(pb.ListAllDomainsRequest()).domains
    shown = [output.document(each) for each in found]
    if context.json:
        output.print_json({"domains": shown})
        return
    output.print_table(
        ("Id", "Name", "Enabled", "Description"),
        [[each["id"], each["name"], each["enabled"], each["description"]] for each in shown],
    )


@domains.command("update", epilog=example("hsmctl domain update DOMAIN-ID --disable"))
@click.argument("domain", metavar="ID")
@click.option("--description", help="Another description.")
@click.option("--enable/--disable", default=None, help="Whether its users may come.")
@pass_context
def update(context: Context, domain: str, description: str | None, *, enable: bool | None) -> None:
    """Change a domain."""
    if description is None and enable is None:
        raise click.UsageError("Say what is to change.")
    with context.client() as client:
        from hsmd.pb.v1 import domains_pb2 as pb

        request = pb.UpdateDomainRequest(domain_id=domain, description=description, enabled=enable)
        changed = client.domains.UpdateDomain(request).domain
    tell(context, output.document(changed), f"The domain {output.clean(changed.name)} is changed.")


@domains.command(
    "password-policy", epilog=example("hsmctl domain password-policy minimum_password_length=12")
)
@click.argument("changes", metavar="[NAME=VALUE]...", nargs=-1)
@pass_context
def password_policy(context: Context, changes: tuple[str, ...]) -> None:
    """Show, or change, what passwords of your domain must be like."""
    with context.client() as client:
        from hsmd.pb.v1 import domain_settings_pb2 as pb

        own, settings = _own_domain(client), client.domain_settings
        if changes:
            policy = pb.UpdateDomainPasswordPolicyRequest.Policy(**_parsed(changes, _fields(pb, "Password")))
            settings.UpdateDomainPasswordPolicy(
                pb.UpdateDomainPasswordPolicyRequest(domain_id=own, password_policy=policy)
            )
        shown = settings.ShowDomainPasswordPolicy(pb.ShowDomainPasswordPolicyRequest(domain_id=own))
    _print(context, shown.password_policy)


@domains.command("login-policy", epilog=example("hsmctl domain login-policy login_failed_times=3"))
@click.argument("changes", metavar="[NAME=VALUE]...", nargs=-1)
@pass_context
def login_policy(context: Context, changes: tuple[str, ...]) -> None:
    """Show, or change, when accounts of your domain are locked."""
    with context.client() as client:
        from hsmd.pb.v1 import domain_settings_pb2 as pb

        own, settings = _own_domain(client), client.domain_settings
        if changes:
            policy = pb.UpdateDomainLoginPolicyRequest.Policy(**_parsed(changes, _fields(pb, "Login")))
            settings.UpdateDomainLoginPolicy(
                pb.UpdateDomainLoginPolicyRequest(domain_id=own, login_policy=policy)
            )
        shown = settings.ShowDomainLoginPolicy(pb.ShowDomainLoginPolicyRequest(domain_id=own))
    _print(context, shown.login_policy)


@domains.command(
    "api-acl", epilog=example("hsmctl domain api-acl --allow 10.0.0.0/8 --allow 192.0.2.1-192.0.2.9")
)
@click.option(
    "--allow",
    multiple=True,
    metavar="ADDRESSES",
    help="A network or a range: only from these, instead of before.",
)
@click.option("--anywhere", is_flag=True, help="From everywhere.")
@pass_context
def api_acl(context: Context, allow: tuple[str, ...], *, anywhere: bool) -> None:
    """Show, or replace, from where your domain may be used."""
    if allow and anywhere:
        raise click.UsageError("Give either --allow or --anywhere.")
    with context.client() as client:
        from hsmd.pb.v1 import domain_settings_pb2 as pb

        own, settings, acl = _own_domain(client), client.domain_settings, pb.ApiAclPolicy
        if allow or anywhere:
            wanted = acl(
                allow_address_netmasks=[
                    acl.AddressNetmask(address_netmask=each) for each in allow if "-" not in each
                ],
                allow_ip_ranges=[acl.IpRange(ip_range=each) for each in allow if "-" in each],
            )
            settings.UpdateDomainApiAclPolicy(
                pb.UpdateDomainApiAclPolicyRequest(domain_id=own, api_acl_policy=wanted)
            )
        shown = settings.ShowDomainApiAclPolicy(
            pb.ShowDomainApiAclPolicyRequest(domain_id=own)
        ).api_acl_policy
    if context.json:
        output.print_json(output.document(shown))
        return
    for mask in shown.allow_address_netmasks:
        click.echo(output.clean(mask.address_netmask))
    for some in shown.allow_ip_ranges:
        click.echo(output.clean(some.ip_range))


def _own_domain(client: Client) -> str:
    from hsmd.pb.v1 import identity_pb2 as pb

    (own,) = client.identity.ListDomains(pb.ListDomainsRequest()).domains
    return str(own.id)


def _fields(pb: Any, kind: str) -> dict[str, Any]:
    message = getattr(pb, f"UpdateDomain{kind}PolicyRequest").Policy
    return dict(message.DESCRIPTOR.fields_by_name)


def _parsed(changes: tuple[str, ...], fields: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in changes:
        name, equals, text = each.partition("=")
        if not equals or name not in fields:
            raise click.UsageError(f"{output.clean(each)}: NAME=VALUE is due, NAME of {', '.join(fields)}.")
        kind = _KINDS.get(fields[name].type, click.STRING)
        try:
            found[name] = kind.convert(text, None, None)
        except click.BadParameter as error:
            raise click.UsageError(f"{name}: {error.message}") from error
    return found


# By the numbers of FieldDescriptor, which is not loaded until a call is made: int32 and bool.
_KINDS: dict[int, click.ParamType[Any]] = {5: click.INT, 8: click.BOOL}


def _print(context: Context, policy: Message) -> None:
    document = output.document(policy)
    if context.json:
        output.print_json(document)
    else:
        output.print_fields(document.items())
