"""Servicer of sealing.proto: sealing and unsealing."""

from hsmd.api.convert import timestamp
from hsmd.domain import sealing
from hsmd.domain.core import Call
from hsmd.pb.v1 import sealing_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Sealing"]


def get_seal_status(call: Call, request: pb.GetSealStatusRequest) -> pb.GetSealStatusResponse:
    """Whether the daemon is sealed, and how far an unsealing has come."""
    found = sealing.status(call)
    seal = found.seal
    return pb.GetSealStatusResponse(
        sealed=found.sealed,
        pin_source=found.source,
        seal=seal.id if seal else "",
        threshold=seal.threshold if seal else 0,
        holders=[each.holder.name for each in seal.shares] if seal else [],
        created=timestamp(seal.created) if seal else None,
        attempt=_attempt(found.attempt) if found.attempt else None,
        last_failure=found.failure,
    )


def begin_unseal(call: Call, request: pb.BeginUnsealRequest) -> pb.BeginUnsealResponse:
    """The UKey's share as it is kept, and the key of the attempt under way."""
    invitation = sealing.begin(call, request.fingerprint)
    attempt, share = invitation.attempt, invitation.share
    return pb.BeginUnsealResponse(
        attempt=_attempt(attempt),
        attempt_key=attempt.public_key,
        seal=attempt.seal.id,
        ukey_id=share.holder.ukey_id,
        threshold=attempt.seal.threshold,
        box=share.box,
    )


def give_share(call: Call, request: pb.GiveShareRequest) -> pb.GiveShareResponse:
    """Take a share; the last one that is due unseals the daemon."""
    found = sealing.give(call, request.attempt, request.fingerprint, request.box, request.signature)
    return pb.GiveShareResponse(unsealed=found.unsealed, threshold=found.threshold, given=found.given)


def seal(call: Call, request: pb.SealRequest) -> pb.SealResponse:
    """Wipe the PIN and serve nobody."""
    sealing.shut(call)
    return pb.SealResponse()


def _attempt(attempt: sealing.Attempt) -> pb.UnsealAttempt:
    return pb.UnsealAttempt(id=attempt.id, expires=timestamp(attempt.expires), given=attempt.names)
