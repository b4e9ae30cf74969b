"""`hsmctl limits`: what single projects may ask for, for operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Group, example, pass_context

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hsmd.pb.v1.limits_pb2 import Limit

_NAME = click.argument("name", metavar="NAME")


@click.group("limits", cls=Group)
def limits() -> None:
    """Quotas and rates of single projects.

    PROJECT is a project's id, NAME one of keys, requests (a second) and calls (at once, a worker). For other
    projects the configuration counts, [limits].
    """


@limits.command("show", epilog=example("hsmctl limits show 0c5a3e5d3f1c4b2a9d8e7f6a5b4c3d2e"))
@click.argument("project")
@pass_context
def show(context: Context, project: str) -> None:
    """All limits of PROJECT."""
    with context.client() as client:
        from hsmd.pb.v1 import limits_pb2 as pb

        found = client.limits.ListLimits(pb.ListLimitsRequest(of_project=project)).limits
    _print(context, project, found)


@limits.command("set", epilog=example("hsmctl limits set 0c5a3e5d3f1c4b2a9d8e7f6a5b4c3d2e requests 200"))
@click.argument("project")
@_NAME
@click.argument("value", type=click.IntRange(0))
@pass_context
def set_(context: Context, project: str, name: str, value: int) -> None:
    """Give PROJECT a limit of its own, in force for the next call."""
    with context.client() as client:
        from hsmd.pb.v1 import limits_pb2 as pb

        request = pb.SetLimitRequest(of_project=project, name=name, value=value)
        limit = client.limits.SetLimit(request).limit
    _print(context, project, [limit])


@limits.command("reset", epilog=example("hsmctl limits reset 0c5a3e5d3f1c4b2a9d8e7f6a5b4c3d2e requests"))
@click.argument("project")
@_NAME
@pass_context
def reset(context: Context, project: str, name: str) -> None:
    """Let the configuration's limit count for PROJECT again."""
    with context.client() as client:
        from hsmd.pb.v1 import limits_pb2 as pb

        limit = client.limits.ResetLimit(pb.ResetLimitRequest(of_project=project, name=name)).limit
    _print(context, project, [limit])


def _print(context: Context, project: str, found: Sequence[Limit]) -> None:
    if context.json:
        output.print_json({"project_id": project, "limits": [output.document(each) for each in found]})
        return
    shown = [(each.name, each.value, each.default, each.own, each.unit) for each in found]
    output.print_table(("Limit", "Value", "Configured", "Own", "Counts"), shown)
