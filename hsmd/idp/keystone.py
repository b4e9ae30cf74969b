"""Tokens of an OpenStack Keystone: it is asked, with a token of our own, whether they are good (API v3).

The same as keystonemiddleware does. Answers count for a short while; how many calls ask at once is bounded,
and while Keystone can't be reached they are refused without waiting for it.
"""

import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hsmd import config
from hsmd.config import ConfigError
from hsmd.errors import RATE_EXCEEDED, TOKEN_EXPIRED, TOKEN_INVALID, UNAVAILABLE, Error
from hsmd.idp.https import Answer, Endpoint, FetchError
from hsmd.idp.known import Known

_MOST_ASKING = 4  # calls at once, of a process
_WAIT_SECONDS = 1.0  # for a place among them
_AWAY_SECONDS = 2.0  # that it is not asked again after it did not answer
_RENEW_SECONDS = 60.0  # before our own token ends
_HTTP_OK, _HTTP_CREATED, _HTTP_UNAUTHORIZED = 200, 201, 401
_NO_TOKEN = (400, 404, 413, 431)  # what it may say to a text that can't be one, which anybody can send

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Token:
    """A token's claims and its end, in seconds since 1970; without claims it is none."""

    claims: Mapping[str, Any] | None
    ends: float


class Keystone:
    """One Keystone. Raises ConfigError for settings that can't be used."""

    def __init__(self, settings: config.Keystone) -> None:
        self.settings = settings
        self._endpoint = Endpoint("keystone.url", settings.url, settings.ca)
        if settings.password_file is None:
            raise ConfigError("keystone.password_file: not set")
        try:
            self._password = settings.password_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"keystone.password_file: {settings.password_file} can't be read: {type(error).__name__}"
            ) from error
        self._known: Known[_Token] = Known()
        self._places = threading.BoundedSemaphore(_MOST_ASKING)
        self._signing_in = threading.Lock()
        self._own = ("", 0.0)  # our token, and until when it is used
        self._away = float("-inf")  # until when it is not asked (monotonic)

    def claims(self, token: str, now: float) -> Mapping[str, Any]:
        """What a token says of its user, project and roles; `now` in seconds since 1970.

        Raises Error(TOKEN_INVALID, TOKEN_EXPIRED), and UNAVAILABLE or RATE_EXCEEDED where Keystone can't be
        asked.
        """
        found = self._known.get(token, time.monotonic())
        if found is None:
            found = self._asked(token)
            self._known.put(token, found, time.monotonic() + self.settings.cache_seconds)
        if found.claims is None:
            raise Error(TOKEN_INVALID)
        if found.ends <= now:
            raise Error(TOKEN_EXPIRED)
        return found.claims

    def _asked(self, token: str) -> _Token:
        if time.monotonic() < self._away:
            raise _unavailable()
        if not self._places.acquire(timeout=_WAIT_SECONDS):
            raise Error(RATE_EXCEEDED, reason="too many tokens of Keystone are checked", retry_after=1.0)
        try:
            return self._answered(token)
        except (FetchError, ValueError, KeyError, TypeError) as error:
            self._away = time.monotonic() + _AWAY_SECONDS
            log.warning("Keystone can't be asked: %s", error)
            raise _unavailable() from error
        finally:
            self._places.release()

    def _answered(self, token: str) -> _Token:
        answer = self._validate(token, self._own_token(""))
        if answer.status == _HTTP_UNAUTHORIZED:  # ours has ended before its time
            answer = self._validate(token, self._own_token(self._own[0]))
        if answer.status in _NO_TOKEN:
            return _Token(None, 0.0)
        if answer.status != _HTTP_OK:
            raise FetchError(f"it answers {answer.status} when asked about a token")
        return _read(answer.body)

    def _validate(self, token: str, own: str) -> Answer:
        headers = {"X-Auth-Token": own, "X-Subject-Token": token, "Accept": "application/json"}
        return self._endpoint.fetch(
            "GET", "/auth/tokens?nocatalog", seconds=self.settings.timeout_seconds, headers=headers
        )

    def _own_token(self, refused: str) -> str:
        """Our own token; a new one when it ends soon, or is the one that Keystone has refused."""
        with self._signing_in:
            token, until = self._own
            if not token or token == refused or time.time() > until:
                token, until = self._signed_in()
                self._own = token, until
            return token

    def _signed_in(self) -> tuple[str, float]:
        settings = self.settings
        user = {
            "name": settings.user,
            "domain": {"name": settings.user_domain},
            "password": self._password,
        }
        project = {"name": settings.project, "domain": {"name": settings.project_domain}}
        identity = {"methods": ["password"], "password": {"user": user}}
        body = json.dumps({"auth": {"identity": identity, "scope": {"project": project}}}).encode()
        answer = self._endpoint.fetch(
            "POST",
            "/auth/tokens?nocatalog",
            seconds=settings.timeout_seconds,
            headers={"Content-Type": "application/json", "Accept": "application/json"},
            body=body,
        )
        token = answer.headers.get("x-subject-token", "")
        if answer.status != _HTTP_CREATED or not token:
            raise FetchError(f"it answers {answer.status} to our own password")
        return token, _read(answer.body).ends - _RENEW_SECONDS


def _read(body: bytes) -> _Token:
    """A token's claims: ids and names of user, project and their domains, its roles' names, and its end."""
    token = json.loads(body)["token"]
    claims: dict[str, Any] = {"role": [str(each["name"]) for each in token.get("roles", [])]}
    for kind in ("user", "project"):
        if kind in token:
            part = token[kind]
            claims |= {f"{kind}_id": str(part["id"]), f"{kind}_name": str(part["name"])}
            claims |= {f"{kind}_domain_{name}": str(part["domain"][name]) for name in ("id", "name")}
    ends = datetime.fromisoformat(token["expires_at"]).timestamp()
    return _Token(claims | {"exp": int(ends)}, ends)


def _unavailable() -> Error:
    return Error(UNAVAILABLE, reason="Keystone can't be asked about the token", retry_after=_AWAY_SECONDS)
