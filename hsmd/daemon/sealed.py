"""The processes of a sealed daemon: workers that refuse, and a warden that takes shares.

They load no PKCS#11 module and read nothing of the store, and they were forked when there was no PIN.
"""

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import grpc

from hsmd import metrics
from hsmd.api import sealed, server
from hsmd.api.patience import Patience
from hsmd.api.pool import Pool
from hsmd.config import ConfigError, Settings, UnixListener
from hsmd.daemon import seal_line, watch, wiring
from hsmd.daemon.admin import AdminDoor
from hsmd.daemon.keeping import outcome
from hsmd.daemon.seal_line import SealLine
from hsmd.daemon.sealing import Failure
from hsmd.domain.readiness import PARTS
from hsmd.domain.sealing import Unsealing

_WATCH_SECONDS = 0.25
_MESSAGE_SECONDS = 10.0
_TRIED_SECONDS = 120.0  # for the PINs to be tried: the token is connected, the store may be upgraded
_THREADS = 4

log = logging.getLogger(__name__)


def work(settings: Settings, index: int, ready: Callable[[], None]) -> int:
    """A worker's life while sealed: it refuses, on the port and on its sockets. Raises ConfigError."""
    stopping = _stopping()
    pool = Pool(_THREADS, _THREADS + settings.grpc.waiting_calls)
    patience = Patience(pool, _MESSAGE_SECONDS)
    servers = [sealed.build(patience, settings.grpc)]
    door = settings.grpc
    address = f"[{door.address}]" if ":" in door.address else door.address
    try:
        servers[0].add_secure_port(f"{address}:{door.port}", server.server_credentials(door))
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"grpc: can't listen on {address}:{door.port}: {error}") from error
    for listener in door.unix:
        if wiring.WORKER_MARK in listener.path or index == 0:
            servers.append(_on_socket(settings, patience, listener, index))
    for each in servers:
        each.start()
    ready()
    while not stopping.wait(_WATCH_SECONDS):
        patience.tend()
        metrics.measure_process()
    for done in [each.stop(0) for each in servers]:
        done.wait()
    return 0


def ward(settings: Settings, path: Path, line: SealLine, failure: Failure, ready: Callable[[], None]) -> int:
    """The warden's life while sealed: it takes shares at the administrators' door. Raises ConfigError."""
    stopping = _stopping()
    pool = Pool(settings.admin.threads, settings.admin.threads + wiring.SPARE_ADMINISTRATORS)
    core = wiring.open_core(settings, wiring.no_pins(settings))
    core.sealed = True
    core.seal = Unsealing(
        path,
        lambda seal_id, pins: outcome(line.ask(seal_line.UNSEAL, seal_id, pins, seconds=_TRIED_SECONDS)),
        seconds=settings.seal.attempt_minutes * 60,
        failure=failure.why,
        refused=failure.refused,
    )
    audit = wiring.open_audit(settings, "warden")
    door = AdminDoor(settings, core, audit, pool)
    door.open(PARTS)
    ready()
    while not stopping.wait(_WATCH_SECONDS):
        door.tend(PARTS)
        metrics.measure_process()

    def close() -> None:
        door.close()
        audit.close()

    watch.part(close, settings.grpc.grace_seconds + watch.PARTING_SECONDS)
    return 0


def _stopping() -> threading.Event:
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    return stopping


def _on_socket(settings: Settings, patience: Patience, listener: UnixListener, index: int) -> grpc.Server:
    one = sealed.build(patience, settings.grpc)
    with wiring.socket_at(listener, index) as address:
        one.add_insecure_port(address)
    return one
