"""Servicer of deletion.proto."""

from hsmd.domain import deletion
from hsmd.domain.core import Call
from hsmd.domain.keys import check_sequence
from hsmd.pb.v1 import deletion_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Deletion"]


def schedule_key_deletion(
    call: Call, request: pb.ScheduleKeyDeletionRequest
) -> pb.ScheduleKeyDeletionResponse:
    """DEW: schedule-key-deletion."""
    check_sequence(request.sequence)
    key = deletion.schedule(call, request.key_id, request.pending_days)
    return pb.ScheduleKeyDeletionResponse(key_id=key.id, key_state=key.state)  # type: ignore[arg-type]  # DEW's number


def cancel_key_deletion(call: Call, request: pb.CancelKeyDeletionRequest) -> pb.CancelKeyDeletionResponse:
    """DEW: cancel-key-deletion."""
    check_sequence(request.sequence)
    key = deletion.cancel(call, request.key_id)
    return pb.CancelKeyDeletionResponse(key_id=key.id, key_state=key.state)  # type: ignore[arg-type]  # DEW's number
