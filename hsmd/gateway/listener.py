"""The gateway's door: accepted sockets, looked at before TLS, and HTTP connections within bounds.

A client that speaks plain HTTP on the TLS port is told so. Silent, slow and endless clients lose their
connection; how many may stand at the door and inside is bounded.
"""

import asyncio
import contextlib
import json
import logging
import os
import resource
import socket
import ssl
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hsmd.errors import FORMAT_INVALID, Error

_log = logging.getLogger(__name__)

HEADER_SECONDS = 10.0  # for a request's headers, from its first byte or the connection's start
BODY_SECONDS = 60.0  # for a request's body
IDLE_SECONDS = 75.0  # between requests; longer than the pools of usual clients keep a connection
HELLO_SECONDS = 5.0  # for the first byte
HANDSHAKE_SECONDS = 10.0
_HEADER_BYTES = 32 * 1024
_HEADERS = 100
_MESSAGE_BYTES = 64 * 1024 * 1024  # what is read of a message that was refused already
_CONNECTIONS = 10_000
_AT_DOOR = 512  # not yet through TLS; the oldest leaves when another comes
_SPARE_FILES = 64
_TLS_HANDSHAKE = b"\x16"


def refusal(reason: str) -> bytes:
    """A whole HTTP response, 400, for what never becomes a request."""
    request_id = os.urandom(16).hex()
    error = Error(FORMAT_INVALID, reason=reason)
    tree = {"error_code": error.fault.code, "error_msg": error.message, "request_id": request_id}
    body = json.dumps(tree)
    return (
        "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\nX-Request-Id: {request_id}\r\n\r\n{body}"
    ).encode("ascii")


class Connection(HttpToolsProtocol):
    """One HTTP/1.1 connection. Whoever holds `overdue` closes it when its time is up."""

    deadline: float | None = None  # loop time; None: a request is being answered
    _message = 0  # requests begun
    _arriving = False
    _in_head = False
    _bytes = 0  # of the message that is arriving

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        """The TLS handshake is done."""
        super().connection_made(transport)
        self._allow(HEADER_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Bytes of one or more requests."""
        own = (self._message, self._message if self._arriving else self._message + 1)
        super().data_received(data)
        if self._arriving and self._message in own:  # all of data belongs to the message that arrives
            self._bytes += len(data)
            if self._bytes > (_HEADER_BYTES if self._in_head else _MESSAGE_BYTES):
                self.send_400_response("it is too large")

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._message += 1
        self._bytes = 0
        self._in_head = self._arriving = True
        self._allow(HEADER_SECONDS)

    def on_headers_complete(self) -> None:
        """All headers are there."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > _HEADER_BYTES or len(self.headers) > _HEADERS:
            raise ValueError("headers too large")  # the parser turns this into a refusal
        self._in_head = False
        self._allow(BODY_SECONDS)
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or one trailer behind a chunked body, which is not listened to."""
        if self._in_head:
            super().on_header(name, value)

    def on_message_complete(self) -> None:
        """The request is all there."""
        super().on_message_complete()
        self._arriving = False
        if self.cycle.response_complete:  # answered before its body came
            self._allow(IDLE_SECONDS)
        else:
            self.deadline = None

    def on_response_complete(self) -> None:
        """The answer is written."""
        super().on_response_complete()
        if not self._arriving:
            self._allow(IDLE_SECONDS)

    def pause_writing(self) -> None:
        """The client does not take what it asked for."""
        super().pause_writing()
        self._allow(BODY_SECONDS)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        self._allow(IDLE_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP and close."""
        if not self.transport.is_closing():
            self.transport.write(refusal(msg))
            self.transport.close()

    def overdue(self, now: float) -> bool:
        """Whether the client has taken longer than it may."""
        return self.deadline is not None and now > self.deadline

    def _allow(self, seconds: float) -> None:
        self.deadline = self.loop.time() + seconds


class Door:
    """Accepts sockets of one listener and hands those that begin TLS to connections."""

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        connection: Callable[[], asyncio.Protocol],
        inside: Callable[[], int],
    ) -> None:
        """`inside` says how many connections stand now."""
        self._listener = listener
        self._context = context
        self._connection = connection
        self._inside = inside
        self._most = _allowed_connections()
        self._at_door: dict[asyncio.Task[None], None] = {}  # in the order of their coming
        self._accepting: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to accept."""
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    async def close(self) -> None:
        """Accept no more; those at the door leave."""
        waiting = [*self._at_door, *([self._accepting] if self._accepting else [])]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._inside() + len(self._at_door) >= self._most:
                await asyncio.sleep(0.05)
                continue
            try:
                client, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # the client has left, or file handles ran out
                _log.warning("accepting a connection failed: %s", error)
                await asyncio.sleep(0.1)
                continue
            if len(self._at_door) >= _AT_DOOR:
                next(iter(self._at_door)).cancel()
            task = loop.create_task(self._admit(client))
            self._at_door[task] = None
            task.add_done_callback(lambda done: self._at_door.pop(done, None))

    async def _admit(self, client: socket.socket) -> None:
        client.setblocking(False)
        handed_over = False
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                first = await _peek(client)
            if first == _TLS_HANDSHAKE:
                handed_over = True  # the transport closes it
                await asyncio.get_running_loop().connect_accepted_socket(
                    self._connection,
                    client,
                    ssl=self._context,
                    ssl_handshake_timeout=HANDSHAKE_SECONDS,
                    ssl_shutdown_timeout=HELLO_SECONDS,
                )
            elif first.isalpha():
                async with asyncio.timeout(HELLO_SECONDS):
                    await _say_https(client)
        except (OSError, TimeoutError) as error:  # of the handshake too: ssl.SSLError is an OSError
            _log.debug("a connection was not admitted: %s", error)
        finally:
            if not handed_over:
                client.close()


def _allowed_connections() -> int:
    """As many as file handles allow, after asking for as many as may be had."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _CONNECTIONS + _SPARE_FILES
    allowed = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    soft = max(resource.getrlimit(resource.RLIMIT_NOFILE)[0], allowed)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_FILES))


async def _peek(client: socket.socket) -> bytes:
    """The first byte, left where it is; b"" when the client closes."""
    loop = asyncio.get_running_loop()
    while True:
        with contextlib.suppress(BlockingIOError):
            return client.recv(1, socket.MSG_PEEK)
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(client, _settle, readable)
        try:
            await readable
        finally:
            loop.remove_reader(client)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _say_https(client: socket.socket) -> None:
    """Answer plain HTTP, and take what the client still sends, lest a reset overtakes the answer."""
    loop = asyncio.get_running_loop()
    received = b""
    while b"\r\n\r\n" not in received and len(received) < _HEADER_BYTES:
        more = await loop.sock_recv(client, 4096)
        if not more:
            break
        received += more
    await loop.sock_sendall(client, refusal("this port speaks HTTPS"))
    client.shutdown(socket.SHUT_WR)
    while await loop.sock_recv(client, 65536):
        pass
