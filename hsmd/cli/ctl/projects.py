"""hsmctl project: create, list, update, suspend, resume, delete."""

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

_ID = re.compile(r"[0-9a-f]{32}")


def project_id(client: Client, reference: str) -> str:
    """The id of the project of that name or id. Raises SetupError when there is none of that name."""
    from hsmd.pb.v1 import identity_pb2 as pb

    if _ID.fullmatch(reference):
        return reference
    for project in client.identity.ListProjects(pb.ListProjectsRequest(name=reference)).projects:
        return str(project.id)
    raise SetupError(f"there is no project named {reference}")


@click.group("project", cls=Group)
def projects() -> None:
    """Projects of your domain, in which keys live. PROJECT is a name or an id."""


@projects.command("create", epilog=example("hsmctl project create payroll"))
@click.argument("name")
@click.option("--parent", default="", metavar="PROJECT", help="A project that it stands below.")
@click.option("--description", default="", help="What it is for.")
@pass_context
def create(context: Context, name: str, parent: str, description: str) -> None:
    """Make a project, and print its id. Nobody has a role in it yet."""
    with context.client() as client:
        from hsmd.pb.v1 import projects_pb2 as pb

        above = project_id(client, parent) if parent else ""
        wanted = pb.CreateProjectRequest.Project(name=name, parent_id=above, description=description)
        project = client.projects.CreateProject(pb.CreateProjectRequest(project=wanted)).project
    if context.json:
        output.print_json(output.document(project))
    else:
        click.echo(project.id)


@projects.command("list", epilog=example("hsmctl project list"))
@pass_context
def list_(context: Context) -> None:
    """The projects that you may see, by name."""
    with context.client() as client:
        from hsmd.pb.v1 import identity_pb2 as pb

        found = client.identity.ListProjects(pb.ListProjectsRequest()).projects
    shown = [output.document(each) for each in found]
    if context.json:
        output.print_json({"projects": shown})
        return
    output.print_table(
        ("Id", "Name", "Enabled", "Description"),
        [[each["id"], each["name"], each["enabled"], each["description"]] for each in shown],
    )


@projects.command("update", epilog=example("hsmctl project update payroll --description 'All of it'"))
@click.argument("project")
@click.option("--name", help="Another name.")
@click.option("--description", help="Another description.")
@pass_context
def update(context: Context, /, project: str, **changes: str | None) -> None:
    """Change a project."""
    given = {name: value for name, value in changes.items() if value is not None}
    if not given:
        raise click.UsageError("Say what is to change.")
    with context.client() as client:
        from hsmd.pb.v1 import projects_pb2 as pb

        request = pb.UpdateProjectRequest(
            id=project_id(client, project), project=pb.UpdateProjectRequest.Project(**given)
        )
        changed = client.projects.UpdateProject(request).project
    tell(context, output.document(changed), f"The project {output.clean(project)} is changed.")


@projects.command("suspend", epilog=example("hsmctl project suspend payroll"))
@click.argument("project")
@pass_context
def suspend(context: Context, project: str) -> None:
    """Let nobody act in a project, until it is resumed."""
    _set_status(context, project, "suspended")


@projects.command("resume", epilog=example("hsmctl project resume payroll"))
@click.argument("project")
@pass_context
def resume(context: Context, project: str) -> None:
    """Let who has a role act in a project again."""
    _set_status(context, project, "normal")


@projects.command("delete", epilog=example("hsmctl project delete payroll"))
@click.argument("project")
@pass_context
def delete(context: Context, project: str) -> None:
    """Remove a project in which no key lives, with the roles in it."""
    with context.client() as client:
        from hsmd.pb.v1 import projects_pb2 as pb

        found = project_id(client, project)
        client.projects.DeleteProject(pb.DeleteProjectRequest(id=found))
    tell(context, {"project_id": found}, f"The project {output.clean(project)} is deleted.")


def _set_status(context: Context, project: str, status: str) -> None:
    with context.client() as client:
        from hsmd.pb.v1 import projects_pb2 as pb

        request = pb.UpdateProjectStatusRequest(
            id=project_id(client, project), project=pb.UpdateProjectStatusRequest.Project(status=status)
        )
        client.projects.UpdateProjectStatus(request)
    done = {"project_id": request.id, "status": status}
    tell(context, done, f"The project {output.clean(project)} is {status}.")
