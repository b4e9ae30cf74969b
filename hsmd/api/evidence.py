"""From a call's connection and metadata to an identity, one class a kind of peer.

Evidence of others (`hsmd-auth-token`, `hsmd-signature`, ...) is honoured only from certificates that the
configuration names as gateways; such a certificate is nobody by itself.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ssl import PEM_cert_to_DER_cert
from typing import Any, Protocol
from urllib.parse import unquote

import grpc
from cryptography import x509
from google.protobuf.message import Message

from hsmd import tracing
from hsmd.api import revocation_list
from hsmd.api.methods import Method, signed_beginning
from hsmd.api.revocation_list import RevocationList
from hsmd.config import UnixListener
from hsmd.domain import certificates, external, identity, signatures, sources, tokens
from hsmd.domain.core import Call, Channel, Core
from hsmd.domain.identity import Identity
from hsmd.domain.signatures import Signature
from hsmd.domain.ukey_sessions import Sessions
from hsmd.errors import IDENTITY_REFUSED, Error

Metadata = Mapping[str, str | bytes]

SESSION_KEY = "hsmd-admin-session"


class Peer(Protocol):
    """The other end of one call: the address it comes from, and who it can show to be."""

    @property
    def source(self) -> str:
        """The address, without its port; "local" for a Unix socket."""

    @property
    def channel(self) -> Channel:
        """The connection, where that counts: at the administrators' door."""

    def check(self) -> None:
        """Raises Error(IDENTITY_REFUSED) for one that may call nothing, not even what is open to anybody."""

    def identify(self, call: Call, method: Method, request: Message) -> Identity:
        """Who it is. Raises Error(IDENTITY_REFUSED, RATE_EXCEEDED) and the faults of tokens."""


Meet = Callable[[grpc.ServicerContext, Metadata], Peer]
Trace = Callable[[grpc.ServicerContext, Metadata], str]

_CERTIFICATE_NAMES = (
    ("CN:", "x509_common_name"),
    ("URI:", "peer_uri"),
    ("DNS:", "peer_dns"),
    ("EMAIL:", "peer_email"),
)


_TOKEN, _ACCESS_KEY, _BEARER = _SHOWN = ("hsmd-auth-token", "hsmd-access-key", "hsmd-bearer")
_ANY_CHANNEL = Channel()
_OURS = "SFRL"  # how tokens of our own begin: "HTK", their magic, in base64


def certificate_names(properties: Mapping[str, Iterable[bytes]], certificate: bytes) -> list[str]:
    """The names of the verified client certificate (PEM), as mappings and configuration spell them."""
    names = [
        prefix + bytes(value).decode("utf-8", "replace")
        for prefix, key in _CERTIFICATE_NAMES
        for value in properties.get(key, ())
    ]
    subject = _subject(certificate)
    return [*names, f"SUBJECT:{subject}"] if subject else names


@lru_cache(maxsize=4096)
def _subject(certificate: bytes) -> str:
    """The subject as RFC 4514 writes it, like "CN=web,OU=payments,O=Example"; "" for none."""
    try:
        return x509.load_pem_x509_certificate(certificate).subject.rfc4514_string()
    except ValueError:  # what TLS took is not always to the liking of others; then its other names count
        return ""


@dataclass(frozen=True, slots=True)
class Revocable:
    """The certificate of a connection (PEM), and the list that it may have come to stand on."""

    certificate: bytes
    revoked: RevocationList | None

    @property
    def channel(self) -> Channel:
        """It does not count here."""
        return _ANY_CHANNEL

    def check(self) -> None:
        """Raises Error(IDENTITY_REFUSED) for one that is revoked."""
        if self.revoked is not None:
            self.revoked.check(self.certificate)


@dataclass(frozen=True, slots=True)
class CertificatePeer(Revocable):
    """A client with a certificate of its own."""

    core: Core
    source: str
    names: list[str]

    def identify(self, call: Call, method: Method, request: Message) -> Identity:
        """The user the certificate is mapped to."""
        return certificates.by_certificate(self.core, self.names, revocation_list.mark_of(self.certificate))


@dataclass(frozen=True, slots=True)
class RegionPeer(Revocable):
    """Another region: its certificate is nobody's else, and lets it call what is for peers alone."""

    source: str
    regions: frozenset[str]

    def identify(self, call: Call, method: Method, request: Message) -> Identity:
        """The region, which is no user and acts in no project."""
        if len(self.regions) != 1:
            raise Error(IDENTITY_REFUSED, reason="this certificate belongs to several regions")
        return identity.by_region(*self.regions)


@dataclass(frozen=True, slots=True)
class SocketPeer:
    """A local process: whoever may open the socket is the user that the configuration binds it to."""

    core: Core
    source: str
    listener: UnixListener

    @property
    def channel(self) -> Channel:
        """There is none."""
        return _ANY_CHANNEL

    def check(self) -> None:
        """Nothing is to be checked: the socket is open to it."""

    def identify(self, call: Call, method: Method, request: Message) -> Identity:
        """The listener's user."""
        return identity.by_socket(self.core, self.listener.user_id, self.listener.project_id)


@dataclass(frozen=True, slots=True)
class GatewayPeer(Revocable):
    """A gateway: it forwards what its caller showed, and the caller's address."""

    core: Core
    source: str
    metadata: Metadata
    name: str

    def identify(self, call: Call, method: Method, request: Message) -> Identity:
        """The user that the forwarded token or signature belongs to, or itself where it alone may call."""
        if method.for_gateways:
            return identity.by_gateway(self.name)
        shown = [name for name in _SHOWN if self.metadata.get(name)]
        if len(shown) != 1:
            reason = "one of X-Auth-Token, a signature and a bearer token is due"
            raise Error(IDENTITY_REFUSED, reason=reason)
        text = str(self.metadata[shown[0]])
        if shown == [_BEARER]:
            return external.by_bearer(call, text)
        if shown == [_TOKEN]:
            foreign = self.core.providers.keystone is not None and not text.startswith(_OURS)
            return external.by_keystone(call, text) if foreign else tokens.by_token(call, text)
        return self._signed(call, method, request, text)

    def _signed(self, call: Call, method: Method, request: Message, access_key: str) -> Identity:
        shown = self.metadata.get
        canonical = shown("hsmd-canonical-request-bin")
        if not isinstance(canonical, bytes):
            raise Error(IDENTITY_REFUSED, reason="what was signed is missing")
        date, signature = str(shown("hsmd-sdk-date", "")), str(shown("hsmd-signature", ""))
        security_token = str(shown("hsmd-security-token", ""))
        evidence = Signature(access_key, date, canonical, signature, security_token)
        try:
            _check_route(canonical, method, request)
            return signatures.by_signature(call, evidence)
        except Error:
            call.resource = signatures.access_key_resource(access_key)
            raise


def tls(
    core: Core, gateways: frozenset[str], peers: Mapping[str, str], revoked: RevocationList | None
) -> Meet:
    """For the mTLS listener. `peers` holds regions by the names of their certificates."""

    def meet(context: grpc.ServicerContext, metadata: Metadata) -> Peer:
        properties: Mapping[str, Any] = context.auth_context()  # its stub has single values
        certificate = next(iter(properties.get("x509_pem_cert", ())), b"")
        names = certificate_names(properties, certificate)
        if peers and (regions := frozenset(peers[name] for name in names if name in peers)):
            return RegionPeer(certificate, revoked, _address(context.peer()), regions)
        name = next((each for each in names if each in gateways), "")
        if not name:
            return CertificatePeer(certificate, revoked, core, _address(context.peer()), names)
        source = sources.spelled(str(metadata.get("hsmd-source", "")))
        return GatewayPeer(certificate, revoked, core, source, metadata, name)

    return meet


def no_trace(_context: grpc.ServicerContext, _metadata: Metadata) -> str:
    """Calls begin traces of their own here."""
    return ""


def traces_of(gateways: frozenset[str]) -> Trace:
    """What knows the trace (a W3C traceparent) that a call goes on with: the gateways' word alone counts.

    Anybody else could have all of its calls traced, or write into the traces of others.
    """

    def trace(context: grpc.ServicerContext, metadata: Metadata) -> str:
        if not tracing.on() or "traceparent" not in metadata:
            return ""
        properties: Mapping[str, Any] = context.auth_context()  # its stub has single values
        names = certificate_names(properties, next(iter(properties.get("x509_pem_cert", ())), b""))
        return "" if gateways.isdisjoint(names) else str(metadata["traceparent"])

    return trace


@dataclass(frozen=True, slots=True)
class AdminPeer(Revocable):
    """An administrator's machine: nobody by its certificate, a UKey by the session that it names."""

    core: Core
    source: str
    sessions: Sessions
    session: str
    connection: Channel

    @property
    def channel(self) -> Channel:
        """What sessions are bound to."""
        return self.connection

    def identify(self, call: Call, method: Method, request: Message) -> Identity:
        """The UKey whose session it is, on this connection and for this service."""
        return self.sessions.identify(call, self.session, method.service)


def admin(core: Core, sessions: Sessions, revoked: RevocationList | None) -> Meet:
    """For the administrators' door."""

    def meet(context: grpc.ServicerContext, metadata: Metadata) -> Peer:
        properties: Mapping[str, Any] = context.auth_context()  # its stub has single values
        certificate = next(iter(properties.get("x509_pem_cert", ())), b"")
        channel = Channel(context.peer(), _digest_of(certificate))
        session = str(metadata.get(SESSION_KEY, ""))
        return AdminPeer(certificate, revoked, core, _address(channel.peer), sessions, session, channel)

    return meet


@lru_cache(maxsize=1024)
def _digest_of(certificate: bytes) -> str:
    """SHA-256 of the certificate (PEM) as DER, in hex. Raises Error(IDENTITY_REFUSED) for none."""
    try:
        return hashlib.sha256(PEM_cert_to_DER_cert(certificate.decode())).hexdigest()
    except ValueError as error:
        raise Error(IDENTITY_REFUSED, reason="the client's certificate can't be read") from error


def socket(core: Core, listener: UnixListener) -> Meet:
    """For a Unix socket."""
    peer = SocketPeer(core, sources.LOCAL, listener)
    return lambda context, metadata: peer


@lru_cache(maxsize=4096)  # a connection's calls all come from one
def _address(peer: str) -> str:
    """The peer's address without port and zone, from "ipv4:127.0.0.1:5" or "ipv6:%5B::1%5D:5"."""
    address = peer.partition(":")[2].rpartition(":")[0]
    return sources.spelled(unquote(address).strip("[]").partition("%")[0])


def _check_route(canonical: bytes, method: Method, request: Message) -> None:
    """The signed verb and path must be this call's: a gateway can't use them for another one."""
    for route in method.routes:
        beginning = signed_beginning(route, request)
        if beginning is not None and canonical.startswith(beginning.encode()):
            return
    raise Error(IDENTITY_REFUSED, reason="the signature is for another operation")
