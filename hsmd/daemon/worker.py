"""A worker: gRPC servers on the shared port and the local sockets, over a token login of its own."""

import logging
import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import grpc

from hsmd import metrics
from hsmd.api import evidence, server
from hsmd.api.health import Health
from hsmd.api.node import Node, Setup
from hsmd.api.patience import Patience
from hsmd.api.pipeline import Pipeline
from hsmd.api.pool import Pool
from hsmd.api.revocation_list import RevocationList
from hsmd.api.service import Process, Status
from hsmd.config import ConfigError, Settings, UnixListener, admin_door
from hsmd.daemon import keystores, logs, watch, wiring
from hsmd.daemon.measuring import measure
from hsmd.daemon.showing import show
from hsmd.daemon.supervisor import EX_FAILED
from hsmd.domain.readiness import PARTS, Readiness
from hsmd.errors import Error

_WATCH_SECONDS = 0.25
_MESSAGE_SECONDS = 10.0  # for a call's message to arrive, unless the deadline of calls is nearer

log = logging.getLogger(__name__)


class Worker:
    """One serving process, from start to drain."""

    def __init__(
        self, settings: Settings, pin: wiring.Pin, shared: wiring.Shared, index: int, total: int
    ) -> None:
        self._settings = settings
        self._index = index
        self._name = f"worker-{index}"
        pool = Pool(settings.grpc.threads, settings.grpc.threads + settings.grpc.waiting_calls)
        self._pool = pool
        self._patience = Patience(pool, min(_MESSAGE_SECONDS, settings.grpc.deadline_seconds))
        self._core = wiring.open_core(settings, pin, pool.have_spares, shared)
        self._core.board.sit(self._name)
        self._levels = logs.Levels(self._core.board)
        self._core.keystores = keystores.backings(settings, pin)
        self._core.audit_directory = settings.audit.directory
        self._audit = wiring.open_audit(settings, self._name)
        self._health = Health(server.needs())
        self._readiness = Readiness(self._core, self._audit)
        self._owners = (
            Status(Process(self._name, total, wiring.now_millis(), pin.source)),
            Node(_setup(settings)),
        )
        self._stopping = threading.Event()
        self._servers: list[grpc.Server] = []
        self._pipelines: list[Pipeline] = []

    def run(self, ready: Callable[[], None]) -> int:
        """Serve until SIGTERM; calls in flight finish within the grace time. Returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stopping.set())
        core = self._core
        core.store.check()
        try:
            core.token.connect()
        except Error as error:  # away: serve refusals until it is there
            log.warning("%s", error)
        self._readiness.begin(self._stopping)
        keystores.connect(core)
        core.providers.start()
        self._open()
        self._show(self._readiness.failing())
        ready()
        while not self._stopping.wait(_WATCH_SECONDS):
            self._show(self._readiness.failing())
            self._tend()
            self._pool.have_spares(keystores.held(core), "keystores' HSMs are slow")
            waiting = sum(each.holds(_WATCH_SECONDS) for each in core.peers.values())
            self._pool.have_spares(waiting, "peer regions are slow")
            if watch.hopeless(core.token):
                return EX_FAILED
        grace = self._settings.grpc.grace_seconds
        watch.part(partial(self._drain, grace), grace + watch.PARTING_SECONDS)
        return 0

    def _show(self, failing: frozenset[str]) -> None:
        self._health.tell(failing)
        show(self._core, failing)
        self._levels.tend()
        measure(self._core, self._audit)

    def _tend(self) -> None:
        """End what takes too long, and say how much is under way."""
        self._patience.tend()
        for each in self._pipelines:
            each.tend()
        metrics.CALLS_RUNNING.set(sum(each.running for each in self._pipelines))
        metrics.CALLS_QUEUED.set(self._pool.queued)

    def _open(self) -> None:
        settings = self._settings.grpc
        regions = {name: peer.region for peer in self._settings.peers for name in peer.names}
        revoked = None
        if settings.client_crl is not None:
            grace = timedelta(hours=settings.client_crl_grace_hours)
            revoked = RevocationList(settings.client_crl, settings.client_ca, grace)
            self._core.check_certificate = revoked.check_mark
        gateways = frozenset(settings.gateways)
        main = self._server(
            evidence.tls(self._core, gateways, regions, revoked), evidence.traces_of(gateways)
        )
        address = f"[{settings.address}]" if ":" in settings.address else settings.address
        try:
            main.add_secure_port(f"{address}:{settings.port}", server.server_credentials(settings))
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"grpc: can't listen on {address}:{settings.port}: {error}") from error
        for listener in settings.unix:
            if wiring.WORKER_MARK in listener.path or self._index == 0:
                self._open_socket(listener)
        for each in self._servers:
            each.start()

    def _open_socket(self, listener: UnixListener) -> None:
        one = self._server(evidence.socket(self._core, listener))
        with wiring.socket_at(listener, self._index) as address:
            one.add_insecure_port(address)

    def _server(self, meet: evidence.Meet, trace: evidence.Trace = evidence.no_trace) -> grpc.Server:
        settings = self._settings
        pipeline = Pipeline(
            self._core,
            self._audit,
            meet,
            process=self._name,
            deadline=settings.grpc.deadline_seconds,
            trace=trace,
        )
        one = server.build(
            pipeline, self._patience, self._health, self._owners, settings.grpc, settings.limits.message_bytes
        )
        self._servers.append(one)
        self._pipelines.append(pipeline)
        return one

    def _drain(self, grace: float) -> None:
        self._health.tell(PARTS)
        for done in [each.stop(grace) for each in self._servers]:
            done.wait()
        for each in self._pipelines:  # gRPC has ended what was left; its record is still due
            each.end_running()
        self._audit.close()
        self._core.store.close()
        self._core.token.close()
        keystores.close(self._core)


def _setup(settings: Settings) -> Setup:
    certificates = {"grpc": settings.grpc.certificate, "grpc client_ca": settings.grpc.client_ca}
    if settings.admin.enabled:
        door = admin_door(settings)
        certificates |= {"admin": door.certificate, "admin client_ca": door.client_ca}
    return Setup(certificates, settings.log.level, settings.seal.file is not None)


def run(
    settings: Settings,
    pin: wiring.Pin,
    shared: wiring.Shared,
    index: int,
    total: int,
    ready: Callable[[], None],
) -> int:
    """A worker's whole life. Raises ConfigError and TokenRefused at its start."""
    return Worker(settings, pin, shared, index, total).run(ready)
