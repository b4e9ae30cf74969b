"""hsmctl agency: create, list, show, update, delete."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Group, example, pass_context
from hsmd.cli.ctl.users import tell
from hsmd.client.errors import SetupError

if TYPE_CHECKING:
    from hsmd.client import Client
    from hsmd.pb.v1.agencies_pb2 import Agency

_ID = re.compile(r"[0-9a-f]{32}")
_SHOWN = (
    *("id", "name", "domain_id", "trust_domain_id", "trust_domain_name", "description", "duration"),
    *("create_time", "expire_time"),
)
_LASTING = "FOREVER, ONEDAY or a number of days."

AS_AGENCY = click.option("--agency", metavar="NAME", help="Act as this agency of another domain.")
OF_DOMAIN = click.option("--domain", metavar="NAME", help="The domain that the agency is of.")


def check_pair(agency: str | None, domain: str | None) -> None:
    """Raises click.UsageError for an agency without its domain, or the reverse."""
    if bool(agency) != bool(domain):
        raise click.UsageError("Give --agency and --domain together.")


@click.group("agency", cls=Group)
def agencies() -> None:
    """Leave for the users of another domain to act in yours. AGENCY is a name or an id.

    An agency can do nothing until it is given roles.
    """


@agencies.command(
    "create", epilog=example("hsmctl agency create auditors --trust other-domain --duration 30")
)
@click.argument("name")
@click.option("--trust", metavar="NAME", required=True, help="The domain whose users may act as it.")
@click.option("--description", default="", help="What it is for.")
@click.option("--duration", default="FOREVER", show_default=True, help=_LASTING)
@pass_context
def create(context: Context, name: str, trust: str, description: str, duration: str) -> None:
    """Make an agency, and print its id."""
    with context.client() as client:
        from hsmd.pb.v1 import agencies_pb2 as pb

        wanted = pb.CreateAgencyRequest.Option(
            name=name,
            domain_id=_own_domain(client),
            trust_domain_name=trust,
            description=description,
            duration=duration,
        )
        agency = client.agencies.CreateAgency(pb.CreateAgencyRequest(agency=wanted)).agency
    _print(context, agency, agency.id)


@agencies.command("list", epilog=example("hsmctl agency list"))
@pass_context
def list_(context: Context) -> None:
    """The agencies of your domain, oldest first."""
    with context.client() as client:
        found = [output.document(each) for each in _all(client)]
    if context.json:
        output.print_json({"agencies": found})
        return
    output.print_table(
        ("Id", "Name", "Trusted domain", "Expires", "Description"),
        [
            [each["id"], each["name"], each["trust_domain_name"], each["expire_time"], each["description"]]
            for each in found
        ],
    )


@agencies.command("show", epilog=example("hsmctl agency show auditors"))
@click.argument("agency")
@pass_context
def show(context: Context, agency: str) -> None:
    """One agency."""
    with context.client() as client:
        from hsmd.pb.v1 import agencies_pb2 as pb

        found = client.agencies.ShowAgency(pb.ShowAgencyRequest(agency_id=agency_id(client, agency))).agency
    _print(context, found, None)


@agencies.command("update", epilog=example("hsmctl agency update auditors --duration 7"))
@click.argument("agency")
@click.option("--trust", metavar="NAME", help="Another domain whose users may act as it.")
@click.option("--description", help="Another description.")
@click.option("--duration", help=f"From now on: {_LASTING}")
@pass_context
def update(
    context: Context, agency: str, trust: str | None, description: str | None, duration: str | None
) -> None:
    """Change an agency."""
    given = {"trust_domain_name": trust, "description": description, "duration": duration}
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        raise click.UsageError("Say what is to change.")
    with context.client() as client:
        from hsmd.pb.v1 import agencies_pb2 as pb

        wanted = pb.UpdateAgencyRequest.Option(**changes)
        request = pb.UpdateAgencyRequest(agency_id=agency_id(client, agency), agency=wanted)
        changed = client.agencies.UpdateAgency(request).agency
    _print(context, changed, None)


@agencies.command("delete", epilog=example("hsmctl agency delete auditors"))
@click.argument("agency")
@pass_context
def delete(context: Context, agency: str) -> None:
    """End an agency, with its roles and whatever was made as it."""
    with context.client() as client:
        from hsmd.pb.v1 import agencies_pb2 as pb

        found = agency_id(client, agency)
        client.agencies.DeleteAgency(pb.DeleteAgencyRequest(agency_id=found))
    tell(context, {"agency_id": found}, f"The agency {output.clean(agency)} is deleted.")


def agency_id(client: Client, reference: str) -> str:
    """The id of the agency of that name or id. Raises SetupError when there is none of that name."""
    if _ID.fullmatch(reference):
        return reference
    for agency in _all(client, reference):
        return str(agency.id)
    raise SetupError(f"there is no agency named {reference}")


def _all(client: Client, name: str = "") -> list[Agency]:
    from hsmd.pb.v1 import agencies_pb2 as pb

    request = pb.ListAgenciesRequest(domain_id=_own_domain(client), name=name)
    return list(client.agencies.ListAgencies(request).agencies)


def _own_domain(client: Client) -> str:
    from hsmd.pb.v1 import identity_pb2 as pb

    return str(client.identity.ListDomains(pb.ListDomainsRequest()).domains[0].id)


def _print(context: Context, agency: Agency, line: str | None) -> None:
    document = output.document(agency)
    if context.json:
        output.print_json(document)
    elif line is not None:
        click.echo(line)
    else:
        output.print_fields((name, document[name]) for name in _SHOWN)
