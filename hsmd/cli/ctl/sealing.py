"""hsmctl seal, unseal, seal-status: operators open a daemon by their UKeys, and close it again."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.admin import admin_client, administration, own_ukey
from hsmd.cli.ctl.context import Context, Leaf, example, pass_context

if TYPE_CHECKING:
    from hsmd.client.admin import AdminClient
    from hsmd.hsm.ukey_token import UKeyToken
    from hsmd.pb.v1.sealing_pb2 import GiveShareRequest, GiveShareResponse
    from hsmd.pb.v1.sealing_pb2_grpc import SealingStub

_ADDRESS = "--ukey 'pkcs11:token=alice?module-path=/usr/lib/softhsm/libsofthsm2.so'"
_TRYING_SECONDS = 60.0  # the daemon tries the PIN before it answers
_PAUSE_SECONDS = 0.5


@click.command(cls=Leaf, epilog=example(f"hsmctl {_ADDRESS} unseal"))
@pass_context
def unseal(context: Context) -> None:
    """Give the UKey's share of the PIN to a sealed daemon.

    The UKey opens the share, and it goes to the daemon under a key that was made for this unsealing. When as
    many operators have given theirs as are needed, from whichever machines, the daemon opens the HSM.
    """
    context.timeout = max(context.timeout, _TRYING_SECONDS)
    with own_ukey(context) as token, admin_client(context, None) as client:
        unsealed, threshold, given = _give(client, token)
    if context.json:
        output.print_json({"unsealed": unsealed, "threshold": threshold, "given": given})
        return
    output.say(f"{len(given)} of {threshold} shares are given: {', '.join(given)}.")
    output.say("The daemon is unsealed." if unsealed else "The daemon is sealed until the others are given.")


@click.command(cls=Leaf, epilog=example(f"hsmctl {_ADDRESS} seal"))
@click.option("--yes", is_flag=True, help="Don't ask.")
@pass_context
def seal(context: Context, *, yes: bool) -> None:
    """Seal the daemon: it forgets the PIN, leaves the HSM and serves nobody until operators unseal it."""
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("Nobody can be asked here: confirm by --yes.")
        click.confirm("Seal the daemon? It serves nobody from then on", abort=True, err=True)
    with administration(context) as (_, client):
        from hsmd.pb.v1 import sealing_pb2 as pb
        from hsmd.pb.v1.sealing_pb2_grpc import SealingStub

        sealing: Any = client.stub(SealingStub)
        sealing.Seal(pb.SealRequest())
    if context.json:
        output.print_json({"sealed": True})
    else:
        output.say("The daemon is sealed.")


@click.command("seal-status", cls=Leaf, epilog=example("hsmctl --admin hsmd.example:7444 seal-status --json"))
@pass_context
def seal_status(context: Context) -> None:
    """Whether the daemon is sealed, and how far an unsealing has come. No UKey is needed."""
    with admin_client(context, None) as client:
        from hsmd.pb.v1 import sealing_pb2 as pb
        from hsmd.pb.v1.sealing_pb2_grpc import SealingStub

        found = output.document(client.stub(SealingStub).GetSealStatus(pb.GetSealStatusRequest()))
    if context.json:
        output.print_json(found)
        return
    attempt = found.pop("attempt") or {}
    found["holders"] = ", ".join(found["holders"])
    found["given"] = ", ".join(attempt.get("given", []))
    found["until"] = attempt.get("expires", "")
    output.print_fields(
        (name.replace("_", " "), value) for name, value in found.items() if value not in (None, "")
    )


def _give(client: AdminClient, token: UKeyToken) -> tuple[bool, int, list[str]]:
    """Open the share inside the UKey, and give it: unsealed, how many are due, whose are given.

    Raises ApiError, UKeyError.
    """
    from hsmd import sealfile, ukey
    from hsmd.pb.v1 import sealing_pb2 as pb
    from hsmd.pb.v1.sealing_pb2_grpc import SealingStub

    sealing = client.stub(SealingStub)
    asked = sealing.BeginUnseal(pb.BeginUnsealRequest(fingerprint=token.fingerprint))
    kept = sealfile.share_context(asked.seal, sealfile.UNSEAL, asked.ukey_id)
    share = ukey.open_box(token.public_key, asked.box, kept, token)
    attempt, key = asked.attempt.id, asked.attempt_key
    on_its_way = sealfile.attempt_context(attempt, asked.seal, asked.ukey_id)
    box = ukey.make_box(key, ukey.box_kinds(key)[0], share, on_its_way)
    signed = sealfile.share_statement(attempt, key, asked.seal, asked.ukey_id, box)
    request = pb.GiveShareRequest(
        attempt=attempt, fingerprint=token.fingerprint, box=box, signature=token.sign(signed)
    )
    answer = _answered(sealing, request)
    return (answer.unsealed, answer.threshold, list(answer.given)) if answer else (True, asked.threshold, [])


def _answered(sealing: SealingStub, request: GiveShareRequest) -> GiveShareResponse | None:
    """The answer; None when it was lost because what was sealed has ended, being unsealed."""
    from hsmd.client import ApiError

    try:
        answer: GiveShareResponse = sealing.GiveShare(request)
    except ApiError as lost:
        if lost.code or not lost.unanswered or _is_sealed(sealing):
            raise
        return None
    return answer


def _is_sealed(sealing: SealingStub) -> bool:
    """Whether it still is, as soon as somebody says so; it is, if nobody does."""
    from hsmd.client import ApiError
    from hsmd.pb.v1 import sealing_pb2 as pb

    until = time.monotonic() + _TRYING_SECONDS
    while time.monotonic() < until:
        try:
            return bool(sealing.GetSealStatus(pb.GetSealStatusRequest()).sealed)
        except ApiError as away:
            if not away.unanswered:
                raise
            time.sleep(_PAUSE_SECONDS)
    return True
