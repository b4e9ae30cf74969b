"""The lines to peer regions: gRPC by mutual TLS, each answer or its lack as the rules know it."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from hsmd.api import peers
from hsmd.api.pipeline import REQUEST_ID_KEY
from hsmd.config import ConfigError, Peer
from hsmd.domain.lines import Handover, Offer, Versions
from hsmd.errors import ACTION_REFUSED, BY_CODE, REGION_UNAVAILABLE, Error
from hsmd.pb.v1 import peers_pb2 as pb
from hsmd.pb.v1.peers_pb2_grpc import PeersStub

_SERVER_FAULT = 500
_TOLD = 300  # characters of a peer's text that are passed on

log = logging.getLogger(__name__)


def open_lines(settings: Iterable[Peer], pause: float = 0.0) -> dict[str, "GrpcLine"]:
    """The line to each peer by its region. Raises ConfigError for files that can't be read."""
    return {each.region: GrpcLine(each, pause) for each in settings}


class GrpcLine:
    """The line to one peer, for any thread; see hsmd.domain.lines.Line. Nothing is connected yet.

    After an answer that did not come in time nothing is asked for `pause` seconds: who has many things to
    ask would wait for each.
    """

    def __init__(self, settings: Peer, pause: float) -> None:
        self._region = settings.region
        self._seconds = settings.deadline_seconds
        self._pause = pause
        self._quiet_until = 0.0
        self._asking: dict[int, float] = {}  # thread → since when it has waited for an answer
        self.shared_domains = frozenset((each.theirs, each.ours) for each in settings.domains)
        options: list[tuple[str, Any]] = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 5000),  # despite its name: how long one attempt may take
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        if settings.server_name:
            options.append(("grpc.ssl_target_name_override", settings.server_name))
        credentials = grpc.ssl_channel_credentials(
            *map(_read, (settings.ca, settings.key, settings.certificate))
        )
        self._stub = PeersStub(grpc.secure_channel(settings.address, credentials, options))

    def holds(self, seconds: float) -> int:
        """How many threads have waited for an answer for so long: they are missing elsewhere."""
        before = time.monotonic() - seconds
        return sum(since < before for since in list(self._asking.values()))

    def offer(self, offer: Offer, request_id: str) -> str:
        """Make a replica; the id of its domain."""
        answer = self._ask(self._stub.AcceptReplica, peers.written_offer(offer), request_id)
        return str(answer.domain_id)

    def send(self, key_id: str, versions: Versions, current: int, request_id: str) -> bool:
        """Give it versions that it lacks."""
        request = peers.written_versions(key_id, versions, current)
        return not self._ask(self._stub.AcceptVersions, request, request_id).gone

    def hand_over(self, handover: Handover, request_id: str) -> None:
        """Make it the primary."""
        self._ask(self._stub.AcceptPrimary, peers.written_handover(handover), request_id)

    def follow(self, key_id: str, region: str, request_id: str) -> bool:
        """Tell it where the primary is."""
        request = pb.FollowPrimaryRequest(key_id=key_id, primary_region=region)
        return not self._ask(self._stub.FollowPrimary, request, request_id).gone

    def find(self, key_id: str, request_id: str) -> bool:
        """Ask whether it is there."""
        return not self._ask(self._stub.FindReplica, pb.FindReplicaRequest(key_id=key_id), request_id).gone

    def _ask(self, method: Callable[..., Any], request: Message, request_id: str) -> Any:
        if time.monotonic() < self._quiet_until:
            raise self._unavailable("it did not answer in time just now")
        thread = threading.get_ident()
        self._asking[thread] = time.monotonic()
        try:
            return method(request, timeout=self._seconds, metadata=((REQUEST_ID_KEY, request_id),))
        except grpc.RpcError as error:
            raise self._fault(error, request_id) from error
        finally:
            del self._asking[thread]

    def _fault(self, error: grpc.RpcError, request_id: str) -> Error:
        """Its refusal, or that there is none to be had. What concerns this hsmd is for the log only."""
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._quiet_until = time.monotonic() + self._pause
        code = _code(error)
        fault = BY_CODE.get(code)
        log.warning(
            "%s: region %s: %s %s", request_id, self._region, code or error.code().name, error.details()
        )
        if fault is None or fault.http >= _SERVER_FAULT:
            return self._unavailable("it does not answer" if fault is None else "it can't do it now")
        if code.startswith("APIGW") or code == ACTION_REFUSED.code:
            return self._unavailable("it refuses this hsmd")
        told = "".join(filter(str.isprintable, error.details() or ""))[:_TOLD]
        return Error(replace(fault, text="Region {region}: {told}"), region=self._region, told=told)

    def _unavailable(self, reason: str) -> Error:
        return Error(REGION_UNAVAILABLE, region=self._region, reason=reason)


def _code(error: grpc.RpcError) -> str:
    """The DEW code that stands in the status; "" when none does."""
    trailing: Any = error.trailing_metadata()  # the stubs take one for the whole
    for key, value in trailing or ():
        if key == "grpc-status-details-bin":
            try:
                details = status_pb2.Status.FromString(value).details
            except DecodeError:
                return ""
            info = error_details_pb2.ErrorInfo()
            return next((str(info.reason) for each in details if each.Unpack(info)), "")
    return ""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"peers: {path} can't be read: {error.strerror}") from error
