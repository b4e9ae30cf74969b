"""`hsmd serve` and `hsmd gateway`: which processes they are made of, and what is checked before they start.

The supervising process imports the code of all processes, so that each has it the moment it is forked; but it
opens no gRPC channel or server, and loads no PKCS#11 module: both must be made after the fork. It keeps the
PIN, in memory only, and hands it to every process it starts; with a seal, from when operators unseal until
they seal (sealing.py).
"""

import gc
import logging
import os
import ssl
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from hsmd import counting, sealfile
from hsmd import store as stores
from hsmd.config import ConfigError, Grpc, Settings, admin_door
from hsmd.daemon import keystores, logs, notary, traces, wiring
from hsmd.daemon.seal_line import SealLine
from hsmd.daemon.sealing import LastFailure, SealedSupervisor
from hsmd.daemon.supervisor import Body, Ready, Supervisor, harden, reserved_port, run_once
from hsmd.daemon.vault import Vault
from hsmd.domain import external
from hsmd.domain.board import Board
from hsmd.domain.core import TOKEN_KEYS
from hsmd.errors import Error
from hsmd.hsm import Token, pair_probe
from hsmd.idp import open_providers
from hsmd.store import roots

Pins = Callable[[], wiring.Pin]  # asked after the fork: the supervising process of a seal keeps none

log = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """The daemon, until SIGTERM or SIGINT; the exit code. Raises ConfigError before anything was started."""
    logs.configure(settings.log, "supervisor")
    harden()
    traces.check(settings.tracing)
    path = settings.seal.file
    pin = wiring.read_pins(settings) if path is None else wiring.no_pins(settings)
    keystores.backings(settings, pin)  # their addresses are looked at
    for listener in settings.grpc.unix:
        wiring.socket_mode(listener)
        wiring.socket_path(listener, 0)
    grpc = settings.grpc
    with (
        notary.only_daemon(settings.audit),
        reserved_port(grpc.address, grpc.port, "grpc"),
        _admin_port(settings),
        _metrics_port(settings, settings.metrics.port),
    ):
        _load()
        if path is not None:
            return _serve_sealed(settings, path)
        code = run_once(partial(_prepare, settings, lambda: pin))
        bodies = _serving(settings, lambda: pin, _shared(settings), None)
        metrics = _metrics(settings, bodies, of_gateway=False)
        place = f"{grpc.address} port {grpc.port}"
        return code or Supervisor(bodies, grpc.grace_seconds, place, metrics).run()


def _load() -> None:
    """Do once what each process would else do after its fork: importing takes the longest of a start."""
    os.environ["GRPC_SSL_CIPHER_SUITES"] = _TLS_1_2_SUITES  # read when gRPC is loaded
    from hsmd.daemon import keeping, sealed, warden, worker  # noqa: F401 -- only to have them

    pair_probe.trial_key()
    gc.freeze()  # a collection would copy the pages that the forks share


def _serve_sealed(settings: Settings, path: Path) -> int:
    """The daemon that begins without a PIN."""
    line, vault, shared = SealLine(), Vault(), _shared(settings)

    def pins() -> wiring.Pin:
        return vault.pins(settings)

    def forget() -> None:
        """What is there all the time must not know what sealing is to wipe, nor ask for anything."""
        vault.wipe()
        line.leave()

    code = run_once(partial(_prepare_sealed, settings, path))
    supervisor = SealedSupervisor(
        settings,
        line,
        vault,
        sealed=partial(_sealed, settings, path, shared, line),
        serving=partial(_serving, settings, pins, shared, line),
        check=partial(_check, settings, pins, line),
        lasting=_metrics(settings, _names(settings), forget, of_gateway=False),
    )
    return code or supervisor.run()


def _shared(settings: Settings) -> wiring.Shared:
    return wiring.Shared(board=Board(_names(settings)))


def _names(settings: Settings) -> list[str]:
    return [*(f"worker-{index}" for index in range(_workers(settings))), "warden"]


def _workers(settings: Settings) -> int:
    return settings.grpc.workers or os.cpu_count() or 1


def _serving(settings: Settings, pins: Pins, shared: wiring.Shared, line: SealLine | None) -> dict[str, Body]:
    """The processes that serve. `shared` is made before the forks: all of them have the same memory."""
    total = _workers(settings)
    bodies: dict[str, Body] = {
        f"worker-{index}": partial(_work, settings, pins, shared, index, total, line)
        for index in range(total)
    }
    bodies["warden"] = partial(_ward, settings, pins, shared, line)
    return bodies


def _sealed(
    settings: Settings, path: Path, shared: wiring.Shared, line: SealLine, failure: LastFailure
) -> dict[str, Body]:
    """The processes of a sealed daemon."""
    total = _workers(settings)
    bodies: dict[str, Body] = {
        f"worker-{index}": partial(_work_sealed, settings, shared, index, total, line)
        for index in range(total)
    }
    bodies["warden"] = partial(_ward_sealed, settings, path, line, failure)
    return bodies


def serve_gateway(read: Callable[[], Settings]) -> int:
    """The gateway's processes, until SIGTERM or SIGINT; the exit code. Raises ConfigError.

    On SIGHUP the settings are read again, for the log's level.
    """
    settings = read()
    gateway = settings.gateway
    logs.configure(settings.log, "gateway")
    level = logs.SharedLevel(settings.log)
    harden()  # requests and answers hold plaintexts, and its TLS key is in memory
    traces.check(settings.tracing)
    total = gateway.workers or os.cpu_count() or 1
    bodies: dict[str, Body] = {
        f"gateway-{index}": partial(_forward, settings, f"gateway-{index}", level) for index in range(total)
    }
    place = f"{gateway.address} port {gateway.port}"
    with (
        reserved_port(gateway.address, gateway.port, "gateway"),
        _metrics_port(settings, settings.metrics.gateway_port),
    ):
        from hsmd.gateway import server  # noqa: F401 -- once for all of them, like _load

        gc.freeze()
        code = run_once(partial(_check_metrics, settings)) if settings.metrics.enabled else 0
        metrics = _metrics(settings, bodies, of_gateway=True)
        reload = partial(_reload, read, level)
        return code or Supervisor(bodies, gateway.grace_seconds, place, metrics, reload).run()


def _reload(read: Callable[[], Settings], level: logs.SharedLevel) -> None:
    try:
        level.change(read().log)
    except ConfigError as error:
        log.error("the log's level stays as it is: %s", error)  # noqa: TRY400  # the reason says it all
    level.tend()


def _metrics(
    settings: Settings, names: Iterable[str], forget: Callable[[], None] = lambda: None, *, of_gateway: bool
) -> dict[str, Body]:
    """The process that tells the metrics, where they are wanted. From now on those of these names count."""
    if not settings.metrics.enabled:
        return {}
    counting.prepare(("supervisor", *names, "metrics"))
    return {"metrics": partial(_tell_metrics, settings, forget, of_gateway)}


def _prepare(settings: Settings, pins: Pins, _ready: Ready) -> int:
    """Check, once and in a process of its own, what every process needs: certificates, token, store."""
    _check_certificates(settings)
    _check_metrics(settings)
    external.check(settings)
    open_providers(settings)
    token = wiring.open_token(settings.hsm, pins())
    try:
        there = _connects(token)
        if settings.store.url.startswith("sqlite"):
            stores.upgrade(settings.store.url)  # not beside a token without our keys
        if there:
            wiring.check_seals(settings, token)
            notary.ensure_key(settings.audit, token)
    finally:
        token.close()
    return 0


def _prepare_sealed(settings: Settings, path: Path, _ready: Ready) -> int:
    """The same as far as it goes without a PIN."""
    _check_certificates(settings)
    _check_metrics(settings)
    external.check(settings)
    open_providers(settings)
    wiring.open_token(settings.hsm, wiring.no_pins(settings))
    sealfile.read(path)
    return 0


def _check(settings: Settings, pins: Pins, line: SealLine, ready: Ready) -> int:
    """Try the PINs before anything is served with them."""
    line.leave()
    logs.configure(settings.log, "unseal")
    return _prepare(settings, pins, ready)


def _connects(token: Token) -> bool:
    """Whether the token is there. Raises ConfigError for one without our keys, TokenRefused."""
    try:
        token.connect()
        labels = set(token.labels())
        missing = sorted(set(TOKEN_KEYS) - labels)
        if any(map(roots.number, labels)):  # which of them is due stands in the store
            missing = [each for each in missing if not roots.number(each)]
    except Error as error:
        log.warning("starting without the token: %s", error)
        return False
    if missing:
        raise ConfigError(f"the token lacks {', '.join(missing)}: a wrong token, or `hsmd init` is due")
    return True


def _admin_port(settings: Settings) -> AbstractContextManager[None]:
    own = settings.admin
    return reserved_port(own.address, own.port, "admin") if own.enabled else nullcontext()


def _metrics_port(settings: Settings, port: int) -> AbstractContextManager[None]:
    own = settings.metrics
    return reserved_port(own.address, port, "metrics") if own.enabled else nullcontext()


def _check_metrics(settings: Settings, _ready: Ready | None = None) -> int:
    if settings.metrics.enabled:
        from hsmd.daemon import scraping  # the supervising process does not scrape

        scraping.tls_context(settings.metrics)
    return 0


def _check_certificates(settings: Settings) -> None:
    grpc = settings.grpc
    _check_pair("grpc", grpc.certificate, grpc.key, grpc.client_ca)
    for index, peer in enumerate(settings.peers):
        _check_pair(f"peers[{index}]", peer.certificate, peer.key, peer.ca)
    _check_revocations(grpc)
    if settings.admin.enabled:
        door = admin_door(settings)
        _check_pair("admin", door.certificate, door.key, door.client_ca)
        _check_revocations(door)


def _check_revocations(door: Grpc) -> None:
    if door.client_crl is not None:
        from hsmd.api import revocation_list  # loaded: see _load

        revocation_list.check_file(door.client_crl, door.client_ca)


def _check_pair(table: str, certificate: Path, key: Path, ca: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(ca)
    except (OSError, ssl.SSLError) as error:
        names = f"{certificate}, {key}, {ca}"
        raise ConfigError(f"{table}: the certificates can't be used ({names}): {error}") from error


# Of TLS 1.2, which gRPC for Python can't be told to refuse; those of TLS 1.3 are all good (decision 7).
_TLS_1_2_SUITES = ":".join(
    f"ECDHE-{key}-{cipher}"
    for cipher in ("AES256-GCM-SHA384", "AES128-GCM-SHA256", "CHACHA20-POLY1305")
    for key in ("ECDSA", "RSA")
)


def _work(
    settings: Settings,
    pins: Pins,
    shared: wiring.Shared,
    index: int,
    total: int,
    line: SealLine | None,
    ready: Ready,
) -> int:
    from hsmd.daemon import worker  # loaded: see _load

    if line is not None:
        line.leave()
    logs.configure(settings.log, f"worker-{index}")
    with traces.exported(settings.tracing, "", f"worker-{index}"):
        return worker.run(settings, pins(), shared, index, total, ready)


def _ward(settings: Settings, pins: Pins, shared: wiring.Shared, line: SealLine | None, ready: Ready) -> int:
    from hsmd.daemon import keeping, warden  # loaded: see _load

    logs.configure(settings.log, "warden")
    pin, path = pins(), settings.seal.file
    seal = keeping.keeper(path, pin, line) if line is not None and path is not None else None
    with traces.exported(settings.tracing, "", "warden"):
        return warden.run(settings, pin, shared, ready, seal)


def _work_sealed(
    settings: Settings, shared: wiring.Shared, index: int, total: int, line: SealLine, ready: Ready
) -> int:
    from hsmd.daemon import sealed  # loaded: see _load

    line.leave()
    logs.configure(settings.log, f"worker-{index}")
    return sealed.SealedWorker(settings, wiring.no_pins(settings), shared, index, total).run(ready)


def _ward_sealed(settings: Settings, path: Path, line: SealLine, failure: LastFailure, ready: Ready) -> int:
    from hsmd.daemon import sealed  # loaded: see _load

    line.enter()
    logs.configure(settings.log, "warden")
    return sealed.ward(settings, path, line, failure(), ready)


def _tell_metrics(settings: Settings, forget: Callable[[], None], of_gateway: bool, ready: Ready) -> int:
    from hsmd.daemon import exposition, scraping  # of no use to others

    forget()
    logs.configure(settings.log, "metrics")
    own = settings.metrics
    shown = exposition.Exposition(
        exposition.certificates(settings, of_gateway=of_gateway), of_gateway=of_gateway
    )
    return scraping.run(own, own.gateway_port if of_gateway else own.port, shown, ready)


def _forward(settings: Settings, name: str, level: logs.SharedLevel, ready: Ready) -> int:
    from hsmd.gateway import server  # loaded: see serve_gateway

    logs.configure(settings.log, name)
    level.tend()
    with traces.exported(settings.tracing, "-gateway", name):
        return server.run(settings, ready, level.tend)
