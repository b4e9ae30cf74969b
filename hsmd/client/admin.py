"""AdminClient: a connection to the administrators' door, where a UKey says who calls.

Before the UKey signs to log in, what is to be signed is looked at: it has to name this client's certificate,
the certificate that the server shows by TLS, this UKey and the service that is to be called. So nobody
between the two can use what was signed.
"""

import hashlib
import re
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from hsmd import ukey
from hsmd.client.calls import Calls, open_channel
from hsmd.client.errors import ClientError, SetupError
from hsmd.pb.v1 import ukeys_pb2 as pb
from hsmd.pb.v1.ukeys_pb2_grpc import UkeysStub

_SESSION = "hsmd-admin-session"
_PATH = re.compile(r"/([A-Za-z0-9_.]+)/[A-Za-z]+")

Stub = TypeVar("Stub")


class Signer(Protocol):
    """A UKey as far as logging in needs it: hsmd.hsm.ukey_token.UKeyToken is one."""

    @property
    def public_key(self) -> bytes:
        """DER SubjectPublicKeyInfo."""

    def sign(self, signed: bytes) -> bytes:
        """Its signature of a statement."""


class AdminClient:
    """Calls to one daemon in the name of a UKey; safe to share between threads, not over a fork.

    `target` is host:port of the administrators' door; the files are PEM. `signer` may be left out for what is
    open to anybody with a certificate. `ukeys` is the generated stub of that service, `stub` makes any other;
    each service is logged in to when it is first called. Every call raises ApiError; a login that the UKey
    must not sign raises ClientError, making an AdminClient SetupError.
    """

    def __init__(
        self,
        target: str,
        *,
        ca: Path,
        certificate: Path,
        key: Path,
        signer: Signer | None = None,
        server_name: str = "",
        deadline: float = 20.0,
    ) -> None:
        if target.startswith("unix:") or ":" not in target:
            raise SetupError("the administrators' door is at host:port")
        self._target = target
        self._server_name = server_name
        self._files = ca, certificate, key
        self._deadline = deadline
        self._signer = signer
        self._channel = open_channel(target, ca=ca, certificate=certificate, key=key, server_name=server_name)
        self._sessions: dict[str, str] = {}
        self._lock = threading.Lock()
        self._open = UkeysStub(Calls(self._channel, deadline=deadline, project_id=""))
        self.ukey: pb.Ukey | None = None  # who we are, once we have logged in
        self.instance = ""  # of the daemon that has let us in
        self.ukeys = self.stub(UkeysStub)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, and with it its sessions."""
        self._channel.close()

    def stub(self, kind: Callable[..., Stub]) -> Stub:
        """A generated stub whose calls come from the UKey."""
        return kind(_Calls(self._channel, self._deadline, self._metadata))

    def begin_login(self, service: str) -> pb.BeginLoginResponse:
        """A challenge for the UKey, looked at. Raises ApiError, ClientError."""
        signer = self._signed()
        asked: pb.BeginLoginResponse = self._open.BeginLogin(
            pb.BeginLoginRequest(fingerprint=ukey.fingerprint(signer.public_key), purpose=service)
        )
        self._check(asked, service, signer)
        return asked

    def log_in(self, asked: pb.BeginLoginResponse) -> pb.LoginResponse:
        """Have the UKey sign the challenge. Raises ApiError, and what the UKey raises."""
        signature = self._signed().sign(login_statement(asked))
        request = pb.LoginRequest(challenge=asked.challenge, signature=signature)
        found: pb.LoginResponse = self._open.Login(request)
        self.ukey, self.instance = found.ukey, asked.instance
        return found

    def _signed(self) -> Signer:
        if self._signer is None:
            raise SetupError("a UKey is needed for this")
        return self._signer

    def _metadata(self, service: str) -> tuple[tuple[str, str], ...]:
        if self._signer is None:
            return ()
        with self._lock:
            if service not in self._sessions:
                self._sessions[service] = self.log_in(self.begin_login(service)).session
            return ((_SESSION, self._sessions[service]),)

    def _check(self, asked: pb.BeginLoginResponse, service: str, signer: Signer) -> None:
        ca, certificate, key = self._files
        own = ssl.PEM_cert_to_DER_cert(_first(certificate))
        shown = _server_certificate(self._target, ca, certificate, key, self._server_name, self._deadline)
        due: Mapping[str, tuple[str, str]] = {
            "the server's certificate": (asked.server_certificate, hashlib.sha256(shown).hexdigest()),
            "our certificate": (asked.client_certificate, hashlib.sha256(own).hexdigest()),
            "our UKey": (asked.key, ukey.fingerprint(signer.public_key)),
            "the service": (asked.purpose, service),
        }
        wrong = [name for name, (told, right) in due.items() if told != right]
        if wrong:
            names = " and ".join(wrong)
            raise ClientError(
                f"{self._target} asks the UKey to sign what is not for it: {names} differ; nothing was signed"
            )


def login_statement(asked: pb.BeginLoginResponse) -> bytes:
    """What the UKey signs for a challenge."""
    values = ukey.login_values(
        challenge=asked.challenge,
        instance=asked.instance,
        server_certificate=asked.server_certificate,
        client_certificate=asked.client_certificate,
        peer=asked.peer,
        key=asked.key,
        purpose=asked.purpose,
        expires=asked.expires,
    )
    return ukey.statement(ukey.Purpose.LOGIN, values)


class _Calls(Calls):
    """Calls with the session of the service that they go to."""

    def __init__(
        self, channel: Any, deadline: float, metadata: Callable[[str], tuple[tuple[str, str], ...]]
    ) -> None:
        super().__init__(channel, deadline=deadline, project_id="")
        self._of = metadata

    def unary_unary(self, path: str, *arguments: Any, **options: Any) -> Callable[..., Any]:
        """Like that of Calls."""
        found = _PATH.fullmatch(path)
        service = found[1] if found else path
        return self.made(path, *arguments, more=lambda: self._of(service), **options)


def _first(certificate: Path) -> str:
    text = certificate.read_text(encoding="utf-8")
    begin = text.index(ssl.PEM_HEADER)
    return text[begin : text.index(ssl.PEM_FOOTER, begin) + len(ssl.PEM_FOOTER)]


def _server_certificate(
    target: str, ca: Path, certificate: Path, key: Path, server_name: str, seconds: float
) -> bytes:
    """The certificate (DER) that the server shows, checked like every connection's. Raises ClientError."""
    host, _, port = target.rpartition(":")
    host = host.strip("[]")
    context = ssl.create_default_context(cafile=str(ca))
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, int(port)), timeout=seconds) as plain,
            context.wrap_socket(plain, server_hostname=server_name or host) as connection,
        ):
            return connection.getpeercert(binary_form=True) or b""
    except (OSError, ValueError) as error:
        raise ClientError(f"{target}: the server's certificate can't be looked at: {error}") from error
