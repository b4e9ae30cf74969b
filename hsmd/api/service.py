"""Servicer of service.proto: API versions, and the daemon's state."""

from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from hsmd import __version__
from hsmd.api.convert import timestamp
from hsmd.domain.core import Call, Core
from hsmd.errors import NO_SUCH_API, Error
from hsmd.hsm import TokenStatus
from hsmd.keyring import with_token_key
from hsmd.pb.v1 import service_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Service"]
_VERSIONS = ("v1.0", "v2")
_UPDATED = "2026-11-21T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Process:
    """What a process knows of itself. `started` in ms since 1970."""

    worker: str
    workers: int
    started: int
    pin_source: str


class Status:
    """The one method that tells of this very process."""

    SERVICE = SERVICE

    def __init__(self, process: Process) -> None:
        self._process = process

    def get_status(self, call: Call, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        """State of the daemon that answers."""
        core, process = call.core, self._process
        token = core.token.status()
        connected = token.state == "connected"
        return pb.GetStatusResponse(
            version=__version__,
            region=core.region,
            started=timestamp(process.started),
            worker=process.worker,
            workers=process.workers,
            token=_token(token),
            capabilities=[
                pb.GetStatusResponse.Capability(name=each.name, available=each.available, detail=each.detail)
                for each in core.token.capabilities
            ],
            store=core.store.describe(),
            loaded_keys=len(core.keyring),
            pin_source=process.pin_source,
            root_key=_root_key(core) if connected else "unknown",
            keystores=[
                pb.GetStatusResponse.Keystore(cluster_id=name, token=_token(each.token.status()))
                for name, each in core.keystores.items()
                if call.caller.domain_id in each.domains
            ],
        )


def list_versions(call: Call, request: pb.ListVersionsRequest) -> pb.ListVersionsResponse:
    """DEW: GET /."""
    return pb.ListVersionsResponse(versions=[_version(name) for name in _VERSIONS])


def show_version(call: Call, request: pb.ShowVersionRequest) -> pb.ShowVersionResponse:
    """DEW: GET /{version_id}."""
    if request.version_id not in _VERSIONS:
        raise Error(NO_SUCH_API, verb="GET", path=f"/{request.version_id}")
    return pb.ShowVersionResponse(version=_version(request.version_id))


def _root_key(core: Core) -> str:
    label = core.root_label()
    return f"{label} {with_token_key(core.token, label, core.token.check_value)}"


def _token(token: TokenStatus) -> pb.GetStatusResponse.Token:
    since = Timestamp()
    since.FromDatetime(token.since)
    return pb.GetStatusResponse.Token(
        label=token.label,
        serial=token.serial,
        model=token.model,
        module=token.module,
        state=token.state,
        since=since,
        detail=token.detail,
    )


def _version(name: str) -> pb.Version:
    link = pb.Version.Link(href=f"/{name}", rel="self")
    return pb.Version(id=name, links=[link], version="", status="CURRENT", updated=_UPDATED, min_version="")
