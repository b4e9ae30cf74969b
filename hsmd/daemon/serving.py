"""`hsmd serve` and `hsmd gateway`: which processes they are made of, and what is checked before they start.

The supervising process loads neither gRPC nor the PKCS#11 module. It keeps the PIN, in memory only, and
hands it to every process it starts.
"""

import logging
import os
import ssl
from functools import partial
from pathlib import Path

from hsmd import store as stores
from hsmd.config import ConfigError, Settings
from hsmd.daemon import keystores, logs, notary, wiring
from hsmd.daemon.supervisor import Body, Ready, Supervisor, harden, reserved_port, run_once
from hsmd.domain import external
from hsmd.domain.core import TOKEN_KEYS
from hsmd.domain.rates import Buckets
from hsmd.errors import Error
from hsmd.hsm import Token
from hsmd.idp import open_providers

log = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """The daemon, until SIGTERM or SIGINT; the exit code. Raises ConfigError before anything was started."""
    logs.configure(settings.log, "supervisor")
    harden()
    pin = wiring.read_pins(settings)
    keystores.backings(settings, pin)  # their addresses are looked at
    for listener in settings.grpc.unix:
        wiring.socket_mode(listener)
        wiring.socket_path(listener, 0)
    total = settings.grpc.workers or os.cpu_count() or 1
    rates = Buckets()  # before the forks: all workers count in the same memory
    bodies: dict[str, Body] = {
        f"worker-{index}": partial(_work, settings, pin, rates, index, total) for index in range(total)
    }
    bodies["warden"] = partial(_ward, settings, pin)
    grpc = settings.grpc
    with notary.only_daemon(settings.audit), reserved_port(grpc.address, grpc.port, "grpc"):
        code = run_once(partial(_prepare, settings, pin))
        place = f"{grpc.address} port {grpc.port}"
        return code or Supervisor(bodies, grpc.grace_seconds, place).run()


def serve_gateway(settings: Settings) -> int:
    """The gateway's processes, until SIGTERM or SIGINT; the exit code. Raises ConfigError."""
    gateway = settings.gateway
    logs.configure(settings.log, "gateway")
    harden()  # requests and answers hold plaintexts, and its TLS key is in memory
    total = gateway.workers or os.cpu_count() or 1
    bodies: dict[str, Body] = {
        f"gateway-{index}": partial(_forward, settings, f"gateway-{index}") for index in range(total)
    }
    with reserved_port(gateway.address, gateway.port, "gateway"):
        return Supervisor(bodies, gateway.grace_seconds, f"{gateway.address} port {gateway.port}").run()


def _prepare(settings: Settings, pin: wiring.Pin, _ready: Ready) -> int:
    """Check, once and in a process of its own, what every process needs: certificates, token, store."""
    _check_certificates(settings)
    external.check(settings)
    open_providers(settings)
    token = wiring.open_token(settings.hsm, pin)
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


def _connects(token: Token) -> bool:
    """Whether the token is there. Raises ConfigError for one without our keys, TokenRefused."""
    try:
        token.connect()
        missing = sorted(set(TOKEN_KEYS) - set(token.labels()))
    except Error as error:
        log.warning("starting without the token: %s", error)
        return False
    if missing:
        raise ConfigError(f"the token lacks {', '.join(missing)}: a wrong token, or `hsmd init` is due")
    return True


def _check_certificates(settings: Settings) -> None:
    grpc = settings.grpc
    _check_pair("grpc", grpc.certificate, grpc.key, grpc.client_ca)
    for index, peer in enumerate(settings.peers):
        _check_pair(f"peers[{index}]", peer.certificate, peer.key, peer.ca)
    if grpc.client_crl is not None:
        from hsmd.api import revocation_list  # the supervising process has no need of X.509

        revocation_list.check_file(grpc.client_crl, grpc.client_ca)


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


def _work(settings: Settings, pin: wiring.Pin, rates: Buckets, index: int, total: int, ready: Ready) -> int:
    os.environ["GRPC_SSL_CIPHER_SUITES"] = _TLS_1_2_SUITES  # read when gRPC is loaded
    from hsmd.daemon import worker  # gRPC must be loaded after the fork

    logs.configure(settings.log, f"worker-{index}")
    return worker.run(settings, pin, rates, index, total, ready)


def _ward(settings: Settings, pin: wiring.Pin, ready: Ready) -> int:
    os.environ["GRPC_SSL_CIPHER_SUITES"] = _TLS_1_2_SUITES  # for the lines to peers, where there are any
    from hsmd.daemon import warden  # kept like the worker's

    logs.configure(settings.log, "warden")
    return warden.run(settings, pin, ready)


def _forward(settings: Settings, name: str, ready: Ready) -> int:
    from hsmd.gateway import server  # its event loop and gRPC must be made after the fork

    logs.configure(settings.log, name)
    return server.run(settings, ready)
