"""Servicer of node.proto."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from cryptography import x509

from hsmd.api.convert import timestamp
from hsmd.domain import node
from hsmd.domain.board import Loudness, Seat
from hsmd.domain.core import Call
from hsmd.domain.readiness import parts_of
from hsmd.hsm import STATES
from hsmd.pb.v1 import node_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Node"]
_UNREADABLE = -1


@dataclass(frozen=True, slots=True)
class Setup:
    """What a node is made of. `certificates` are PEM files by what they are for."""

    certificates: Mapping[str, Path]
    log_level: str
    sealable: bool


class Node:
    """Tells of all processes of the node."""

    SERVICE = SERVICE

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def show_node(self, call: Call, request: pb.ShowNodeRequest) -> pb.ShowNodeResponse:
        """All processes, and what lags."""
        seats = call.core.board.look()
        processes = [_process(each) for each in seats]
        since = max((each.unsigned_since for each in seats if each.unsigned), default=0)
        loud = call.core.board.posted()
        return pb.ShowNodeResponse(
            state="serving" if all(each.ready for each in processes) else "degraded",
            processes=processes,
            unsigned_records=sum(each.unsigned for each in seats),
            unsigned_seconds=max(monotonic() - since / 1000, 0.0) if since else 0.0,
            due=sum(each.due for each in seats),
            seal="unsealed" if self._setup.sealable else "none",
            log_level=_spelled(loud) if loud else self._setup.log_level,
            python=platform.python_version(),
            protocol=SERVICE.file.package,
            certificates=[
                pb.ShowNodeResponse.Certificate(name=name, days=_days_left(path))
                for name, path in self._setup.certificates.items()
            ],
        )


def set_log_level(call: Call, request: pb.SetLogLevelRequest) -> pb.SetLogLevelResponse:
    """Log more or less for a while."""
    loud = node.set_log_level(call, request.level, request.logger, request.seconds)
    return pb.SetLogLevelResponse(log_level=_spelled(loud), until=timestamp(loud.until))


def _spelled(loud: Loudness) -> str:
    level = next(name for name in node.LEVELS if node.number_of(name) == loud.level)
    return f"{loud.logger} {level}"


def _process(seat: Seat) -> pb.ShowNodeResponse.Process:
    failing = parts_of(seat.failing)
    return pb.ShowNodeResponse.Process(
        name=seat.name,
        pid=seat.pid,
        started=timestamp(seat.started) if seat.started else None,
        ready=seat.ready and not failing,
        failing=failing,
        token=STATES[seat.token] if seat.pid else "",
        running=seat.running,
        answered=seat.answered,
        refused=seat.refused,
        failed=seat.failed,
        loaded_keys=seat.loaded_keys,
        latency=seat.latency,
    )


def _days_left(path: Path) -> int:
    try:
        ends = min(each.not_valid_after_utc for each in x509.load_pem_x509_certificates(path.read_bytes()))
    except (OSError, ValueError):
        return _UNREADABLE
    return (ends - datetime.now(UTC)).days
