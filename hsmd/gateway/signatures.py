"""The caller's evidence: which is there, and the canonical request that its signature covers.

SDK-HMAC-SHA256, as the cloud's API gateway documents it: verb, canonical path, sorted query, the signed
headers, their names, the body's SHA-256, each on its line. The daemon holds the secret and checks; here
is only rebuilt what the caller must have signed.
"""

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from hsmd.errors import IDENTITY_REFUSED, Error
from hsmd.gateway.transcoder import Headers, Pairs

Metadata = list[tuple[str, str | bytes]]

_ALGORITHM = b"SDK-HMAC-SHA256"
_AUTHORIZATION = re.compile(
    rb"SDK-HMAC-SHA256 +Access=([A-Za-z0-9_-]{1,64}), *"
    rb"SignedHeaders=([a-z0-9-]{1,128}(?:;[a-z0-9-]{1,128}){0,63}), *Signature=([0-9a-f]{64})"
)
_DATE = re.compile(rb"[0-9]{8}T[0-9]{6}Z")
_TOKEN = re.compile(rb"[\x21-\x7e]{1,4096}")
_SECURITY_TOKEN = re.compile(rb"[\x21-\x7e]{1,8192}")
_BEARER = re.compile(rb"(?=.{1,8192}\Z)[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_CANONICAL_BYTES = 16 * 1024
_SPACE = b" \t"


@dataclass(frozen=True, slots=True)
class TokenEvidence:
    """A token, as it came."""

    token: str

    def metadata(self, *_: object) -> Metadata:
        """What the daemon gets."""
        return [("hsmd-auth-token", self.token)]


@dataclass(frozen=True, slots=True)
class SignatureEvidence:
    """A signature and what it says it covers."""

    access_key: str
    date: str
    signed: list[bytes]
    signature: str
    headers: Headers
    security_token: str = ""

    def metadata(self, verb: str, raw_path: bytes, query: Pairs, body: bytes) -> Metadata:
        """What the daemon gets. Raises Error."""
        unsigned = self.headers.get(b"x-sdk-content-sha256", b"")
        if body and unsigned.strip(_SPACE).upper() == b"UNSIGNED-PAYLOAD":
            raise _refused("the body must be signed")
        canonical = canonical_request(verb, raw_path, query, self.headers, self.signed, body)
        if len(canonical) > _CANONICAL_BYTES:
            raise _refused(f"more than {_CANONICAL_BYTES} bytes of path, query and headers are signed")
        found: Metadata = [
            ("hsmd-access-key", self.access_key),
            ("hsmd-sdk-date", self.date),
            ("hsmd-canonical-request-bin", canonical),
            ("hsmd-signature", self.signature),
        ]
        if self.security_token:
            found.append(("hsmd-security-token", self.security_token))
        return found


@dataclass(frozen=True, slots=True)
class BearerEvidence:
    """A JWT of an identity provider, as it came."""

    token: str

    def metadata(self, *_: object) -> Metadata:
        """What the daemon gets."""
        return [("hsmd-bearer", self.token)]


Evidence = TokenEvidence | SignatureEvidence | BearerEvidence


def evidence(headers: Headers, repeated: frozenset[bytes]) -> Evidence:
    """The evidence in the headers; `repeated` names those that came more than once. Raises Error.

    A signature counts before a token: it covers more.
    """
    if repeated & {b"authorization", b"x-auth-token", b"x-sdk-date", b"x-security-token"}:
        raise _refused("an authentication header is given twice")
    authorization = headers.get(b"authorization", b"")
    if authorization.startswith(_ALGORITHM):
        return _signature(authorization, headers, repeated)
    token = headers.get(b"x-auth-token")
    if token is not None:
        if not _TOKEN.fullmatch(token):
            raise _refused("X-Auth-Token is not valid")
        return TokenEvidence(token.decode("ascii"))
    if authorization[:7].lower() == b"bearer ":
        if not _BEARER.fullmatch(authorization[7:].strip(_SPACE)):
            raise _refused("the bearer token is not a JWT")
        return BearerEvidence(authorization[7:].strip(_SPACE).decode("ascii"))
    if authorization:
        raise _refused("Authorization must be SDK-HMAC-SHA256 or Bearer")
    raise _refused("neither a signature (Authorization) nor X-Auth-Token is given")


def _signature(authorization: bytes, headers: Headers, repeated: frozenset[bytes]) -> SignatureEvidence:
    parts = _AUTHORIZATION.fullmatch(authorization)
    if parts is None:
        raise _refused("Authorization is not of the form Access=..., SignedHeaders=..., Signature=...")
    access_key, names, signature = parts.groups()
    signed = names.split(b";")
    given = set(signed)
    if len(given) != len(signed) or not {b"host", b"x-sdk-date"} <= given:
        raise _refused("SignedHeaders must name host and x-sdk-date, and each header once")
    if not given <= headers.keys() or given & repeated:
        raise _refused("a signed header is missing or given twice")
    date = headers[b"x-sdk-date"].strip(_SPACE)
    if not _DATE.fullmatch(date):
        raise _refused("X-Sdk-Date must be like 20191115T033655Z")
    return SignatureEvidence(
        access_key.decode(),
        date.decode(),
        signed,
        signature.decode(),
        headers,
        _security_token(headers, given),
    )


def _security_token(headers: Headers, signed: set[bytes]) -> str:
    """That of a temporary access key, "" for a permanent one. It counts only when it is signed."""
    token = headers.get(b"x-security-token", b"").strip(_SPACE)
    if not token:
        return ""
    if not _SECURITY_TOKEN.fullmatch(token):
        raise _refused("X-Security-Token is not valid")
    if b"x-security-token" not in signed:
        raise _refused("X-Security-Token must be among the signed headers")
    return token.decode("ascii")


def canonical_request(
    verb: str, raw_path: bytes, query: Pairs, headers: Headers, signed: list[bytes], body: bytes
) -> bytes:
    """The canonical request, from the path as it stood on the wire and the decoded query."""
    path = quote(unquote_to_bytes(raw_path), safe="/~")
    if not path.endswith("/"):
        path += "/"
    parameters = "&".join(
        f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in sorted(query)
    )
    lines = [
        verb.encode("ascii"),
        path.encode("ascii"),
        parameters.encode("ascii"),
        *(name + b":" + headers[name].strip(_SPACE) for name in signed),
        b"",
        b";".join(signed),
        hashlib.sha256(body).hexdigest().encode("ascii"),
    ]
    return b"\n".join(lines)


def _refused(reason: str) -> Error:
    return Error(IDENTITY_REFUSED, reason=reason)
