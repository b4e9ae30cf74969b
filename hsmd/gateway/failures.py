"""What goes wrong, as the caller sees it: one failure, one status, the error body of the service."""

import http
import json
import logging
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from hsmd import errors
from hsmd.errors import BY_CODE, Error
from hsmd.pb.options.v1 import options_pb2
from hsmd.troubles import Troubles

_log = logging.getLogger(__name__)

_DETAILS = "grpc-status-details-bin"

# What gRPC itself says when the daemon did not: it can't be reached, is overloaded, or is another version.
_BY_STATUS: dict[grpc.StatusCode, Error] = {
    grpc.StatusCode.UNAVAILABLE: Error(errors.UNAVAILABLE, reason="the daemon can't be reached"),
    grpc.StatusCode.CANCELLED: Error(errors.UNAVAILABLE, reason="the daemon is stopping"),
    grpc.StatusCode.DEADLINE_EXCEEDED: Error(errors.DEADLINE, reason="the daemon took too long"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: Error(
        errors.RATE_EXCEEDED, reason="the daemon is busy", retry_after=1.0
    ),
    grpc.StatusCode.UNIMPLEMENTED: Error(errors.UNAVAILABLE, reason="the daemon does not know this call"),
    grpc.StatusCode.UNAUTHENTICATED: Error(errors.IDENTITY_REFUSED, reason="the daemon refused it"),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A refused request: DEW code, HTTP status, the text for the caller, and when to try again (seconds)."""

    code: str
    status: int
    message: str
    retry_after: float = 0.0
    own: bool = True  # found here; else the daemon said so, and has it on record


def from_error(error: Error) -> Failure:
    """A fault found here."""
    return Failure(error.fault.code, error.fault.http, error.message, error.retry_after)


def unknown() -> Failure:
    """The failure that says nothing."""
    return from_error(Error(errors.INTERNAL))


def from_call(error: grpc.aio.AioRpcError, method: str, troubles: Troubles) -> Failure:
    """A call that failed: what the daemon said, else what its gRPC status means."""
    found = _said(error)
    if found is not None:
        return found
    troubles.meet(f"the call failed: {error.code().name}", method)
    _log.debug("%s: %s", method, error.details())
    known = _BY_STATUS.get(error.code())
    return unknown() if known is None else from_error(known)


def said_by_daemon(error: grpc.aio.AioRpcError) -> bool:
    """Whether the failure is the daemon's answer (else the call may never have reached it)."""
    return _said(error) is not None


def _said(error: grpc.aio.AioRpcError) -> Failure | None:
    trailing: Any = error.trailing_metadata() or ()
    packed = next((value for key, value in trailing if key == _DETAILS), None)
    if not isinstance(packed, bytes):
        return None
    try:
        status = status_pb2.Status.FromString(packed)
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        for detail in status.details:
            _ = detail.Unpack(info) or detail.Unpack(retry)
    except DecodeError:
        return None
    if info.domain != "hsmd" or info.reason not in BY_CODE:
        return None
    seconds = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return Failure(info.reason, BY_CODE[info.reason].http, status.message, seconds, own=False)


def body(failure: Failure, shape: int | None, request_id: str) -> bytes:
    """The JSON error body in the shape (a number of enum ErrorBody) of the service.

    Routing and identity failures (`shape` None, and every APIGW code) have a body of their own.
    """
    tree: dict[str, Any]
    if shape is None or failure.code.startswith("APIGW."):
        tree = {"error_code": failure.code, "error_msg": failure.message, "request_id": request_id}
    elif shape == options_pb2.IAM:
        title = http.HTTPStatus(failure.status).phrase
        tree = {"error": {"code": failure.status, "message": failure.message, "title": title}}
    else:
        tree = {"error_code": failure.code, "error_msg": failure.message}
        if shape == options_pb2.KMS:
            tree = {"error": tree}
    return json.dumps(tree).encode("ascii")
