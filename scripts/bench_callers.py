"""A call's way through the daemon without gRPC, audit log and operation: who calls, and may it use this key.

It is the daemon's own pipeline, in a process of its own beside the daemon, on the daemon's store and token.
"""

import hashlib
import hmac
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty

from hsmd import config
from hsmd.algorithms import ACCESS_KEY
from hsmd.api import crypto, evidence
from hsmd.api.methods import Method, methods_of
from hsmd.api.pipeline import Handle, Pipeline
from hsmd.daemon import wiring
from hsmd.domain import access, access_keys, bearers
from hsmd.domain.bearers import SECURITY_TOKEN, TOKEN, Bearer
from hsmd.domain.core import Call, Core
from hsmd.gateway.signatures import canonical_request
from hsmd.pb.options.v1 import options_pb2
from hsmd.pb.v1.crypto_pb2 import EncryptDataRequest
from hsmd.store import Tx, identity, keys, policies
from hsmd.store.access_keys import AccessKey, insert_access_key
from hsmd.store.certificates import CertificateBinding, insert_binding
from hsmd.store.identity import User
from hsmd.store.keys import Key
from hsmd.store.policies import Assignment, Policy

_GATEWAY = "hsmd-gateway"
_HOUR_MILLIS = 60 * 60 * 1000
_SOURCE = "127.0.0.1"
_CONDITIONS = {
    "IpAddress": {"g:SourceIp": ["127.0.0.0/8", "10.0.0.0/8"]},
    "DateLessThan": {"g:CurrentTime": ["2100-01-01T00:00:00Z"]},
    "StringEquals": {"kms:KeySpec": ["AES_256", "SM4"]},
}
Metadata = Mapping[str, str | bytes]


class _NoLog:
    def append(self, record: Mapping[str, object], timeout: float) -> None:
        """It is measured elsewhere what the disk takes."""


@dataclass(frozen=True, slots=True)
class _Context:
    """A gRPC call from a client whose certificate has this common name."""

    name: str
    certificate: bytes
    metadata: Metadata

    def auth_context(self) -> Mapping[str, list[bytes]]:
        return {"x509_common_name": [self.name.encode()], "x509_pem_cert": [self.certificate]}

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return tuple(self.metadata.items())

    def peer(self) -> str:
        return f"ipv4:{_SOURCE}:50000"

    def time_remaining(self) -> None:
        return None

    def set_trailing_metadata(self, metadata: object) -> None:
        pass

    def abort_with_status(self, status: Any) -> None:
        raise RuntimeError(f"the call was refused: {status.details}")


def caller(path: str, kind: str, key_id: str, conditions: str) -> list[Callable[[], object]]:
    """EncryptData up to its key, by a "certificate", "token", "signature" or "temporary-key".

    The caller has one policy; with `conditions` "yes" it asks for address, time and the key's spec.
    """
    core = _opened(path)
    now = wiring.now_millis()
    core.clock = lambda: now  # a signature would be too old before long
    with core.store.write() as tx:
        key = keys.get_key(tx, key_id)
        if key is None:
            raise LookupError(key_id)
        user = _user(tx, key, now, conditions=conditions == "yes")
        secret = access_keys.new_secret(core)
        access_key = access_keys.new_id()
        insert_access_key(
            tx, AccessKey(access_key, user, secret.wrapped, secret.root_label, enabled=True, created=now)
        )
        insert_binding(tx, CertificateBinding(f"CN:{user}", user, key.project_id))
    bearer = Bearer(uuid.uuid4().hex, "token", user, now, now + _HOUR_MILLIS, project_id=key.project_id)
    shown: dict[str, Callable[[], Metadata]] = {
        "certificate": dict,
        "token": lambda: {"hsmd-auth-token": bearers.sign(core, TOKEN, bearer)},
        "signature": lambda: _signed(key, now, access_key, secret.text),
        "temporary-key": lambda: _temporary(core, key, now, bearer),
    }
    name = user if kind == "certificate" else _GATEWAY
    metadata = {"hsmd-source": _SOURCE, "hsmd-project-id": key.project_id, **shown[kind]()}
    context: Any = _Context(name, config.load(Path(path), {}).grpc.certificate.read_bytes(), metadata)
    request = EncryptDataRequest(project_id=key.project_id, key_id=key_id, plain_text=b"x" * 32)
    raw = request.SerializeToString()
    handle = _handle(core)
    return [lambda: handle(raw, context)]


def mac(path: str) -> list[Callable[[], object]]:
    """The HSM's HMAC-SHA-256 over what is signed of a request, by a secret access key."""
    return [_hmac(_opened(path))]


def way(path: str, key_id: str, signs: str) -> list[Callable[[], object]]:
    """The pipeline where nobody is asked who it is; with `signs` "yes" the HSM's HMAC besides."""
    core = _opened(path)
    compute = _hmac(core) if signs == "yes" else Empty

    def serve(_call: Call, _request: EncryptDataRequest) -> Empty:
        compute()
        return Empty()

    certificate = config.load(Path(path), {}).grpc.certificate.read_bytes()
    context: Any = _Context(_GATEWAY, certificate, {"hsmd-source": _SOURCE})
    raw = EncryptDataRequest(key_id=key_id, plain_text=b"x" * 32).SerializeToString()
    handle = _pipeline(core).handler(replace(_method(), access=options_pb2.OPEN, action="", grant=""), serve)
    return [lambda: handle(raw, context)]


def _hmac(core: Core) -> Callable[[], object]:
    secret = access_keys.new_secret(core)
    key = core.token.unwrap(ACCESS_KEY, secret.wrapped, core.token.find(secret.root_label))
    text = b"SDK-HMAC-SHA256\n20240102T030405Z\n" + b"0" * 64
    return lambda: core.token.hmac(key, text)


def _opened(path: str) -> Core:
    settings = config.load(Path(path), {})
    core = wiring.open_core(settings, wiring.read_pin(settings.hsm))
    core.token.connect()
    return core


def _method() -> Method:
    return next(each for found, each in methods_of(crypto.SERVICE) if found.name == "EncryptData")


def _pipeline(core: Core) -> Pipeline:
    meet = evidence.tls(core, frozenset([f"CN:{_GATEWAY}"]), {}, None)
    return Pipeline(core, _NoLog(), meet, process="bench", deadline=30.0)


def _handle(core: Core) -> Handle:
    def serve(call: Call, request: EncryptDataRequest) -> Empty:
        access.usable(access.key(call, request.key_id))
        return Empty()

    return _pipeline(core).handler(_method(), serve)


def _user(tx: Tx, key: Key, now: int, *, conditions: bool) -> str:
    """The id of a user who may do everything in the key's project, if the conditions hold."""
    statement: dict[str, object] = {"Effect": "Allow", "Action": ["kms:*:*"]}
    if conditions:
        statement["Condition"] = _CONDITIONS
    document = json.dumps({"Version": "1.1", "Statement": [statement]})
    user, policy = uuid.uuid4().hex, uuid.uuid4().hex
    identity.insert_user(tx, User(user, key.domain_id, user, "", enabled=True, created=now))
    policies.insert_policy(
        tx, Policy(policy, key.domain_id, policy, policy, "", "", "XA", document, now, now)
    )
    policies.assign(tx, Assignment(policies.USER, user, policies.PROJECT, key.project_id, policy))
    return user


def _temporary(core: Core, key: Key, now: int, bearer: Bearer) -> Metadata:
    secret = access_keys.new_secret(core)
    access_key = access_keys.new_id("HST")
    made = Bearer(
        id=uuid.uuid4().hex,
        method="token",
        user_id=bearer.user_id,
        issued=now,
        expires=bearer.expires,
        project_id=key.project_id,
        ancestors=(bearer.id,),
        access_key=access_key,
        wrapped=secret.wrapped.hex(),
        root_label=secret.root_label,
    )
    return _signed(key, now, access_key, secret.text, bearers.sign(core, SECURITY_TOKEN, made))


def _signed(key: Key, now: int, access_key: str, secret: str, security_token: str = "") -> Metadata:
    """What the gateway forwards of a request that is signed as SDKs do."""
    path = f"/v1.0/{key.project_id}/kms/encrypt-data"
    date = datetime.fromtimestamp(now / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
    headers = {b"content-type": b"application/json", b"host": b"hsmd.example", b"x-sdk-date": date.encode()}
    if security_token:
        headers[b"x-security-token"] = security_token.encode()
    body = json.dumps({"key_id": key.id, "plain_text": "x" * 32}).encode()
    canonical = canonical_request("POST", path.encode(), [], headers, sorted(headers), body)
    text = f"SDK-HMAC-SHA256\n{date}\n{hashlib.sha256(canonical).hexdigest()}"
    found: dict[str, str | bytes] = {
        "hsmd-access-key": access_key,
        "hsmd-sdk-date": date,
        "hsmd-canonical-request-bin": canonical,
        "hsmd-signature": hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest(),
    }
    return {**found, "hsmd-security-token": security_token} if security_token else found
