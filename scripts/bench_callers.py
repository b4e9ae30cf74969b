"""A call's way through the daemon without gRPC, audit log and operation: who calls, and may it use this key.

It is the daemon's own pipeline, in a process of its own beside the daemon, on the daemon's store and token.
What refusals take stands here too: who is known and who is not, should not be told apart by it.
"""

import gc
import hashlib
import hmac
import itertools
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from hsmd import config
from hsmd.algorithms import ACCESS_KEY
from hsmd.api import crypto, evidence
from hsmd.api import identity as servicer
from hsmd.api.methods import Method, methods_of
from hsmd.api.pipeline import Pipeline, Serve
from hsmd.daemon import wiring
from hsmd.domain import access, access_keys, bearers, passwords
from hsmd.domain.bearers import SECURITY_TOKEN, TOKEN, Bearer
from hsmd.domain.core import DAY_MILLIS, Call
from hsmd.domain.throttle import Recent, Throttle
from hsmd.errors import TOKEN_REQUEST_REFUSED
from hsmd.gateway.signatures import canonical_request
from hsmd.pb.options.v1 import options_pb2
from hsmd.pb.v1.crypto_pb2 import EncryptDataRequest
from hsmd.pb.v1.identity_pb2 import CreateTokenRequest
from hsmd.store import identity, keys, policies
from hsmd.store.access_keys import AccessKey, insert_access_key
from hsmd.store.certificates import CertificateBinding, insert_binding
from hsmd.store.identity import User
from hsmd.store.policies import Assignment, Policy

CALLERS = tuple(
    (kind, conditions)
    for kind in ("certificate", "token", "signature", "temporary-key")
    for conditions in (False, True)
)
_SIGNATURE = "refused: a wrong signature by an access key that there is"
_PASSWORD = "refused: a wrong password of a user that there is"  # noqa: S105 -- a name
REFUSALS = (
    (_SIGNATURE, ""),
    ("refused: the same by an access key that there is not", _SIGNATURE),
    ("refused: the same by one that was not tried for seconds", _SIGNATURE),
    (_PASSWORD, ""),
    ("refused: the same of a user that there is not", _PASSWORD),
)
"""What `callers` and `refusals` give, in their order; refusals with what they are held against."""

_GATEWAY = "hsmd-gateway"
_HOUR_MILLIS = 60 * 60 * 1000
_SOURCE = "127.0.0.1"
_CONDITIONS = {
    "IpAddress": {"g:SourceIp": ["127.0.0.0/8", "10.0.0.0/8"]},
    "DateLessThan": {"g:CurrentTime": ["2100-01-01T00:00:00Z"]},
    "StringEquals": {"kms:KeySpec": ["AES_256", "SM4"]},
}
Metadata = Mapping[str, str | bytes]
Operation = Callable[[], object]


class _NoLog:
    def append(self, record: Mapping[str, object], timeout: float) -> None:
        """It is measured elsewhere what the disk takes."""


class _RefusedError(Exception):
    """The call was refused, for that reason."""


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
        raise _RefusedError(status.details)


class _Daemon:
    """Core and pipeline as a worker has them, and a key. The clock stands, for signatures grow old."""

    def __init__(self, path: str, key_id: str) -> None:
        settings = config.load(Path(path), {})
        self.core = wiring.open_core(settings, wiring.read_pin(settings.hsm))
        self.core.token.connect()
        self.now = wiring.now_millis()
        self.core.clock = lambda: self.now
        self._certificate = settings.grpc.certificate.read_bytes()
        self.meet = evidence.tls(self.core, frozenset([f"CN:{_GATEWAY}"]), {}, None)
        with self.core.store.read() as tx:
            found = keys.get_key(tx, key_id)
        if found is None:
            raise LookupError(key_id)
        self.key = found

    def call(
        self,
        method: Method,
        serve: Serve,
        request: Message,
        metadata: Metadata,
        name: str = _GATEWAY,
        meet: evidence.Meet | None = None,
    ) -> Operation:
        """That call, by that certificate; `meet` in place of the daemon's own."""
        pipeline = Pipeline(self.core, _NoLog(), meet or self.meet, process="bench", deadline=30.0)
        handle, raw = pipeline.handler(method, serve), request.SerializeToString()
        context: Any = _Context(name, self._certificate, {"hsmd-source": _SOURCE, **metadata})
        return lambda: handle(raw, context)

    def encrypt(self, metadata: Metadata, name: str = _GATEWAY) -> Operation:
        """EncryptData up to its key."""

        def serve(call: Call, request: EncryptDataRequest) -> Empty:
            access.usable(access.key(call, request.key_id))
            return Empty()

        method = _method(crypto.SERVICE, "EncryptData")
        return self.call(
            method, serve, self.request, {"hsmd-project-id": self.key.project_id, **metadata}, name
        )

    @property
    def request(self) -> EncryptDataRequest:
        """EncryptData of 32 bytes."""
        return EncryptDataRequest(project_id=self.key.project_id, key_id=self.key.id, plain_text=b"x" * 32)

    def signed(self, access_key: str, secret: str, security_token: str = "") -> Metadata:
        """What the gateway forwards of that request when it is signed as SDKs do."""
        path = f"/v1.0/{self.key.project_id}/kms/encrypt-data"
        date = datetime.fromtimestamp(self.now / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
        headers = {
            b"content-type": b"application/json",
            b"host": b"hsmd.example",
            b"x-sdk-date": date.encode(),
        }
        if security_token:
            headers[b"x-security-token"] = security_token.encode()
        body = json.dumps({"key_id": self.key.id, "plain_text": "x" * 32}).encode()
        canonical = canonical_request("POST", path.encode(), [], headers, sorted(headers), body)
        text = f"SDK-HMAC-SHA256\n{date}\n{hashlib.sha256(canonical).hexdigest()}"
        found: dict[str, str | bytes] = {
            "hsmd-access-key": access_key,
            "hsmd-sdk-date": date,
            "hsmd-canonical-request-bin": canonical,
            "hsmd-signature": hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest(),
        }
        return {**found, "hsmd-security-token": security_token} if security_token else found

    def hmac(self) -> Operation:
        """The HSM's HMAC-SHA-256 over what is signed of a request, by a secret access key."""
        core, secret = self.core, access_keys.new_secret(self.core)
        key = core.token.unwrap(ACCESS_KEY, secret.wrapped, core.token.find(secret.root_label))
        text = b"SDK-HMAC-SHA256\n20240102T030405Z\n" + b"0" * 64
        return lambda: core.token.hmac(key, text)


def mac(path: str, key_id: str) -> list[Operation]:
    """See `_Daemon.hmac`."""
    return [_Daemon(path, key_id).hmac()]


def callers(path: str, key_id: str) -> list[Operation]:
    """The pipeline where nobody is asked who it is; the same and the HSM's HMAC; then each of `CALLERS`."""
    daemon = _Daemon(path, key_id)
    compute = daemon.hmac()
    made = [
        _way(daemon, lambda: None),
        _way(daemon, compute),
        *(_caller(daemon, kind, conditions=conditions) for kind, conditions in CALLERS),
    ]
    gc.freeze()  # as in the daemon
    return made


def refusals(path: str, key_id: str) -> list[Operation]:
    """Each of `REFUSALS`, as if nobody had been refused before."""
    daemon = _Daemon(path, key_id)
    core, days = daemon.core, itertools.count(1)
    known, access_key, _ = _user(daemon, password_hash=passwords.hash_password(uuid.uuid4().hex))
    unknown, strange = uuid.uuid4().hex, access_keys.new_id()
    create_token = _method(servicer.SERVICE, "CreateToken")

    def sign(access_key: str) -> Operation:
        operation = daemon.encrypt(daemon.signed(access_key, "wrong"))

        def attempt() -> None:
            core.throttle, core.clock = Throttle(), lambda: daemon.now
            _refused(operation, "verify aksk signature fail")

        return attempt

    def log_in(name: str) -> Operation:
        user = {"name": name, "password": "wrong", "domain": {"id": daemon.key.domain_id}}
        asked = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}}
        operation = daemon.call(
            create_token, servicer.create_token, ParseDict(asked, CreateTokenRequest()), {}
        )

        def attempt() -> None:
            later = daemon.now + next(days) * DAY_MILLIS  # the account is not locked any more
            core.throttle, core.clock = Throttle(), lambda: later
            _refused(operation, TOKEN_REQUEST_REFUSED.text)

        return attempt

    def anew() -> None:
        core.unknown_access_keys = Recent()
        again()

    again = sign(strange)
    return [sign(access_key), again, anew, log_in(known), log_in(unknown)]


def _way(daemon: _Daemon, work: Operation) -> Operation:
    """The call of a method that is open to anybody; the work is done where it is asked who calls."""

    def meet(context: grpc.ServicerContext, metadata: Metadata) -> evidence.Peer:
        work()
        return daemon.meet(context, metadata)

    method = replace(_method(crypto.SERVICE, "EncryptData"), access=options_pb2.OPEN, action="", grant="")
    return daemon.call(method, lambda _call, _request: Empty(), daemon.request, {}, meet=meet)


def _caller(daemon: _Daemon, kind: str, *, conditions: bool) -> Operation:
    """The caller has one policy; with `conditions` it asks for address, time and the key's spec."""
    core, now, project = daemon.core, daemon.now, daemon.key.project_id
    user, access_key, secret = _user(daemon, conditions=conditions)
    if kind == "certificate":
        return daemon.encrypt({}, user)
    if kind == "signature":
        return daemon.encrypt(daemon.signed(access_key, secret))
    token = Bearer(uuid.uuid4().hex, "token", user, now, now + _HOUR_MILLIS, project_id=project)
    if kind == "token":
        return daemon.encrypt({"hsmd-auth-token": bearers.sign(core, TOKEN, token)})
    made = access_keys.new_secret(core)
    temporary = Bearer(
        id=uuid.uuid4().hex,
        method="token",
        user_id=user,
        issued=now,
        expires=token.expires,
        project_id=project,
        ancestors=(token.id,),
        access_key=access_keys.new_id("HST"),
        wrapped=made.wrapped.hex(),
        root_label=made.root_label,
    )
    security_token = bearers.sign(core, SECURITY_TOKEN, temporary)
    return daemon.encrypt(daemon.signed(temporary.access_key, made.text, security_token))


def _user(daemon: _Daemon, *, conditions: bool = False, password_hash: str = "") -> tuple[str, str, str]:
    """A user who may do all in the key's project: id (its names are that, too), access key, secret."""
    statement: dict[str, object] = {"Effect": "Allow", "Action": ["kms:*:*"]}
    if conditions:
        statement["Condition"] = _CONDITIONS
    document = json.dumps({"Version": "1.1", "Statement": [statement]})
    key, now, user, policy = daemon.key, daemon.now, uuid.uuid4().hex, uuid.uuid4().hex
    secret, access_key = access_keys.new_secret(daemon.core), access_keys.new_id()
    with daemon.core.store.write() as tx:
        identity.insert_user(tx, User(user, key.domain_id, user, password_hash, enabled=True, created=now))
        policies.insert_policy(
            tx, Policy(policy, key.domain_id, policy, policy, "", "", "XA", document, now, now)
        )
        policies.assign(tx, Assignment(policies.USER, user, policies.PROJECT, key.project_id, policy))
        insert_access_key(
            tx, AccessKey(access_key, user, secret.wrapped, secret.root_label, enabled=True, created=now)
        )
        insert_binding(tx, CertificateBinding(f"CN:{user}", user, key.project_id))
    return user, access_key, secret.text


def _method(service: ServiceDescriptor, name: str) -> Method:
    return next(each for found, each in methods_of(service) if found.name == name)


def _refused(operation: Operation, reason: str) -> None:
    try:
        operation()
    except _RefusedError as error:
        if reason not in str(error):
            raise
    else:
        raise RuntimeError("it was not refused")
