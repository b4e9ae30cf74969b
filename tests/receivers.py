"""Receivers of the audit log for tests: syslog over TLS that parses strictly, and a webhook over HTTPS."""

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hsmd.daemon.certificates import Authority, Pair

_MESSAGE = re.compile(
    rb"<(\d{1,3})>1 (\S+) (\S+) (\S+) (\S+) (\S+) "
    rb'(\[[^ =\]"]+(?: [^ =\]"]+="(?:[^"\\\]]|\\["\\\]])*")*\]) (.*)',
    re.DOTALL,
)


def context(pair: Pair, clients: Path | None = None) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(pair.certificate, pair.key)
    if clients is not None:
        made.verify_mode = ssl.CERT_REQUIRED
        made.load_verify_locations(clients)
    return made


@dataclass
class Message:
    """A message of RFC 5424."""

    priority: int
    time: str
    host: str
    app: str
    process: str
    event: str
    data: str
    text: bytes

    @property
    def record(self) -> dict[str, Any]:
        return dict(json.loads(self.text))


def parsed(data: bytes) -> Message:
    match = _MESSAGE.fullmatch(data)
    assert match, data
    time_, host, app, process, event, data_ = (each.decode() for each in match.groups()[1:7])
    return Message(int(match[1]), time_, host, app, process, event, data_, match[8])


def frames(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Messages by their octet counts; what is cut off at the end of the connection is no message."""
    while True:
        digits = b""
        while (byte := read(1)) != b" ":
            if not byte:
                assert not digits
                return
            assert byte.isdigit(), byte
            digits += byte
        assert digits == str(int(digits)).encode()
        data = b""
        while len(data) < int(digits):
            more = read(int(digits) - len(data))
            if not more:
                return
            data += more
        yield data


@dataclass
class Syslog:
    """Takes messages; `serve` is what it does with a connection."""

    tls: ssl.SSLContext
    port: int = 0
    messages: list[Message] = field(default_factory=list)
    serve: Callable[["Syslog", ssl.SSLSocket], None] = lambda self, connection: self.read(connection)
    connections: int = 0

    def read(self, connection: ssl.SSLSocket, most: int = 1 << 30, pause: float = 0.0) -> None:
        for count, data in enumerate(frames(connection.recv), 1):
            self.messages.append(parsed(data))
            time.sleep(pause)
            if count == most:
                return

    def lines(self, chain: str) -> list[bytes]:
        """Each line once, in the order in which they came first."""
        return list(dict.fromkeys(each.text for each in self.messages if each.process == chain))

    @contextmanager
    def listening(self) -> Iterator["Syslog"]:
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        open_ones: list[socket.socket] = []
        thread = threading.Thread(target=self._accept, args=(listener, open_ones))
        thread.start()
        try:
            yield self
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join()
            for each in open_ones:
                each.close()

    def _accept(self, listener: socket.socket, open_ones: list[socket.socket]) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            open_ones.append(plain)
            threading.Thread(target=self._run, args=(plain,), daemon=True).start()

    def _run(self, plain: socket.socket) -> None:
        with plain, suppress(OSError):
            plain.settimeout(20)
            with self.tls.wrap_socket(plain, server_side=True) as connection:
                self.serve(self, connection)


@dataclass
class Webhook:
    """Takes batches; `answers` are statuses with headers, the last one for all that follow."""

    tls: ssl.SSLContext
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=lambda: [(204, {})])
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    port: int = 0

    @contextmanager
    def listening(self) -> Iterator["Webhook"]:
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                names = {name.lower(): value for name, value in self.headers.items()}
                hook.requests.append((self.path, names, body))
                status, headers = hook.answers.pop(0) if len(hook.answers) > 1 else hook.answers[0]
                self.send_response(status)
                for name, value in {**headers, "Content-Length": "0"}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", self.port), Handler) as server:
            server.socket = self.tls.wrap_socket(server.socket, server_side=True)
            self.port = server.server_port
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()


def authority(folder: Path) -> Authority:
    return Authority(folder, "receivers")
