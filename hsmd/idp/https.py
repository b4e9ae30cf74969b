"""HTTPS to others, within bounds: one address, verified certificates, a time, a size, no redirects."""

import http.client
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hsmd.config import ConfigError

MOST_BYTES = 1024 * 1024  # of an answer's body
_CHUNK = 64 * 1024


class FetchError(Exception):
    """There is no answer that can be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came; the names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def tls_context(
    option: str, ca: Path | None, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """TLS that checks the other end's certificate and name, and shows our certificate. Raises ConfigError."""
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{option}: the CA in {ca} can't be read: {error}") from error
    try:
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{option}: certificate or key can't be used: {error}") from error
    return context


class Endpoint:
    """What stands at an https URL. Raises ConfigError for another kind of URL, or a CA that can't be read."""

    def __init__(
        self, option: str, url: str, ca: Path | None, certificate: Path | None = None, key: Path | None = None
    ) -> None:
        parts = urlsplit(url)
        try:
            self._host, self._port = parts.hostname or "", parts.port or 443
        except ValueError as error:
            raise ConfigError(f"{option}: {error}") from error
        if parts.scheme != "https" or not self._host or parts.username is not None:
            raise ConfigError(f"{option}: an https URL without a password is due")
        self._path = parts.path.rstrip("/") + (f"?{parts.query}" if parts.query else "")
        self._context = tls_context(option, ca, certificate, key)

    def fetch(
        self,
        verb: str,
        path: str = "",
        *,
        seconds: float,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """One request on a connection of its own; `path` goes behind that of the URL. Raises FetchError.

        Each wait is bounded by `seconds`, and the body must be there by then.
        """
        end = time.monotonic() + seconds
        connection = http.client.HTTPSConnection(
            self._host, self._port, timeout=seconds, context=self._context
        )
        try:
            connection.request(verb, self._path + path or "/", body, dict(headers or {}))
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, _body(response, end))
        except (OSError, http.client.HTTPException) as error:  # TLS faults are OSErrors, too
            raise FetchError(f"{self._host}:{self._port}: {type(error).__name__}: {error}") from error
        finally:
            connection.close()


def _body(response: http.client.HTTPResponse, end: float) -> bytes:
    found = bytearray()
    while chunk := response.read1(_CHUNK):
        found += chunk
        if len(found) > MOST_BYTES:
            raise FetchError(f"an answer of more than {MOST_BYTES} bytes")
        if time.monotonic() > end:
            raise FetchError("the answer took too long")
    return bytes(found)
