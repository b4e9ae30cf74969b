"""A real HTTPS server for what identity providers say; a test can have it answer nothing, or late."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hsmd.daemon.certificates import Authority
from tests.stand import free_port

Reply = tuple[int, dict[str, str], Any]
"""Status, headers, and what becomes the JSON body (bytes go as they are)."""


def toml(value: object) -> str:
    """As an inline value of TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {toml(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


@dataclass
class Provider:
    """`answer` maps (verb, path, headers in lower case, body) to a reply."""

    answer: Callable[[str, str, dict[str, str], bytes], Reply]
    ca: Path
    port: int = field(default_factory=free_port)  # which nobody else is given while it is stopped
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    _server: ThreadingHTTPServer | None = None
    _context: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def start(self) -> None:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = self.rfile.read(int(headers.get("content-length", "0")))
                provider.seen.append((self.command, self.path, headers))
                status, more, tree = provider.answer(self.command, self.path, headers, body)
                raw = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(raw)), **more}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST = handle_any  # noqa: N815 # the base class's names

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # the base class's name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        assert self._context is not None
        self._server.socket = self._context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextmanager
def providing(folder: Path, answer: Callable[[str, str, dict[str, str], bytes], Reply]) -> Iterator[Provider]:
    """A provider with a certificate of an authority of its own, in that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = Authority(folder, "provider's CA")
    pair = authority.server("provider", ["127.0.0.1"])
    one = Provider(answer, authority.pair.certificate)
    one._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    one._context.load_cert_chain(pair.certificate, pair.key)
    one.start()
    try:
        yield one
    finally:
        one.stop()
