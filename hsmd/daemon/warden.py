"""The warden: one a node, carries out what is due; each job under a lease, so that many nodes can run.

The jobs (`jobs.py`) have threads of their own. One that is stuck inside the HSM's module may hold the store's
write lock, and only the end of the process gives that back: so the main thread stays free to leave.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from hsmd import __version__
from hsmd.api.pool import Pool
from hsmd.audit import Log
from hsmd.audit.records import of_log
from hsmd.config import Settings, digest
from hsmd.daemon import forwarding, jobs, keystores, logs, restoring, watch, wiring
from hsmd.daemon.measuring import measure
from hsmd.daemon.notary import Notary
from hsmd.daemon.showing import show
from hsmd.daemon.supervisor import EX_FAILED
from hsmd.domain.backups import Workshop
from hsmd.domain.core import Core
from hsmd.domain.readiness import Readiness
from hsmd.domain.sealing import Keeper
from hsmd.errors import Error

_WATCH_SECONDS = 0.25
_KEEP_SECONDS = 5.0  # between looks whether the seal is in step
_AUDIT_SECONDS = 5.0
if TYPE_CHECKING:
    from hsmd.daemon.admin import AdminDoor

_PEER_PAUSE = 60.0  # for a peer that hangs: other keys are waiting
_STUCK_PATIENCE = timedelta(seconds=5)  # in the midst of a job: all who change anything wait for it

log = logging.getLogger(__name__)


def run(
    settings: Settings,
    pin: wiring.Pin,
    shared: wiring.Shared,
    ready: Callable[[], None],
    seal: Keeper | None = None,
) -> int:
    """Do the jobs round by round until SIGTERM; the exit code. Raises ConfigError and TokenRefused.

    `seal` is that of a daemon which operators have unsealed.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    return _Warden(settings, pin, shared, seal, stopping).run(ready)


class _Warden:
    """The process's parts, and their threads."""

    def __init__(
        self,
        settings: Settings,
        pin: wiring.Pin,
        shared: wiring.Shared,
        seal: Keeper | None,
        stopping: threading.Event,
    ) -> None:
        self._settings = settings
        self._stopping = stopping
        self._pool = pool = _pool(settings)
        spares = pool.have_spares if pool else _alone
        self._core = core = wiring.open_core(settings, pin, spares, shared, pause=_PEER_PAUSE)
        core.board.sit("warden")
        self._levels = logs.Levels(core.board)
        core.keystores = keystores.backings(settings, pin)
        core.backups = Workshop(restoring.place(settings))
        core.seal = seal
        core.audit_directory = settings.audit.directory
        self._audit = wiring.open_audit(settings, "warden")
        self._readiness = Readiness(core, self._audit)
        self._notary = Notary(settings.audit, core.token)
        holder = f"{socket.gethostname()}:{os.getpid()}"
        # A keystore's token may hold the thread that uses it: so each has its own.
        self._jobs = [
            jobs.Jobs(core, self._audit, holder, each, settings.jobs)
            for each in (jobs.OF_ALL, *map(jobs.of_keystore, core.keystores))
        ]
        self._forwarders = forwarding.threads(settings.audit, stopping)
        self._threads = [
            *(self._thread("jobs", each.run) for each in self._jobs),
            *([self._thread("seal", partial(_keep, seal, core))] if seal is not None else []),
            self._thread("notary", self._notary.run),
        ]

    def _thread(self, name: str, work: Callable[[threading.Event], None]) -> threading.Thread:
        return threading.Thread(target=work, args=(self._stopping,), daemon=True, name=name)

    def run(self, ready: Callable[[], None]) -> int:
        """Serve until told to stop; the exit code."""
        core = self._core
        core.store.check()
        keystores.report_strays(core)
        try:
            core.token.connect()
        except Error as error:
            log.warning("%s", error)
        self._readiness.begin(self._stopping)
        keystores.connect(core)
        record_start(self._audit, self._settings)
        door = _door(self._settings, core, self._audit, self._pool)
        if door is not None:
            door.open(self._readiness.failing())
        ready()
        for thread in (*self._threads, *self._forwarders):
            thread.start()
        if not self._watch(door):
            return EX_FAILED
        seconds = self._settings.grpc.grace_seconds + watch.PARTING_SECONDS
        watch.part(lambda: self._close(door), seconds)
        return 0

    def _watch(self, door: "AdminDoor | None") -> bool:
        """Until told to stop; False where only the end of the process frees what the HSM's module holds."""
        core, notary = self._core, self._notary
        while not self._stopping.wait(_WATCH_SECONDS):
            failing = self._readiness.failing()  # which the log is told, with a door or without
            if door is not None:
                door.tend(failing)
            show(
                core,
                failing,
                unsigned=notary.unsigned,
                unsigned_since=int(notary.since * 1000),
                due=sum(each.due for each in self._jobs),
            )
            self._levels.tend()
            measure(core, self._audit)
            at_work = any(each.at_work for each in self._jobs)
            if watch.hopeless(core.token, _STUCK_PATIENCE if at_work else watch.PATIENCE):
                return False
        return True

    def _close(self, door: "AdminDoor | None") -> None:
        if door is not None:
            door.close()
        for thread in self._threads:
            thread.join()
        self._audit.close()
        self._notary.part(self._settings.grpc.grace_seconds)
        forwarding.part(self._forwarders)
        self._core.store.close()
        self._core.token.close()
        keystores.close(self._core)


def record_start(audit: Log, settings: Settings) -> None:
    """The record of the configuration that counts from now on, by its hash."""
    detail = {"sha256": digest(settings), "version": __version__}
    try:
        audit.append(of_log("loadConfiguration", "warden", detail), timeout=_AUDIT_SECONDS)
    except Error as error:  # calls will be refused, too, until it can be written
        log.error("the start is not recorded: %s", error)  # noqa: TRY400  # the reason says it all


def _keep(seal: Keeper, core: Core, stopping: threading.Event) -> None:
    """Keep the seal in step with the registry, from the moment that the HSM has taken the PIN."""
    while not stopping.is_set():
        if core.token.status().state == "connected":
            try:
                seal.keep(core)
            except Exception:
                log.exception("the seal can't be kept; the next round tries again")
        stopping.wait(_KEEP_SECONDS)


def _pool(settings: Settings) -> Pool | None:
    """The threads of the administrators' door, where there is one."""
    own = settings.admin
    return Pool(own.threads, own.threads + wiring.SPARE_ADMINISTRATORS) if own.enabled else None


def _door(settings: Settings, core: Core, audit: Log, pool: Pool | None) -> "AdminDoor | None":
    if pool is None:
        return None
    from hsmd.daemon.admin import AdminDoor  # gRPC, where there is use for it

    return AdminDoor(settings, core, audit, pool)


def _alone(_count: int) -> None:
    """Nobody waits for threads that are stuck: the jobs have their own."""
