"""An issuer's public keys, kept fresh by a thread of their own: no call waits for a fetch, but briefly.

While newer keys can't be had the last good ones count, for a time that is bounded. A key that is not known
makes the thread look again, not more often than every few seconds whoever asks for it.
"""

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jwt

from hsmd.config import Oidc
from hsmd.idp.https import MOST_BYTES, Endpoint, FetchError

_FETCH_SECONDS = 5.0
_LEAST_PAUSE = 10.0  # between two looks
_MOST_KEYS = 100
_MOST_WAITING = 2  # calls that wait for a look at once
_WAIT_SECONDS = 1.0

# What a key may sign by, as far as it does not say so itself: by `kty` and `crv`.
_ALGORITHMS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("RSA", ""): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
    ("OKP", "Ed448"): ("EdDSA",),
}
ALGORITHMS = frozenset(name for names in _ALGORITHMS.values() for name in names)
_LEAST_RSA_BITS = 2048

Found = dict[tuple[str, str], jwt.PyJWK]
"""Keys by id and algorithm."""

log = logging.getLogger(__name__)


class Keys:
    """The keys of one issuer. Raises ConfigError for a URL that is none."""

    def __init__(self, settings: Oidc) -> None:
        self._settings = settings
        self._endpoint = (
            Endpoint("oidc.jwks", settings.jwks, settings.jwks_ca) if "://" in settings.jwks else None
        )
        self._found: Found = {}
        self._fresh = float("-inf")  # when they were fetched (monotonic)
        self._tried = float("-inf")
        self._failing = ""
        self._looking = True  # the first look is to come
        self._looks = 0
        self._wanted = threading.Event()
        self._looked = threading.Condition()
        self._places = threading.BoundedSemaphore(_MOST_WAITING)
        self.generation = 0  # grows when other keys are found

    def start(self) -> None:
        """Begin to fetch."""
        threading.Thread(target=self._run, name="jwks", daemon=True).start()

    def find(self, key_id: str, algorithm: str) -> jwt.PyJWK | None:
        """The key, None where there is none; a token without a key id means the only key there is."""
        found = self._pick(key_id, algorithm)
        if found is None and (self._looking or self._may_look()) and self._places.acquire(blocking=False):
            try:
                self._wait()
            finally:
                self._places.release()
            found = self._pick(key_id, algorithm)
        return found

    def _pick(self, key_id: str, algorithm: str) -> jwt.PyJWK | None:
        if time.monotonic() - self._fresh > self._settings.keep_seconds:
            return None
        if key_id:
            return self._found.get((key_id, algorithm))
        fitting = [key for (_, name), key in self._found.items() if name == algorithm]
        return fitting[0] if len(fitting) == 1 else None

    def _may_look(self) -> bool:
        return time.monotonic() - self._tried > _LEAST_PAUSE

    def _wait(self) -> None:
        """Have the thread look, and wait a moment for what it finds."""
        with self._looked:
            looks = self._looks
            self._wanted.set()
            self._looked.wait_for(lambda: self._looks != looks, _WAIT_SECONDS)

    def _run(self) -> None:
        while True:
            self._wanted.clear()
            self._looking = True
            self._look()
            with self._looked:
                self._looking = False
                self._looks += 1
                self._looked.notify_all()
            failed = self._failing != ""
            pause = (
                min(_LEAST_PAUSE, self._settings.refresh_seconds)
                if failed
                else self._settings.refresh_seconds
            )
            if self._wanted.wait(pause) and not self._may_look():
                time.sleep(max(0.0, self._tried + _LEAST_PAUSE - time.monotonic()))

    def _look(self) -> None:
        self._tried = time.monotonic()
        try:
            found = read(self._fetch(), self._settings.algorithms)
        except (OSError, FetchError, ValueError) as error:
            if self._failing != str(error):
                log.warning("the keys of %s can't be had: %s", self._settings.issuer, error)
            self._failing = str(error) or type(error).__name__
            return
        if self._failing:
            log.info("the keys of %s can be had again", self._settings.issuer)
        if found.keys() != self._found.keys():
            log.info("%s has %d keys", self._settings.issuer, len({name for name, _ in found}))
        self._failing, self._found, self._fresh = "", found, time.monotonic()
        self.generation += 1

    def _fetch(self) -> bytes:
        if self._endpoint is None:
            with Path(self._settings.jwks).open("rb") as file:
                return file.read(MOST_BYTES)
        answer = self._endpoint.fetch("GET", seconds=_FETCH_SECONDS, headers={"Accept": "application/json"})
        if answer.status != 200:
            raise FetchError(f"{self._settings.jwks} answers {answer.status}")
        return answer.body


def read(document: bytes, algorithms: tuple[str, ...]) -> Found:
    """The keys of a JWK set (RFC 7517) that sign by one of these algorithms; others are left out.

    Raises ValueError for what is no JWK set.
    """
    tree = json.loads(document)
    entries = tree.get("keys") if isinstance(tree, dict) else None
    if not isinstance(entries, list) or len(entries) > _MOST_KEYS:
        raise ValueError(f"this is no JWK set of at most {_MOST_KEYS} keys")
    found: Found = {}
    for entry in entries:
        if isinstance(entry, dict):
            for name in _signs_by(entry):
                if name in algorithms and (key := _key(entry, name)) is not None:
                    found[str(entry.get("kid", "")), name] = key
    return found


def _signs_by(entry: dict[str, Any]) -> Iterator[str]:
    kind = (str(entry.get("kty")), str(entry.get("crv", "")))
    if entry.get("use", "sig") == "sig":
        yield from (name for name in _ALGORITHMS.get(kind, ()) if entry.get("alg", name) == name)


def _key(entry: dict[str, Any], algorithm: str) -> jwt.PyJWK | None:
    public = {name: value for name, value in entry.items() if name not in ("d", "p", "q", "dp", "dq", "qi")}
    try:
        key = jwt.PyJWK(public, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
        log.warning("a key %.64r is left out: %s", entry.get("kid"), error)
        return None
    if entry["kty"] == "RSA" and key.key.key_size < _LEAST_RSA_BITS:
        log.warning("the key %.64r is left out: RSA of less than %d bits", entry.get("kid"), _LEAST_RSA_BITS)
        return None
    return key
