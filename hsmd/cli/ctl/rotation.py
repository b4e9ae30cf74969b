"""hsmctl key rotate, key rotation: new versions of a key's material."""

from __future__ import annotations

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Leaf, example, pass_context


@click.command("rotate", cls=Leaf, epilog=example("hsmctl key rotate alias/books"))
@click.argument("key")
@pass_context
def rotate(context: Context, key: str) -> None:
    """Give a key a new version now.

    It encrypts with the new one from then on; what older versions encrypted is still decrypted.
    """
    with context.client() as client:
        from hsmd.pb.v1 import rotation_pb2 as pb

        answer = client.rotation.RotateOnDemand(pb.RotateOnDemandRequest(key_id=key))
    found = output.document(answer)
    if context.json:
        output.print_json(found)
    else:
        output.say(f"{found['key_id']} is rotated.")


@click.command(
    "rotation",
    cls=Leaf,
    epilog=example("hsmctl key rotation alias/books", "hsmctl key rotation alias/books --every 90"),
)
@click.argument("key")
@click.option("--every", type=click.IntRange(30, 365), metavar="DAYS", help="Rotate by itself, so often.")
@click.option("--off", is_flag=True, help="Don't rotate by itself.")
@pass_context
def rotation(context: Context, key: str, every: int | None, *, off: bool) -> None:
    """Show, or set, whether and how often a key rotates by itself."""
    if off and every is not None:
        raise click.UsageError("--off and --every exclude each other.")
    with context.client() as client:
        from hsmd.pb.v1 import rotation_pb2 as pb

        status = client.rotation.GetKeyRotationStatus(pb.GetKeyRotationStatusRequest(key_id=key))
        if off and status.key_rotation_enabled:
            client.rotation.DisableKeyRotation(pb.DisableKeyRotationRequest(key_id=key))
        if every is not None:
            if not status.key_rotation_enabled:
                client.rotation.EnableKeyRotation(pb.EnableKeyRotationRequest(key_id=key))
            wanted = pb.UpdateKeyRotationIntervalRequest(key_id=key, rotation_interval=every)
            client.rotation.UpdateKeyRotationInterval(wanted)
        if off or every is not None:
            status = client.rotation.GetKeyRotationStatus(pb.GetKeyRotationStatusRequest(key_id=key))
    found = output.document(status)
    if context.json:
        output.print_json(found)
        return
    materials = found.pop("key_materials")
    output.print_fields((name, value) for name, value in found.items() if value is not None)
    output.print_table(
        ("Material", "Created"), [[each["material_id"], each["create_time"]] for each in materials]
    )
