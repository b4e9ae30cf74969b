"""JWTs of an OpenID Connect issuer: signature, issuer, audience, times, by algorithms that are allowed."""

import time
from collections.abc import Mapping
from typing import Any

import jwt

from hsmd.config import ConfigError, Oidc
from hsmd.errors import IDENTITY_REFUSED, Error
from hsmd.idp.jwks import ALGORITHMS, Keys
from hsmd.idp.known import Known

MOST_CHARACTERS = 8192
_KNOWN_SECONDS = 60.0  # that a signature need not be checked again
_NEEDED = ["iss", "aud", "exp", "sub"]


class Issuer:
    """Verifies the tokens of one issuer. Raises ConfigError for settings that can't be used."""

    def __init__(self, settings: Oidc) -> None:
        self.settings = settings
        if unknown := sorted(set(settings.algorithms) - ALGORITHMS):
            raise ConfigError(f"oidc.algorithms: {unknown[0]} is none of {', '.join(sorted(ALGORITHMS))}")
        if not settings.issuer or not settings.audience or not all(settings.audience):
            raise ConfigError("oidc: an issuer and an audience are due")
        self._keys = Keys(settings)
        self._known: Known[tuple[Mapping[str, Any], int]] = Known()

    def start(self) -> None:
        """Begin to fetch the issuer's keys."""
        self._keys.start()

    def claims(self, token: str, now: float) -> Mapping[str, Any]:
        """The claims of a token that holds; `now` in seconds since 1970. Raises Error(IDENTITY_REFUSED)."""
        if len(token) > MOST_CHARACTERS:
            raise Error(IDENTITY_REFUSED, reason="the bearer token is too long")
        found = self._known.get(token, time.monotonic())
        if found is None or found[1] != self._keys.generation:
            generation = self._keys.generation
            found = self._verified(token), generation
            self._known.put(token, found, time.monotonic() + _KNOWN_SECONDS)
        if int(found[0]["exp"]) + self.settings.leeway_seconds <= now:
            raise Error(IDENTITY_REFUSED, reason="the bearer token has expired")
        return found[0]

    def _verified(self, token: str) -> Mapping[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            algorithm, key_id = header.get("alg"), header.get("kid", "")
            if algorithm not in self.settings.algorithms:
                raise Error(IDENTITY_REFUSED, reason="the bearer token's algorithm is not allowed")
            key = self._keys.find(str(key_id), algorithm)
            if key is None:
                raise Error(IDENTITY_REFUSED, reason="the bearer token's key is not known")
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=self.settings.algorithms,  # and the key is for one of them
                audience=self.settings.audience,
                issuer=self.settings.issuer,
                leeway=self.settings.leeway_seconds,
                options={"require": _NEEDED},
            )
        except jwt.ExpiredSignatureError as error:
            raise Error(IDENTITY_REFUSED, reason="the bearer token has expired") from error
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise Error(IDENTITY_REFUSED, reason="the bearer token is not valid") from error
        return claims


def issuer_of(token: str) -> str:
    """Who a token says has issued it; nothing of it has been checked. Raises Error(IDENTITY_REFUSED)."""
    if len(token) > MOST_CHARACTERS:
        raise Error(IDENTITY_REFUSED, reason="the bearer token is too long")
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        raise Error(IDENTITY_REFUSED, reason="the bearer token is not a JWT") from error
    return str(claims.get("iss", ""))
