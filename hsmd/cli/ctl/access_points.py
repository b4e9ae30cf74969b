"""hsmctl access-point: create, list, enable, disable, delete, private-key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Group, example, pass_context
from hsmd.cli.ctl.newfile import new_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hsmd.client import Client
    from hsmd.pb.v1.access_points_pb2 import AccessPoint

_PAGE = 100
_TYPES = ("ECS", "CCE", "Custom")


@click.group("access-point", cls=Group)
def access_points() -> None:
    """Who may open data-key capsules, and how they prove that it is them.

    KEYSPACE is a UUID of your choice that access points and key policies share.
    """


@access_points.command("create", epilog=example("hsmctl access-point create till --keyspace $(uuidgen)"))
@click.argument("name")
@click.option("--keyspace", metavar="UUID", required=True, help="The keyspace that it belongs to.")
@click.option(
    "--type", "kind", type=click.Choice(_TYPES), default="Custom", show_default=True, help="What it is."
)
@click.option("--identity", default="", help="ECS: the machine's id; CCE: the cluster's public key.")
@click.option("--cluster", default="", help="CCE: the cluster's id.")
@click.option("--description", default="", help="A note.")
@pass_context
def create(
    context: Context, name: str, keyspace: str, kind: str, identity: str, cluster: str, description: str
) -> None:
    """Make an access point and print its id."""
    with context.client() as client:
        from hsmd.pb.v1 import access_points_pb2 as pb

        request = pb.CreateAccessPointRequest(
            keyspace_id=keyspace,
            access_point_name=name,
            type=f"ACCESS_POINT_TYPE_{kind.upper()}",
            identity=identity,
            cluster_id=cluster,
            description=description,
        )
        made = str(client.access_points.CreateAccessPoint(request).access_point_id)
    if context.json:
        output.print_json({"access_point_id": made})
    else:
        click.echo(made)


@access_points.command("list", epilog=example("hsmctl access-point list KEYSPACE"))
@click.argument("keyspace")
@pass_context
def list_(context: Context, keyspace: str) -> None:
    """The access points of a keyspace."""
    with context.client() as client:
        found = [output.document(each) for each in _all(client, keyspace)]
    if context.json:
        output.print_json({"access_points": found})
        return
    output.print_table(
        ("Access point id", "Name", "Type", "State", "Created"),
        [
            [
                *(each["access_point_id"], each["access_point_name"]),
                *(each["type"], each["state"], each["create_time"]),
            ]
            for each in found
        ],
    )


@access_points.command("enable", epilog=example("hsmctl access-point enable ID"))
@click.argument("point", metavar="ID")
@pass_context
def enable(context: Context, point: str) -> None:
    """Have a disabled access point open capsules again."""
    with context.client() as client:
        from hsmd.pb.v1 import access_points_pb2 as pb

        client.access_points.EnableAccessPoint(pb.EnableAccessPointRequest(access_point_id=point))
    _tell(context, point, "enabled")


@access_points.command("disable", epilog=example("hsmctl access-point disable ID"))
@click.argument("point", metavar="ID")
@pass_context
def disable(context: Context, point: str) -> None:
    """Refuse an access point's attestations until it is enabled again."""
    with context.client() as client:
        from hsmd.pb.v1 import access_points_pb2 as pb

        client.access_points.DisableAccessPoint(pb.DisableAccessPointRequest(access_point_id=point))
    _tell(context, point, "disabled")


@access_points.command("delete", epilog=example("hsmctl access-point delete ID"))
@click.argument("point", metavar="ID")
@pass_context
def delete(context: Context, point: str) -> None:
    """Delete an access point, for good."""
    with context.client() as client:
        from hsmd.pb.v1 import access_points_pb2 as pb

        client.access_points.DeleteAccessPoint(pb.DeleteAccessPointRequest(access_point_id=point))
    _tell(context, point, "deleted")


@access_points.command("private-key", epilog=example("hsmctl access-point private-key ID till.pem"))
@click.argument("point", metavar="ID")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@pass_context
def private_key(context: Context, point: str, file: Path, *, force: bool) -> None:
    """Write the private key of a Custom access point to FILE, as PEM, for its owner alone to read."""
    with context.client() as client:
        from hsmd.pb.v1 import access_points_pb2 as pb

        request = pb.GetAccessPointPrivateKeyRequest(access_point_id=point)
        der = client.access_points.GetAccessPointPrivateKey(request).private_key
    with new_file(file, force=force) as target:
        target.write(_pem(der))
    if context.json:
        output.print_json({"access_point_id": point, "file": str(file)})
    else:
        output.say(f"The private key is in {output.clean(str(file))}.")


def _pem(der: bytes) -> bytes:
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_der_private_key,
    )

    key = load_der_private_key(der, None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _all(client: Client, keyspace: str) -> Iterator[AccessPoint]:
    from hsmd.pb.v1 import access_points_pb2 as pb

    marker = ""
    while True:
        request = pb.ListAccessPointsRequest(keyspace_id=keyspace, limit=_PAGE, marker=marker)
        answer = client.access_points.ListAccessPoints(request)
        yield from answer.access_points
        marker = answer.page_info.next_marker
        if not marker:
            return


def _tell(context: Context, point: str, done: str) -> None:
    if context.json:
        output.print_json({"access_point_id": point})
    else:
        output.say(f"The access point {output.clean(point)} is {done}.")
