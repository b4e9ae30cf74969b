"""What the client raises.

ClientError
├── SetupError    no call was made: a setting is missing, a certificate can't be used
└── ApiError      a call failed: refused by the service, or the service did not answer
"""

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_DOMAIN = "hsmd"
_DETAILS = "grpc-status-details-bin"
REQUEST_ID = "hsmd-request-id"
_UNANSWERED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,  # the daemon gave the call up: its own time was over, or it ends
)
NO_TINK = "Tink is not installed; the extra brings it: pip install 'hsmd[tink]'"


class ClientError(Exception):
    """Anything that the client raises."""


class SetupError(ClientError):
    """The client can't be set up; the text says which setting or file, and why."""


class ApiError(ClientError):
    """A call that failed.

    `code` is the DEW error code ("KMS.0205"), "" when the failure came from the connection and not from
    the service; `status` the gRPC status; `request_id` is what the service's log and audit know it by.
    """

    def __init__(self, *, code: str, status: grpc.StatusCode, message: str, request_id: str) -> None:
        self.code = code
        self.status = status
        self.message = message
        self.request_id = request_id
        super().__init__(f"{code or status.name}: {message} (request {request_id})")

    @property
    def unanswered(self) -> bool:
        """The service could not be reached, or did not answer in time: later may be better."""
        return self.status in _UNANSWERED


def from_rpc(error: grpc.RpcError, request_id: str) -> ApiError:
    """The failed call as an ApiError; `request_id` counts where the service names none."""
    trailing = [(each.key, each.value) for each in error.trailing_metadata() or ()]
    answered = [value for key, value in trailing if key == REQUEST_ID]
    return ApiError(
        code=_reason(trailing),
        status=error.code(),
        message=error.details() or "",
        request_id=str(answered[0]) if answered else request_id,
    )


def _reason(trailing: Iterable[tuple[str, Any]]) -> str:
    for key, value in trailing:
        if key == _DETAILS:
            try:
                return _reason_of(status_pb2.Status.FromString(value))
            except DecodeError:
                return ""
    return ""


def _reason_of(status: status_pb2.Status) -> str:
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == _DOMAIN:
            return str(info.reason)
    return ""
