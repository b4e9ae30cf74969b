"""Where the audit log is forwarded to: a syslog receiver over TLS (RFC 5425), or a webhook over HTTPS.

A receiver takes a batch of one chain by `send`; when `confirm` returns it has all that was sent since the
last time. Both raise ForwardError, after which nothing sent meanwhile counts.

Syslog has no acknowledgement. So `confirm` ends the connection in order, close_notify first, and waits for
the other end to close it, too: TCP would tell of a reset instead if the receiver had left anything unread.
What it does with what it has read, nobody can tell.
"""

import array
import fcntl
import json
import os
import re
import select
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from hsmd.audit.onwards import Record
from hsmd.config import ConfigError, Forward
from hsmd.idp.https import Endpoint, FetchError, tls_context

SYSLOG, WEBHOOK = "syslog+tls", "https"
_SYSLOG_PORT = 6514
_AUDIT_FACILITY, _INFORMATIONAL, _WARNING = 13, 6, 4
_ENTERPRISE = "hsmd@32473"  # of documentation (RFC 5612); we have no number of our own
_SHOWN = {"request_id": "requestId", "result": "result", "user_id": "userId", "project_id": "projectId"}
_SIOCOUTQ = 0x5411  # bytes that the other end's system has not acknowledged
_UNPRINTABLE = re.compile(r"[^!-~]")
_POLL_SECONDS = 0.05
_CREDENTIALS = "audit-forward-"
_REFUSED_SECONDS = 300.0  # between tries where the receiver says that the request itself is wrong
_LATER = (408, 425, 429)
_SERVER_FAULT = 500
_MOST_SECONDS = 3600


class ForwardError(Exception):
    """The receiver has not taken what was sent; `pause` is how long it wants to be left alone, in seconds."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class Receiver(Protocol):
    """What takes batches. `holds`: what was sent is confirmed together, later."""

    holds: bool

    def send(self, chain: str, batch: Sequence[Record]) -> None:
        """Send records of one chain. Raises ForwardError."""

    def confirm(self) -> None:
        """Make sure that all of it was taken. Raises ForwardError."""

    def drop(self) -> None:
        """Let go of the connection, in whatever state."""


def open_receiver(option: str, settings: Forward) -> Receiver:
    """The receiver at the configured URL. Raises ConfigError."""
    parts = urlsplit(settings.url)
    if parts.scheme == WEBHOOK:
        return Webhook(option, settings)
    if parts.scheme != SYSLOG or not parts.hostname or parts.path or parts.query or parts.username:
        raise ConfigError(f"{option}.url: syslog+tls://HOST:PORT or an https URL is due")
    if settings.token_file is not None:
        raise ConfigError(f"{option}.token_file: syslog has no tokens; a client certificate is due")
    try:
        port = parts.port or _SYSLOG_PORT
    except ValueError as error:
        raise ConfigError(f"{option}.url: {error}") from error
    context = tls_context(option, settings.ca, settings.certificate, settings.key)
    return Syslog(parts.hostname, port, context, settings.timeout_seconds)


# Syslog


class Syslog:
    """Sends to one receiver of RFC 5425; `seconds` bound each wait for it."""

    holds = True

    def __init__(self, host: str, port: int, context: ssl.SSLContext, seconds: float) -> None:
        self._address = (host, port)
        self._context = context
        self._seconds = seconds
        self._connection: ssl.SSLSocket | None = None

    def send(self, chain: str, batch: Sequence[Record]) -> None:
        """One message a record."""
        try:
            connection = self._connection or self._connect()
            self._check_open(connection)
            for seq, line in batch:
                connection.sendall(frame(message(chain, seq, line)))
        except OSError as error:  # TLS faults, too
            raise ForwardError(f"{type(error).__name__}: {error}") from error

    def confirm(self) -> None:
        """End the connection in order; the next batch begins another one."""
        connection = self._connection
        if connection is None:
            return
        try:
            self._check_open(connection)
            _say_the_end(connection, self._seconds)
            with socket.socket(fileno=connection.detach()) as plain:
                self._connection = None
                plain.settimeout(self._seconds)
                plain.shutdown(socket.SHUT_WR)
                while plain.recv(4096):
                    pass
                self._await_acknowledged(plain)
        except OSError as error:
            raise ForwardError(f"unconfirmed: {type(error).__name__}: {error}") from error

    def drop(self) -> None:
        """Let go of the connection as it is."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(self._address, self._seconds)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._seconds * 1000))
            self._connection = self._context.wrap_socket(plain, server_hostname=self._address[0])
        except BaseException:
            plain.close()
            raise
        return self._connection

    def _check_open(self, connection: ssl.SSLSocket) -> None:
        """A receiver that has closed first may have left anything unread."""
        connection.settimeout(0.0)
        try:
            if not connection.recv(4096):
                raise ConnectionResetError("the receiver has closed the connection")
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        finally:
            connection.settimeout(self._seconds)

    def _await_acknowledged(self, plain: socket.socket) -> None:
        end = time.monotonic() + self._seconds
        waiting = array.array("i", [0])
        while True:
            fcntl.ioctl(plain.fileno(), _SIOCOUTQ, waiting)
            if error := plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, "the connection broke")
            if waiting[0] <= 1:  # our own FIN counts as one
                return
            if time.monotonic() > end:
                raise TimeoutError("not all was acknowledged")
            time.sleep(_POLL_SECONDS)


def _say_the_end(connection: ssl.SSLSocket, seconds: float) -> None:
    """Send our close_notify. Not every receiver answers with its own; but all close. Raises OSError."""
    connection.settimeout(0.0)
    while True:
        try:
            connection.unwrap()
        except ssl.SSLWantWriteError:
            if not select.select([], [connection], [], seconds)[1]:
                raise TimeoutError("the receiver does not read") from None
            continue
        except (ssl.SSLWantReadError, ssl.SSLEOFError):  # it has closed already: TCP tells what it left
            pass
        return


def frame(message: bytes) -> bytes:
    """Octet counting (RFC 5425, 4.3)."""
    return b"%d %b" % (len(message), message)


def message(chain: str, seq: int, line: bytes) -> bytes:
    """The record as a message of RFC 5424: its MSG is the line itself, so that the chain can be checked."""
    told = _told(line)
    severity = _INFORMATIONAL if told.get("result", "OK") == "OK" else _WARNING
    shown = {"chain": chain, "seq": str(seq)}
    shown |= {ours: str(told[name]) for name, ours in _SHOWN.items() if told.get(name)}
    data = "".join(f' {name}="{_escaped(value)}"' for name, value in shown.items())
    event = _word(str(told.get("event", "")), 32)
    head = (
        f"<{_AUDIT_FACILITY * 8 + severity}>1 {_word(str(told.get('time', '')), 32)}"
        f" {_word(socket.gethostname(), 255)} hsmd {_word(chain, 128)} {event}"
        f" [{_ENTERPRISE}{data}] "
    )
    return head.encode("utf-8", "backslashreplace") + line


def _told(line: bytes) -> Mapping[str, object]:
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):  # somebody has changed it: it goes as it stands
        return {}
    return told if isinstance(told, dict) else {}


def _word(text: str, most: int) -> str:
    return _UNPRINTABLE.sub("_", text)[:most] or "-"


def _escaped(value: str) -> str:
    return re.sub(r'(["\\\]])', r"\\\1", value)


# Webhook


class Webhook:
    """Posts batches as JSON lines; each has a key by which a receiver knows one that comes again."""

    holds = False

    def __init__(self, option: str, settings: Forward) -> None:
        pair = (settings.certificate, settings.key)
        self._endpoint = Endpoint(option, settings.url, settings.ca, *pair)
        self._seconds = settings.timeout_seconds
        self._token = settings.token_file or _credential(settings.name)

    def send(self, chain: str, batch: Sequence[Record]) -> None:
        """One request."""
        key = f"{socket.gethostname()}/{chain}/{batch[0][0]}-{batch[-1][0]}"
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": key}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {_read(self._token)}"
        body = b"".join(line + b"\n" for _, line in batch)
        try:
            answer = self._endpoint.fetch("POST", seconds=self._seconds, headers=headers, body=body)
        except FetchError as error:
            raise ForwardError(str(error)) from error
        if not 200 <= answer.status < 300:
            raise ForwardError(f"HTTP status {answer.status}", _pause(answer.status, answer.headers))

    def confirm(self) -> None:
        """Each answer has done so."""

    def drop(self) -> None:
        """Each batch has a connection of its own."""


def _credential(name: str) -> Path | None:
    """The token as a systemd credential, where there is one."""
    path = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"), f"{_CREDENTIALS}{name}")
    return path if path.exists() else None


def _pause(status: int, headers: Mapping[str, str]) -> float:
    after = headers.get("retry-after", "")
    if after.isascii() and after.isdigit():
        return float(min(int(after[:9]), _MOST_SECONDS))
    return 0.0 if status >= _SERVER_FAULT or status in _LATER else _REFUSED_SECONDS


def _read(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ForwardError(f"{path} can't be read: {type(error).__name__}") from error
    if not token or not token.isprintable():
        raise ForwardError(f"{path} holds no token")
    return token
