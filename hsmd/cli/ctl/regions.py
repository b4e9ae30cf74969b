"""hsmctl region list, region primary; hsmctl key replicate."""

from __future__ import annotations

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Group, Leaf, example, pass_context

_PAGE = 1000


@click.group("region", cls=Group)
def regions() -> None:
    """Regions that share a root key, so that keys can be in several of them.

    KEY is a key id, alias/NAME or an alias URN.
    """


@regions.command("list", epilog=example("hsmctl region list"))
@pass_context
def list_(context: Context) -> None:
    """The regions: ours and those that keys can be replicated to."""
    with context.client() as client:
        from hsmd.pb.v1 import regions_pb2 as pb

        found = list(client.regions.ListSupportRegions(pb.ListSupportRegionsRequest(limit=_PAGE)).regions)
    if context.json:
        output.print_json({"regions": found})
    else:
        output.print_table(("Region",), [[each] for each in found])


@regions.command("primary", epilog=example("hsmctl region primary alias/books eu-2"))
@click.argument("key")
@click.argument("region")
@pass_context
def primary(context: Context, key: str, region: str) -> None:
    """Make REGION, which has a replica, the primary region of KEY; the key here becomes a replica.

    A key is rotated, and replicated further, in its primary region only. Where this was cut short, the
    same again completes it.
    """
    with context.client() as client:
        from hsmd.pb.v1 import regions_pb2 as pb

        request = pb.UpdatePrimaryRegionRequest(key_id=key, primary_region=region)
        found = output.document(client.regions.UpdatePrimaryRegion(request))
    if context.json:
        output.print_json(found)
    else:
        output.say(f"The primary region of {found['key_id']} is {output.clean(found['primary_region'])}.")


@click.command(
    "replicate",
    cls=Leaf,
    epilog=example("hsmctl key replicate alias/books eu-2 --project ID --alias books --tag floor=3"),
)
@click.argument("key")
@click.argument("region")
@click.option("--project", required=True, metavar="ID", help="The project there.")
@click.option("--alias", required=True, help="The replica's alias, the bare NAME.")
@click.option("--description", default="", help="The replica's, up to 255 characters.")
@click.option(
    "--tag", "pairs", multiple=True, metavar="NAME=VALUE", help="A tag of the replica's, up to ten."
)
@pass_context
def replicate(
    context: Context,
    key: str,
    region: str,
    project: str,
    alias: str,
    description: str,
    pairs: tuple[str, ...],
) -> None:
    """Have the same key in another REGION: each decrypts what the other has encrypted.

    Where this was cut short, the same again completes it.
    """
    split = [each.partition("=") for each in pairs]
    if not all(mark for _, mark, _ in split):
        raise click.UsageError("A tag is NAME=VALUE; the value may be empty.")
    with context.client() as client:
        from hsmd.pb.v1 import regions_pb2 as pb
        from hsmd.pb.v1.tags_pb2 import Tag

        request = pb.ReplicateKeyRequest(
            key_id=key,
            replica_region=region,
            key_alias=alias,
            key_description=description,
            replica_project_id=project,
            tags=[Tag(key=name, value=value) for name, _, value in split],
        )
        found = output.document(client.regions.ReplicateKey(request))
    if context.json:
        output.print_json(found)
    else:
        output.say(f"{found['key_id']} is in {output.clean(found['region'])}, too.")
