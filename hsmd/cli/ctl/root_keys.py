"""hsmctl root-key: how far the keys have moved to the root key that took over."""

from __future__ import annotations

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.admin import administration
from hsmd.cli.ctl.context import Context, Group, example, pass_context


@click.group("root-key", cls=Group)
def root_keys() -> None:
    """The HSM's root keys: which one wraps what is new, and what older ones are needed for.

    Another one takes over by `hsmctl propose rotate-root-key`, an old one goes by `hsmctl propose
    destroy-root-key` (docs/backup.md).
    """


@root_keys.command("list", epilog=example("hsmctl --ukey 'pkcs11:...' root-key list"))
@pass_context
def list_(context: Context) -> None:
    """All root keys there have been, and how many rows each still wraps."""
    from hsmd.pb.v1 import upkeep_pb2 as pb
    from hsmd.pb.v1.upkeep_pb2_grpc import UpkeepStub

    with administration(context) as (_, client):
        answer = client.stub(UpkeepStub).ListRootKeys(pb.ListRootKeysRequest())
    found = [output.document(each) for each in answer.root_keys]
    if context.json:
        output.print_json({"root_keys": found})
        return
    kinds = ("key_versions", "access_keys", "access_points")
    output.print_table(
        ("Root key", "State", "Check value", "Key versions", "Access keys", "Access points", "Needed"),
        [
            (
                *(each[name] for name in ("label", "state", "check_value")),
                *(each[name] for name in kinds),
                "; ".join(each["needed"]),
            )
            for each in found
        ],
    )
