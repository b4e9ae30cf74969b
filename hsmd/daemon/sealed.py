"""The processes of a sealed daemon: workers that refuse, and a warden that takes shares.

They load no PKCS#11 module and read nothing of the store, and they were forked when there was no PIN.
"""

import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hsmd import metrics
from hsmd.api.pool import Pool
from hsmd.config import Settings
from hsmd.daemon import forwarding, seal_line, watch, wiring
from hsmd.daemon.admin import AdminDoor
from hsmd.daemon.keeping import outcome
from hsmd.daemon.seal_line import SealLine
from hsmd.daemon.sealing import Failure
from hsmd.daemon.warden import record_start
from hsmd.daemon.worker import Worker
from hsmd.domain.readiness import PARTS
from hsmd.domain.sealing import Unsealing

_WATCH_SECONDS = 0.25
_TRIED_SECONDS = 120.0  # for the PINs to be tried: the token is connected, the store may be upgraded


class SealedWorker(Worker):
    """A worker that refuses, on the port and on its sockets; each refusal is on record like any other."""

    def run(self, ready: Callable[[], None]) -> int:
        """Refuse until SIGTERM. Returns the exit code. Raises ConfigError."""
        stopping = _stopping()
        self._core.sealed = True
        self._open()
        ready()
        while not stopping.wait(_WATCH_SECONDS):
            self._tend()
            metrics.measure_process()
        watch.part(partial(self._drain, 0.0), watch.PARTING_SECONDS)  # nothing is under way that would matter
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
    record_start(audit, settings)
    door = AdminDoor(settings, core, audit, pool)
    forwarders = forwarding.threads(settings.audit, stopping)
    door.open(PARTS)
    for each in forwarders:
        each.start()
    ready()
    while not stopping.wait(_WATCH_SECONDS):
        door.tend(PARTS)
        metrics.measure_process()

    def close() -> None:
        door.close()
        audit.close()
        forwarding.part(forwarders)

    watch.part(close, settings.grpc.grace_seconds + watch.PARTING_SECONDS)
    return 0


def _stopping() -> threading.Event:
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    return stopping
