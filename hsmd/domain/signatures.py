"""Signed requests become callers, by permanent access keys and by temporary ones.

Secret access keys are HMAC keys wrapped by the root key: a signature is checked inside the HSM. A wrong
access key, signature or security token gets one answer in one time.
"""

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

from hsmd.algorithms import ACCESS_KEY
from hsmd.domain import access_keys, bearers
from hsmd.domain.attempts import throttled
from hsmd.domain.bearers import SECURITY_TOKEN
from hsmd.domain.cache import of_none
from hsmd.domain.core import Call, Core
from hsmd.domain.identity import Identity, enabled_user
from hsmd.domain.throttle import key
from hsmd.errors import (
    IDENTITY_REFUSED,
    TOKEN_EXPIRED,
    TOKEN_INVALID,
    TOKEN_REQUEST_REFUSED,
    Error,
)
from hsmd.keyring import with_token_key
from hsmd.store import access_keys as rows
from hsmd.store import identity as people
from hsmd.store.access_keys import AccessKey

SIGNING_ALGORITHM = "SDK-HMAC-SHA256"
_DATE = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})T([0-9]{2})([0-9]{2})([0-9]{2})Z")
_MINUTE_MILLIS = 60_000

_NO_ACCESS_KEY = ""  # owner of the stand-in for access keys that there are not; no access key has this id
_STAND_IN_BYTES = 20  # 40 characters in hex, as secret access keys have
_CHALLENGE_BYTES = 32


class Signature(NamedTuple):
    """The evidence of a signed REST request, as the gateway forwards it.

    `security_token` is that of a temporary access key, "" for a permanent one; it is signed too.
    """

    access_key: str
    date: str
    canonical_request: bytes
    signature: str
    security_token: str = ""


def by_signature(call: Call, evidence: Signature) -> Identity:
    """The owner of the access key whose signature this is; the HMAC is computed in the HSM.

    Raises Error(IDENTITY_REFUSED), and Error(RATE_EXCEEDED) after too many that failed: from that source
    with that access key (elsewhere its owner is not shut out), or from that source at all.
    """
    core = call.core
    if abs(_signed_at(evidence.date) - core.clock()) > core.limits.clock_minutes * _MINUTE_MILLIS:
        raise Error(
            IDENTITY_REFUSED, reason=f"the clock is off by more than {core.limits.clock_minutes} minutes"
        )
    hashed = hashlib.sha256(evidence.canonical_request).hexdigest()
    text = f"{SIGNING_ALGORITHM}\n{evidence.date}\n{hashed}".encode()
    with throttled(call, "access key", access_key_resource(evidence.access_key), counted=IDENTITY_REFUSED):
        if evidence.security_token:
            return _temporary(core, evidence, text)
        row = _signing_key(core, evidence.access_key)
        computed = _hmac(core, row or _stand_in(core), text)
        right = hmac.compare_digest(computed.hex().encode(), evidence.signature.encode())
        if row is None or not row.enabled or not right:
            raise _refused()
    return _owner(call, row)


@lru_cache(maxsize=64)  # of the same second, many
def _signed_at(date: str) -> float:
    """The date of a signature in ms since 1970 UTC. Raises Error(IDENTITY_REFUSED)."""
    parts = _DATE.fullmatch(date)
    try:
        year, month, day, hour, minute, second = map(int, parts.groups() if parts else ())
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp() * 1000
    except ValueError as error:
        raise Error(IDENTITY_REFUSED, reason="X-Sdk-Date is not like 20240102T030405Z") from error


def by_secret(call: Call, access_key: str, secret: str) -> Identity:
    """The owner of the permanent access key whose secret this is, compared by an HMAC in the HSM.

    Raises Error(TOKEN_REQUEST_REFUSED), always the same.
    """
    core = call.core
    challenge = secrets.token_bytes(_CHALLENGE_BYTES)
    row = _signing_key(core, access_key)
    computed = _hmac(core, row or _stand_in(core), challenge)
    right = hmac.compare_digest(computed, hmac.digest(secret.encode(), challenge, "sha256"))
    if row is None or not row.enabled or not right:
        raise Error(TOKEN_REQUEST_REFUSED)
    return _owner(call, row)


def access_key_resource(access_key: str) -> str:
    """How audit records name an access key that was claimed; "access-key/?" where that can't be one."""
    return "access-key/" + (access_key if access_keys.is_id(access_key) else "?")


@dataclass(frozen=True, slots=True)
class AccessKeyMaterial:
    """The wrapped secret of a temporary access key as the keyring takes it."""

    wrapped: bytes
    root_label: str

    @property
    def algorithm(self) -> str:
        """The algorithm row's name."""
        return "ACCESS_KEY"


def _owner(call: Call, row: AccessKey) -> Identity:
    """Who the access key belongs to, from the cache."""
    found: Identity = call.core.people.known(row.id, "owner") or _owner_anew(call.core, row)
    access_keys.note_use(call, row.id)
    return found


def _owner_anew(core: Core, row: AccessKey) -> Identity:
    def load() -> Identity:
        user = enabled_user(core, row.user_id)
        if user.access_mode == "console":
            raise Error(IDENTITY_REFUSED, reason="the user may use the console only, and no access keys")
        return Identity("access-key", user, chain=(bearers.of_access_key(row.id),))

    return core.people.get(row.id, "owner", load, lambda who: (who.user.domain_id,))


def _refused() -> Error:
    return Error(IDENTITY_REFUSED, reason="verify aksk signature fail")


def _temporary(core: Core, evidence: Signature, text: bytes) -> Identity:
    """Who a temporary access key belongs to. Without a security token of ours, the stand-in does the work."""
    moment = core.keyring.moment
    try:
        bearer = bearers.opened(core, SECURITY_TOKEN, evidence.security_token)
    except Error as error:
        if error.fault is not TOKEN_INVALID:
            raise
        _hmac(core, _stand_in(core), text)
        raise _refused() from error
    material = _material(bearer.wrapped, bearer.root_label)
    owner = f"temporary {bearer.id}"
    computed = core.keyring.use(owner, 0, material, lambda handle: core.token.hmac(handle, text), moment)
    right = hmac.compare_digest(computed.hex().encode(), evidence.signature.encode())
    if not right or bearer.access_key != evidence.access_key:
        raise _refused()
    try:
        return bearers.identity(core, SECURITY_TOKEN, bearer)
    except Error as error:
        if error.fault is TOKEN_EXPIRED:
            raise Error(IDENTITY_REFUSED, reason="the security token has expired") from error
        if error.fault is TOKEN_INVALID:
            raise Error(IDENTITY_REFUSED, reason="the security token was revoked") from error
        raise


@lru_cache(maxsize=1024)  # of the same key, many
def _material(wrapped: str, root_label: str) -> AccessKeyMaterial:
    return AccessKeyMaterial(bytes.fromhex(wrapped), root_label)


def _hmac(core: Core, row: AccessKey, text: bytes) -> bytes:
    moment = core.keyring.moment
    return core.keyring.use(row.id, 0, row, lambda handle: core.token.hmac(handle, text), moment)


def _signing_key(core: Core, access_key: str) -> AccessKey | None:
    """The access key's row. That there is none is known for seconds, or until a change."""
    return core.people.get(
        access_key, "access key", lambda: _access_key(core, access_key), lambda row: _domain_of(core, row)
    )


def _stand_in(core: Core) -> AccessKey:
    """An access key that nobody has, of one process."""
    return core.people.get(_NO_ACCESS_KEY, "access key", lambda: _make_stand_in(core), of_none)


def _make_stand_in(core: Core) -> AccessKey:
    secret = secrets.token_hex(_STAND_IN_BYTES).encode()
    label = core.root_label()
    wrapped = with_token_key(core.token, label, lambda root: core.token.wrap_value(ACCESS_KEY, secret, root))
    return AccessKey(_NO_ACCESS_KEY, "", wrapped, label, enabled=False, created=0)


def _access_key(core: Core, access_key: str) -> AccessKey | None:
    absent = (key(access_key), core.keyring.moment)
    if core.unknown_access_keys.holds(absent, time.monotonic()):
        return None
    with core.store.read() as tx:
        row = rows.get_access_key(tx, access_key)
    if row is None:
        core.unknown_access_keys.add(absent, time.monotonic())
    return row


def _domain_of(core: Core, row: AccessKey) -> list[str]:
    with core.store.read() as tx:
        return [people.domain_of_user(tx, row.user_id)]
