"""hsmctl policy: create, list, show, update, delete, attach, detach, test."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Group, example, pass_context
from hsmd.cli.ctl.groups import group_id
from hsmd.cli.ctl.users import tell, user_id
from hsmd.client.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsmd.client import Client

_ID = re.compile(r"[0-9a-f]{32}")
_FILE = click.File("r", encoding="utf-8")
_ON = {"projects": "XA", "domain": "AX"}


@click.group("policy", cls=Group)
def policies() -> None:
    """Who may do what: policies, built-in roles, and who has them. POLICY is a display name or an id."""


@policies.command("create", epilog=example("hsmctl policy create signers policy.json"))
@click.argument("name")
@click.argument("file", type=_FILE)
@click.option("--description", default="", help="What it is for.")
@click.option(
    "--on",
    type=click.Choice(list(_ON)),
    default="projects",
    show_default=True,
    help="Where it is to be given.",
)
@pass_context
def create(context: Context, name: str, file: Any, description: str, on: str) -> None:
    """Make a policy of the JSON in FILE (- for standard input), and print its id."""
    with context.client() as client:
        from hsmd.pb.v1 import policies_pb2 as pb

        wanted = pb.CreatePolicyRequest.Role(
            display_name=name, type=_ON[on], description=description, policy=file.read()
        )
        role = client.policies.CreatePolicy(pb.CreatePolicyRequest(role=wanted)).role
    if context.json:
        output.print_json(output.document(role))
    else:
        click.echo(role.id)


@policies.command("list", epilog=example("hsmctl policy list --built-in"))
@click.option("--built-in", is_flag=True, help="The roles that every domain has.")
@pass_context
def list_(context: Context, *, built_in: bool) -> None:
    """The domain's own policies, oldest first."""
    with context.client() as client:
        from hsmd.pb.v1 import policies_pb2 as pb

        if built_in:
            found = client.policies.ListRoles(pb.ListRolesRequest()).roles
        else:
            found = client.policies.ListPolicies(pb.ListPoliciesRequest()).roles
    shown = [output.document(each) for each in found]
    if context.json:
        output.print_json({"policies": shown})
        return
    output.print_table(
        ("Id", "Name", "Type", "Description"),
        [[each["id"], each["display_name"], each["type"], each["description"]] for each in shown],
    )


@policies.command("show", epilog=example('hsmctl policy show "KMS Administrator"'))
@click.argument("policy")
@pass_context
def show(context: Context, policy: str) -> None:
    """A policy or built-in role, as JSON."""
    with context.client() as client:
        from hsmd.pb.v1 import policies_pb2 as pb

        role = client.policies.ShowRole(pb.ShowRoleRequest(role_id=_role_id(client, policy))).role
    output.print_json(output.document(role))


@policies.command("update", epilog=example("hsmctl policy update signers --file policy.json"))
@click.argument("policy")
@click.option("--file", type=_FILE, help="The new JSON, - for standard input.")
@click.option("--name", help="The new display name.")
@click.option("--description", help="The new description.")
@pass_context
def update(context: Context, policy: str, file: Any, name: str | None, description: str | None) -> None:
    """Change a policy, for the next call of whoever has it."""
    if file is None and name is None and description is None:
        raise click.UsageError("Give --file, --name or --description.")
    with context.client() as client:
        from hsmd.pb.v1 import policies_pb2 as pb

        changes = pb.UpdatePolicyRequest.Role(
            display_name=name, description=description, policy=None if file is None else file.read()
        )
        request = pb.UpdatePolicyRequest(role_id=_role_id(client, policy), role=changes)
        role = client.policies.UpdatePolicy(request).role
    tell(context, output.document(role), f"The policy {role.display_name} is changed.")


@policies.command("delete", epilog=example("hsmctl policy delete signers"))
@click.argument("policy")
@pass_context
def delete(context: Context, policy: str) -> None:
    """Remove a policy; whoever has it loses it."""
    with context.client() as client:
        from hsmd.pb.v1 import policies_pb2 as pb

        role_id = _role_id(client, policy)
        client.policies.DeletePolicy(pb.DeletePolicyRequest(role_id=role_id))
    tell(context, {"id": role_id}, f"The policy {policy} is removed.")


def _places(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say who and where."""
    for option in (
        click.option("--all-projects", is_flag=True, help="On all projects of the domain."),
        click.option("--on-project", metavar="ID", help="On this project."),
        click.option("--agency", metavar="ID", help="To or from this agency."),
        click.option("--user", help="To or from this user."),
        click.option("--group", help="To or from this group."),
        click.argument("policy"),
    ):
        command = option(command)
    return command


@policies.command("attach", epilog=example("hsmctl policy attach signers --group accounts --all-projects"))
@_places
@pass_context
def attach(context: Context, /, policy: str, **place: Any) -> None:
    """Give a policy or role: on a project, on all projects, or else on the domain itself."""
    with context.client() as client:
        given = _move(client, "Grant", policy, **place)
    tell(context, given, f"{policy} is given.")


@policies.command("detach", epilog=example("hsmctl policy detach signers --group accounts --all-projects"))
@_places
@pass_context
def detach(context: Context, /, policy: str, **place: Any) -> None:
    """Take a policy or role away, from where it was given."""
    with context.client() as client:
        taken = _move(client, "Revoke", policy, **place)
    tell(context, taken, f"{policy} is taken away.")


@policies.command(
    "test",
    epilog=example(
        "hsmctl policy test --as ann --action kms:cmk:sign --resource KEY --context g:SourceIp=10.0.0.7"
    ),
)
@click.option("--as", "user", metavar="USER", help="A user, by name or id.")
@click.option("--as-agency", "agency", metavar="ID", help="An agency.")
@click.option("--action", required=True, help="Like kms:cmk:sign.")
@click.option("--resource", default="", help="KMS:REGION:DOMAIN:KeyId:ID, or a key's id.")
@click.option("--in-project", metavar="PROJECT", help="By name or id; your own when not given.")
@click.option(
    "--context", "facts", multiple=True, metavar="KEY=VALUE", help="What else is known of the call."
)
@pass_context
def test(
    context: Context,
    user: str | None,
    agency: str | None,
    action: str,
    resource: str,
    in_project: str | None,
    facts: tuple[str, ...],
) -> None:
    """Tell what somebody would be answered, which statement of which policy decides, and why not others.

    Ends with 0 when it would be allowed, with 1 when not.
    """
    if (user is None) == (agency is None):
        raise click.UsageError("Give one of --as and --as-agency.")
    with context.client() as client:
        from hsmd.pb.v1 import policies_pb2 as pb

        request = pb.TestPermissionRequest(
            user_id=user_id(client, user) if user else "",
            agency_id=agency or "",
            project=in_project or context.project or _own_project(client),
            action=action,
            resource=resource,
            context=[pb.Fact(key=key, values=values) for key, values in _facts(facts).items()],
        )
        verdict = client.policies.TestPermission(request)
    document = output.document(verdict)
    if context.json:
        output.print_json(document)
    else:
        click.echo(f"{'Allowed' if verdict.allowed else 'Refused'}: {output.clean(verdict.why)}.")
        _print_reasons(document["reasons"])
    if not verdict.allowed:
        click.get_current_context().exit(1)


def _print_reasons(reasons: list[dict[str, Any]]) -> None:
    if reasons:
        output.print_table(
            ("Policy", "Through", "Statement", "Effect", "Applies", "Fails at"),
            [
                [
                    *(each["policy"], each["through"], str(each["statement"])),
                    "Allow" if each["allows"] else "Deny",
                    "yes" if each["applies"] else "no",
                    each["failed"],
                ]
                for each in reasons
            ],
        )


def _facts(given: tuple[str, ...]) -> dict[str, list[str]]:
    facts: dict[str, list[str]] = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not equals:
            raise click.UsageError(f"--context {each}: KEY=VALUE is due.")
        facts.setdefault(key, []).append(value)
    return facts


def _own_project(client: Client) -> str:
    """The caller's one project; "" when it has several."""
    from hsmd.pb.v1 import identity_pb2

    found = client.identity.ListProjects(identity_pb2.ListProjectsRequest()).projects
    return str(found[0].id) if len(found) == 1 else ""


def _role_id(client: Client, reference: str) -> str:
    """The id of the policy or built-in role of that display name or id. Raises SetupError for none."""
    from hsmd.pb.v1 import policies_pb2 as pb

    if _ID.fullmatch(reference):
        return reference
    own = client.policies.ListPolicies(pb.ListPoliciesRequest()).roles
    for role in (*own, *client.policies.ListRoles(pb.ListRolesRequest()).roles):
        if role.display_name == reference:
            return str(role.id)
    raise SetupError(f"there is no policy named {reference}")


def _move(
    client: Client,
    verb: str,
    policy: str,
    *,
    group: str | None,
    user: str | None,
    agency: str | None,
    on_project: str | None,
    all_projects: bool,
) -> dict[str, Any]:
    from hsmd.pb.v1 import assignments_pb2 as pb

    if sum(each is not None for each in (group, user, agency)) != 1:
        raise click.UsageError("Give one of --group, --user and --agency.")
    if on_project and all_projects:
        raise click.UsageError("Give at most one of --on-project and --all-projects.")
    role_id = _role_id(client, policy)
    request: Any
    if user is not None:
        request = pb.UserRoleRequest(
            user_id=user_id(client, user), role_id=role_id, project=on_project, all_projects=all_projects
        )
        method = "GrantRoleToUser" if verb == "Grant" else "RevokeRoleFromUser"
    else:
        place = {"project_id": on_project} if on_project else {"domain_id": _domain_id(client)}
        if group is not None:
            request = pb.GroupRoleRequest(group_id=group_id(client, group), role_id=role_id, **place)
        else:
            request = pb.AgencyRoleRequest(agency_id=agency, role_id=role_id, **place)
        scope = "Project" if on_project else "Projects" if all_projects else "Domain"
        subject = "Group" if group is not None else "Agency"
        method = f"{'GrantRoleTo' if verb == 'Grant' else 'RevokeRoleFrom'}{subject}On{scope}"
    getattr(client.assignments, method)(request)
    return output.document(request)


def _domain_id(client: Client) -> str:
    from hsmd.pb.v1 import identity_pb2

    (domain,) = client.identity.ListDomains(identity_pb2.ListDomainsRequest()).domains
    return str(domain.id)
