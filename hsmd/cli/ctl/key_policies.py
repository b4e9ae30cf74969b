"""hsmctl key-policy: create, list, show, update, delete."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Group, example, pass_context

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from hsmd.client import Client
    from hsmd.pb.v1.key_policies_pb2 import ListedKeyPolicy

_PAGE = 100
_VERSION = "1.0"


@click.group("key-policy", cls=Group)
def key_policies() -> None:
    """Which access points may open the capsules bound to a policy, and when.

    KEYSPACE is a UUID of your choice that access points and key policies share. Times are in UTC.
    """


def _terms(command: Any) -> Any:
    for option in (
        click.option("--until", "ends", type=click.DateTime(), help="When it ends; by default never."),
        click.option("--from", "starts", type=click.DateTime(), help="When it begins; by default at once."),
        click.option(
            "--allow", "points", metavar="ID", multiple=True, required=True, help="An access point; repeat."
        ),
    ):
        command = option(command)
    return command


@key_policies.command(
    "create",
    epilog=example("hsmctl key-policy create tills --keyspace KEYSPACE --allow ID --until 2030-01-01"),
)
@click.argument("name")
@click.option("--keyspace", metavar="UUID", required=True, help="The keyspace that it belongs to.")
@_terms
@click.option("--description", default="", help="A note.")
@pass_context
def create(
    context: Context,
    name: str,
    keyspace: str,
    points: tuple[str, ...],
    starts: datetime | None,
    ends: datetime | None,
    description: str,
) -> None:
    """Make a key policy and print its id."""
    with context.client() as client:
        from hsmd.pb.v1 import key_policies_pb2 as pb

        request = pb.CreateKeyPolicyRequest(
            keyspace_id=keyspace,
            policy_name=name,
            policy=_text(points, starts, ends),
            description=description,
        )
        made = str(client.key_policies.CreateKeyPolicy(request).policy_id)
    if context.json:
        output.print_json({"policy_id": made})
    else:
        click.echo(made)


@key_policies.command("list", epilog=example("hsmctl key-policy list KEYSPACE"))
@click.argument("keyspace")
@pass_context
def list_(context: Context, keyspace: str) -> None:
    """The key policies of a keyspace."""
    with context.client() as client:
        found = [output.document(each) for each in _all(client, keyspace)]
    if context.json:
        output.print_json({"key_policies": found})
        return
    output.print_table(
        ("Policy id", "Name", "From", "Until", "Access points"),
        [
            [
                *(each["policy_id"], each["policy_name"], *_bounds(each)),
                len(each["policy"]["allowed_access_point"]),
            ]
            for each in found
        ],
    )


@key_policies.command("show", epilog=example("hsmctl key-policy show ID"))
@click.argument("policy", metavar="ID")
@pass_context
def show(context: Context, policy: str) -> None:
    """All about one key policy."""
    with context.client() as client:
        from hsmd.pb.v1 import key_policies_pb2 as pb

        found = output.document(client.key_policies.ShowKeyPolicy(pb.ShowKeyPolicyRequest(policy_id=policy)))
    if context.json:
        output.print_json(found)
        return
    starts, ends = _bounds(found)
    output.print_fields(
        [
            *(("Policy id", found["policy_id"]), ("Name", found["policy_name"])),
            *(("Keyspace", found["keyspace_id"]), ("Description", found["description"])),
            *(("From", starts), ("Until", ends)),
            *(("Access point", each) for each in found["policy"]["allowed_access_point"]),
            *(("Created", found["create_time"]), ("Changed", found["last_modify_time"])),
            ("Last used", found["last_access_time"]),
        ]
    )


@key_policies.command(
    "update", epilog=example("hsmctl key-policy update ID --allow POINT --until 2031-01-01")
)
@click.argument("policy", metavar="ID")
@_terms
@click.option("--description", help="A note; by default it stays as it is.")
@pass_context
def update(
    context: Context,
    policy: str,
    points: tuple[str, ...],
    starts: datetime | None,
    ends: datetime | None,
    description: str | None,
) -> None:
    """Replace the terms of a key policy, for all the capsules that are bound to it."""
    with context.client() as client:
        from hsmd.pb.v1 import key_policies_pb2 as pb

        request = pb.UpdateKeyPolicyRequest(
            policy_id=policy, policy=_text(points, starts, ends), description=description
        )
        client.key_policies.UpdateKeyPolicy(request)
    _tell(context, policy, "changed")


@key_policies.command("delete", epilog=example("hsmctl key-policy delete ID"))
@click.argument("policy", metavar="ID")
@pass_context
def delete(context: Context, policy: str) -> None:
    """Delete a key policy, and with it the way to what is in its capsules."""
    with context.client() as client:
        from hsmd.pb.v1 import key_policies_pb2 as pb

        client.key_policies.DeleteKeyPolicy(pb.DeleteKeyPolicyRequest(policy_id=policy))
    _tell(context, policy, "deleted")


def _text(points: tuple[str, ...], starts: datetime | None, ends: datetime | None) -> str:
    bounds = {"start_time": starts, "end_time": ends}
    period = {name: at.strftime("%Y-%m-%dT%H:%M:%SZ") for name, at in bounds.items() if at}
    tree = {"version": _VERSION, "validity_period": period, "allowed_access_point": list(points)}
    return json.dumps(tree)


def _bounds(policy: dict[str, Any]) -> tuple[str, str]:
    period = policy["policy"]["validity_period"] or {}
    return period.get("start_time", ""), period.get("end_time", "")


def _all(client: Client, keyspace: str) -> Iterator[ListedKeyPolicy]:
    from hsmd.pb.v1 import key_policies_pb2 as pb

    marker = ""
    while True:
        request = pb.ListKeyPoliciesRequest(keyspace_id=keyspace, limit=_PAGE, marker=marker)
        answer = client.key_policies.ListKeyPolicies(request)
        yield from answer.keyspace_policies
        marker = answer.page_info.next_marker
        if not marker:
            return


def _tell(context: Context, policy: str, done: str) -> None:
    if context.json:
        output.print_json({"policy_id": policy})
    else:
        output.say(f"The key policy {output.clean(policy)} is {done}.")
