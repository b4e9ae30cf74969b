"""The metrics listener: one small process that answers GET /metrics, and nothing else, within bounds.

It loads neither gRPC nor the PKCS#11 module. A client has a few seconds for all of its connection, TLS
included; when too many are there at once, the one that came first leaves.
"""

import asyncio
import logging
import signal
import socket
import ssl
import time
from contextlib import suppress

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from hsmd.config import ConfigError, Metrics
from hsmd.daemon.exposition import Exposition
from hsmd.daemon.supervisor import Ready

PATH = "/metrics"
_SECONDS = 5.0  # of a connection
_CONNECTIONS = 32
_HEAD_BYTES = 16 * 1024
_FRESH_SECONDS = 0.5  # a page is made anew no more often
_ACCEPT_PAUSE = 0.1

log = logging.getLogger(__name__)


def run(settings: Metrics, port: int, exposition: Exposition, ready: Ready) -> int:
    """Answer until SIGTERM or SIGINT; the exit code. Raises ConfigError."""
    context = tls_context(settings)
    with _listening(settings.address, port) as listener:
        asyncio.run(_Scrapes(listener, context, exposition).serve(ready))
    return 0


def tls_context(settings: Metrics) -> ssl.SSLContext | None:
    """TLS 1.3, asking for certificates if a CA is set; None without one of ours. Raises ConfigError."""
    if settings.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(settings.certificate, settings.key, password=_no_password)
        if settings.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(settings.client_ca)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        names = ", ".join(
            str(each) for each in (settings.certificate, settings.key, settings.client_ca) if each
        )
        raise ConfigError(f"metrics: the certificates can't be used ({names}): {error}") from error
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def _listening(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # the supervisor holds the port
        listener.bind((address, port))
        listener.listen(_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise ConfigError(f"metrics: can't listen on {address}:{port}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


class _Scrapes:
    """The connections of one listener."""

    def __init__(
        self, listener: socket.socket, context: ssl.SSLContext | None, exposition: Exposition
    ) -> None:
        self._listener = listener
        self._context = context
        self._exposition = exposition
        self._open: dict[asyncio.Task[None], None] = {}  # in the order of their coming
        self._page, self._made = b"", 0.0

    async def serve(self, ready: Ready) -> None:
        """Until a signal."""
        loop = asyncio.get_running_loop()
        accepting = loop.create_task(self._accept())
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, accepting.cancel)
        ready()
        with suppress(asyncio.CancelledError):
            await accepting

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # the client has left, or file handles ran out
                log.warning("accepting a connection failed: %s", error)
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            if len(self._open) >= _CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                oldest.cancel()
            task = loop.create_task(self._attend(connection))
            self._open[task] = None
            task.add_done_callback(lambda done: self._open.pop(done, None))
            await asyncio.sleep(0)  # or a crowd at the door would be all that is seen to

    async def _attend(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_HEAD_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport: asyncio.Transport | None = None
        try:
            async with asyncio.timeout(_SECONDS):
                transport, _ = await loop.connect_accepted_socket(
                    lambda: protocol, connection, ssl=self._context
                )
                writer = asyncio.StreamWriter(transport, protocol, reader, loop)
                writer.write(self._answer(await reader.readuntil(b"\r\n\r\n")))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("a scrape was not answered: %s", error)
        finally:
            if transport is not None:
                transport.abort()
            connection.close()

    def _answer(self, head: bytes) -> bytes:
        verb, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if path != PATH.encode():
            return _response("404 Not Found", b"metrics are at /metrics\n")
        if verb != b"GET":
            return _response("405 Method Not Allowed", b"", "Allow: GET")
        now = time.monotonic()
        if not self._page or now - self._made > _FRESH_SECONDS:
            self._page, self._made = generate_latest(self._exposition), now
        return _response("200 OK", self._page, f"Content-Type: {CONTENT_TYPE_PLAIN_0_0_4}")


def _response(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode("ascii") + body
