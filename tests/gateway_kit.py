"""A real gateway process, and a gRPC server behind it that records calls and answers as a test wants."""

import http.client
import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.sdk_request import SdkRequest
from huaweicloudsdkcore.signer.signer import Signer

from hsmd.daemon.certificates import Authority
from hsmd.errors import BY_CODE
from tests.stand import free_port

PROJECT = "0123456789abcdef0123456789abcdef"
SECRET = "s3cr3t"
TOKEN = {"X-Auth-Token": "any-token"}

_RUN = """
import sys
from pathlib import Path
from hsmd.config import load
from hsmd.gateway.server import run
sys.exit(run(load(Path(sys.argv[1]), {}), lambda: print("ready", flush=True)))
"""


class NotStartedError(Exception):
    """The gateway ended at its start; the text is its standard error."""


class RefusedError(Exception):
    """Answer this fault."""

    def __init__(self, code: str, message: str) -> None:
        self.fault = BY_CODE[code]
        self.message = message


@dataclass
class Daemon:
    """What stands where the daemon stands. `answer` maps (method, request bytes) to response bytes."""

    authority: Authority
    answer: Callable[[str, bytes], bytes]
    seen: list[tuple[str, bytes, dict[str, str | bytes]]] = field(default_factory=list)
    peers: set[str] = field(default_factory=set)
    port: int = field(default_factory=free_port)  # which nobody else is given while it is stopped
    connection_age: int = 2**31 - 1  # milliseconds until clients are told to reconnect
    _server: grpc.Server | None = None

    def start(self) -> None:
        pair = self.authority.server("daemon", ["127.0.0.1"])
        credentials = grpc.ssl_server_credentials(
            [(pair.key.read_bytes(), pair.certificate.read_bytes())],
            root_certificates=self.authority.pair.certificate.read_bytes(),
            require_client_auth=True,
        )
        self._server = grpc.server(
            futures.ThreadPoolExecutor(16),
            handlers=[_Handler(self)],
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_metadata_size", 65536),
                ("grpc.max_connection_age_ms", self.connection_age),
            ],
        )
        self._server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(0).wait()

    def twin(self) -> "Daemon":
        """Another one on the same port, as the daemon's workers are."""
        one = Daemon(self.authority, self.answer, port=self.port)
        one.start()
        return one

    def giving(self, response: bytes) -> Any:
        return self.answering(lambda *_: response)

    @contextmanager
    def answering(self, answer: Callable[[str, bytes], bytes]) -> Iterator[None]:
        before, self.answer = self.answer, answer
        try:
            yield
        finally:
            self.answer = before

    def refusing(self, code: str, message: str) -> Any:
        def answer(method: str, request: bytes) -> bytes:
            raise RefusedError(code, message)

        return self.answering(answer)


class _Handler(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs only
    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        def call(request: bytes, context: grpc.ServicerContext) -> bytes:
            if details.method.startswith("/hsmd.v1.Gateways/"):  # for the audit log, whenever it likes
                return b""
            self.daemon.seen.append((details.method, request, dict(details.invocation_metadata)))
            self.daemon.peers.add(context.peer())
            try:
                return self.daemon.answer(details.method, request)
            except RefusedError as error:
                packed = any_pb2.Any()
                packed.Pack(error_details_pb2.ErrorInfo(reason=error.fault.code, domain="hsmd"))
                status = grpc.StatusCode[error.fault.grpc]
                rich = status_pb2.Status(code=status.value[0], message=error.message, details=[packed])
                context.set_trailing_metadata((("grpc-status-details-bin", rich.SerializeToString()),))
                context.abort(status, error.message)
            raise AssertionError

        return grpc.unary_unary_rpc_method_handler(call)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


class Rest:
    """The running gateway, and ways to talk to it."""

    def __init__(self, folder: Path, authority: Authority, daemon_port: int, **options: Any) -> None:
        own = authority.server("gateway", ["localhost", "127.0.0.1"])
        client = authority.client("gateway-client", "hsmd-gateway")
        self.ca = authority.pair.certificate
        self.port = options.pop("port", 0) or free_port()
        self.options = {
            "port": self.port,
            "certificate": str(own.certificate),
            "key": str(own.key),
            "daemon": f"127.0.0.1:{daemon_port}",
            "daemon_ca": str(self.ca),
            "daemon_certificate": str(client.certificate),
            "daemon_key": str(client.key),
            "channels": 4,
            **options,
        }
        self.file = folder / "gateway.toml"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> "Rest":
        lines = [f"{name} = {json.dumps(value)}" for name, value in self.options.items()]
        self.file.write_text("[gateway]\n" + "\n".join(lines) + "\n")
        self.process = subprocess.Popen(
            [sys.executable, "-c", _RUN, str(self.file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise NotStartedError(self.wait()[1])
        return self

    def stop(self) -> tuple[int, str]:
        """Ask it to stop; its exit code and standard error."""
        assert self.process is not None
        self.process.terminate()
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """Exit code and standard error when it has ended."""
        assert self.process is not None
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors

    def connect(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=self.ca)
        return http.client.HTTPSConnection("localhost", self.port, timeout=30, context=context)

    def socket(self) -> ssl.SSLSocket:
        """A raw TLS connection."""
        context = ssl.create_default_context(cafile=self.ca)
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        return context.wrap_socket(plain, server_hostname="localhost")

    def send(
        self, verb: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request; a body that is no bytes goes as JSON, a token goes along unless headers are given."""
        connection = self.connect()
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(verb, path, data, dict(TOKEN if headers is None else headers))
        response = connection.getresponse()
        answer = Answer(response.status, response.headers, response.read())
        connection.close()
        return answer

    def kms(self, operation: str, body: Any, **headers: str) -> Answer:
        return self.send("POST", f"/v1.0/{PROJECT}/kms/{operation}", body, {**TOKEN, **headers})


def in_background(work: Callable[[], Any]) -> "futures.Future[Any]":
    found: futures.Future[Any] = futures.Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return found


def sdk_signed(
    verb: str,
    path: str,
    query: list[tuple[str, Any]] | None = None,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> SdkRequest:
    """A request as the official SDK signs it: `uri` and `header_params` are what goes over the wire."""
    request = SdkRequest(
        method=verb,
        schema="https",
        host="localhost:8443",
        resource_path=path,
        query_params=query or [],
        header_params={"Content-Type": "application/json", "User-Agent": "sdk/3.0", **(headers or {})},
        body=body,
    )
    return Signer(BasicCredentials(ak="AKIDAKIDAKIDAKIDAKID", sk=SECRET)).sign(request)
