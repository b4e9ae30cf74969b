"""Signed requests become callers.

Secret access keys are HMAC keys wrapped by the root key: a signature is checked inside the HSM. A wrong
access key or signature gets one answer in one time.
"""

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

from hsmd.algorithms import ACCESS_KEY
from hsmd.domain.attempts import throttled
from hsmd.domain.core import ROOT_KEY_LABEL, Call, Core
from hsmd.domain.identity import Identity, enabled_user
from hsmd.domain.throttle import key
from hsmd.errors import IDENTITY_REFUSED, Error
from hsmd.keyring import with_token_key
from hsmd.store import identity as rows
from hsmd.store.identity import AccessKey

SIGNING_ALGORITHM = "SDK-HMAC-SHA256"
_DATE = "%Y%m%dT%H%M%SZ"
_MINUTE_MILLIS = 60_000

_ACCESS_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NO_ACCESS_KEY = ""  # owner of the stand-in for access keys that there are not; no access key has this id
_STAND_IN_BYTES = 20  # 40 characters in hex, as secret access keys have


@dataclass(frozen=True, slots=True)
class Signature:
    """The evidence of a signed REST request, as the gateway forwards it."""

    access_key: str
    date: str
    canonical_request: bytes
    signature: str


def by_signature(call: Call, evidence: Signature) -> Identity:
    """The owner of the access key whose signature this is; the HMAC is computed in the HSM.

    Raises Error(IDENTITY_REFUSED), and Error(RATE_EXCEEDED) after too many that failed: from that source
    with that access key (elsewhere its owner is not shut out), or from that source at all.
    """
    core = call.core
    try:
        signed = datetime.strptime(evidence.date, _DATE).replace(tzinfo=UTC)
    except ValueError as error:
        raise Error(IDENTITY_REFUSED, reason="X-Sdk-Date is not like 20240102T030405Z") from error
    if abs(signed.timestamp() * 1000 - core.clock()) > core.limits.clock_minutes * _MINUTE_MILLIS:
        raise Error(
            IDENTITY_REFUSED, reason=f"the clock is off by more than {core.limits.clock_minutes} minutes"
        )
    hashed = hashlib.sha256(evidence.canonical_request).hexdigest()
    text = f"{SIGNING_ALGORITHM}\n{evidence.date}\n{hashed}".encode()
    with throttled(call, "access key", evidence.access_key, counted=IDENTITY_REFUSED):
        row = _signing_key(core, evidence, text)
    return Identity("access-key", enabled_user(core, row.user_id))


def access_key_resource(access_key: str) -> str:
    """How audit records name an access key that was claimed; "access-key/?" where that can't be one."""
    return "access-key/" + (access_key if _ACCESS_KEY_ID.fullmatch(access_key) else "?")


@dataclass(frozen=True, slots=True)
class AccessKeyMaterial:
    """An access key's row as the keyring takes it."""

    row: AccessKey

    @property
    def algorithm(self) -> str:
        """The algorithm row's name."""
        return "ACCESS_KEY"

    @property
    def wrapped(self) -> bytes:
        """The wrapped secret."""
        return self.row.wrapped

    @property
    def root_label(self) -> str:
        """The root key that wrapped it."""
        return self.row.root_label


def _signing_key(core: Core, evidence: Signature, text: bytes) -> AccessKey:
    """The access key that signed the text. An unknown one is given the same work, by a stand-in."""
    moment = core.keyring.moment
    row = _known_access_key(core, evidence.access_key, moment)
    used = row or _stand_in(core)
    computed = core.keyring.use(
        used.id, 0, AccessKeyMaterial(used), lambda handle: core.token.hmac(handle, text), moment
    )
    right = hmac.compare_digest(computed.hex().encode(), evidence.signature.encode())
    if row is None or not row.enabled or not right:
        raise Error(IDENTITY_REFUSED, reason="verify aksk signature fail")
    return row


def _known_access_key(core: Core, access_key: str, moment: int) -> AccessKey | None:
    """The access key's row. That there is none is known for seconds, or until a change."""
    absent = (key(access_key), moment)
    if core.unknown_access_keys.holds(absent, time.monotonic()):
        return None
    row = core.cache.get(access_key, "access key", lambda: _access_key(core, access_key))
    if row is None:
        core.unknown_access_keys.add(absent, time.monotonic())
    return row


def _stand_in(core: Core) -> AccessKey:
    """An access key that nobody has, of one process."""
    made = core.cache.get(_NO_ACCESS_KEY, "access key", lambda: _make_stand_in(core))
    return cast("AccessKey", made)  # what loads it never gives None


def _make_stand_in(core: Core) -> AccessKey:
    secret = secrets.token_hex(_STAND_IN_BYTES).encode()
    wrapped = with_token_key(
        core.token, ROOT_KEY_LABEL, lambda root: core.token.wrap_value(ACCESS_KEY, secret, root)
    )
    return AccessKey(_NO_ACCESS_KEY, "", wrapped, ROOT_KEY_LABEL, enabled=False, created=0)


def _access_key(core: Core, access_key: str) -> AccessKey | None:
    with core.store.read() as tx:
        return rows.get_access_key(tx, access_key)
