"""The gateway's process: uvicorn behind our own door, from the settings to the last answer."""

import asyncio
import contextlib
import errno
import logging
import math
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator

import uvicorn
import uvloop

from hsmd import metrics
from hsmd.config import ConfigError, Gateway, Settings
from hsmd.gateway.app import App
from hsmd.gateway.listener import IDLE_SECONDS, Connection, Door

_log = logging.getLogger(__name__)

_BACKLOG = 1024
_PARTING_SECONDS = 1.0  # beyond the grace time, for last words
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; those of TLS 1.3 are all good


def run(settings: Settings, ready: Callable[[], None], tend: Callable[[], None] = lambda: None) -> int:
    """Serve until SIGTERM or SIGINT; the exit code, 0 after a stop in good order.

    `ready` is called once, when requests are accepted, `tend` once a second. On a signal new connections are
    refused and requests in flight get `gateway.grace_seconds`. Raises ConfigError when a certificate or key
    can't be read or the address can't be listened on, DescriptionError when the proto files can't be served.
    """
    context = tls_context(settings.gateway)
    app = App(settings)
    listener = listen(settings.gateway)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(app, listener, context, settings.gateway, ready, tend))
    finally:
        listener.close()
    return 0


def tls_context(gateway: Gateway) -> ssl.SSLContext:
    """TLS 1.2 or later with the gateway's certificate. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    for option, path in (("certificate", gateway.certificate), ("key", gateway.key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(f"gateway.{option}: {path} can't be read: {error.strerror}") from error
    try:
        context.load_cert_chain(gateway.certificate, gateway.key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"gateway.certificate, gateway.key: {gateway.certificate} and {gateway.key} are not a PEM "
            f"certificate and its unencrypted key: {error}"
        ) from error
    return context


def listen(gateway: Gateway) -> socket.socket:
    """The listening socket. Raises ConfigError when the address or port can't be had."""
    place = f"gateway: {gateway.address}:{gateway.port}"
    try:
        found = socket.getaddrinfo(
            gateway.address, gateway.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"{place} is no address to listen on: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # our other processes listen there too
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        hint = ": another process listens there" if error.errno == errno.EADDRINUSE else ""
        raise ConfigError(f"{place} can't be listened on: {os.strerror(error.errno or 0)}{hint}") from error
    return listener


def _no_password() -> str:
    raise ValueError("the key is encrypted")


async def _serve(
    app: App,
    listener: socket.socket,
    context: ssl.SSLContext,
    gateway: Gateway,
    ready: Callable[[], None],
    tend: Callable[[], None],
) -> None:
    await app.open()
    try:
        await _Server(app, listener, context, gateway, ready, tend).serve()
    finally:
        await app.close()


class _Server(uvicorn.Server):
    """uvicorn's own server with our door instead of its listeners."""

    def __init__(
        self,
        app: App,
        listener: socket.socket,
        context: ssl.SSLContext,
        gateway: Gateway,
        ready: Callable[[], None],
        tend: Callable[[], None],
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                lifespan="off",  # the application is opened and closed here
                interface="asgi3",
                log_config=None,
                log_level="error",  # clients' mistakes are no news
                access_log=False,
                server_header=False,
                proxy_headers=False,  # X-Forwarded-For is anybody's word
                timeout_keep_alive=math.ceil(IDLE_SECONDS),
                timeout_graceful_shutdown=math.ceil(gateway.grace_seconds),
            )
        )
        self._ready = ready
        self._tend = tend
        self._app = app
        self._door = Door(listener, context, self._connection, lambda: len(self.server_state.connections))

    def _connection(self) -> Connection:
        return Connection(config=self.config, server_state=self.server_state, app_state={})

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the door."""
        await super().startup(sockets=sockets or [])  # none of its own
        self._door.open()
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the door, then wait for requests in flight."""
        await self._door.close()
        await super().shutdown(sockets=sockets or [])
        await self._part()

    async def _part(self) -> None:
        """Let those whose time was cut short say so, then close what is left."""
        state = self.server_state
        if state.tasks:
            await asyncio.wait(list(state.tasks), timeout=_PARTING_SECONDS)
        for connection in list(state.connections):
            connection.transport.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PARTING_SECONDS):
                while state.connections:
                    await asyncio.sleep(0.02)
        for connection in list(state.connections):
            connection.transport.abort()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: see who has overstayed, once a second."""
        if counter % 10 == 0:
            metrics.GATEWAY_CONNECTIONS.set(len(self.server_state.connections))
            self._app.measure()
            self._tend()
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection) and connection.overdue(now):
                    connection.transport.close()
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT stop the server; unlike uvicorn's they don't end the process afterwards."""
        loop = asyncio.get_running_loop()
        stopping = (signal.SIGTERM, signal.SIGINT)
        for number in stopping:
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in stopping:
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        _log.info("stopping: requests in flight end, new ones are refused")
        self.should_exit = True
