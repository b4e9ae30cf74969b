"""How a call is made: over which channel, with a deadline, a request id, repeats and our errors."""

import json
import ssl
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from hsmd.client.errors import REQUEST_ID, SetupError, from_rpc
from hsmd.pb.options.v1 import options_pb2
from hsmd.pb.v1 import (
    access_keys_pb2,
    agencies_pb2,
    agreement_pb2,
    aliases_pb2,
    assignments_pb2,
    certificates_pb2,
    crypto_pb2,
    datakeys_pb2,
    deletion_pb2,
    domain_settings_pb2,
    domains_pb2,
    grants_pb2,
    groups_pb2,
    identity_pb2,
    imports_pb2,
    keys_pb2,
    macs_pb2,
    policies_pb2,
    projects_pb2,
    proposals_pb2,
    regions_pb2,
    rotation_pb2,
    sealing_pb2,
    service_pb2,
    signing_pb2,
    tags_pb2,
    temporary_keys_pb2,
    ukeys_pb2,
    upkeep_pb2,
    users_pb2,
)

_PROJECT_ID = "hsmd-project-id"
_MODULES = (
    access_keys_pb2,
    agencies_pb2,
    agreement_pb2,
    aliases_pb2,
    assignments_pb2,
    certificates_pb2,
    crypto_pb2,
    datakeys_pb2,
    deletion_pb2,
    domain_settings_pb2,
    domains_pb2,
    grants_pb2,
    groups_pb2,
    identity_pb2,
    imports_pb2,
    keys_pb2,
    macs_pb2,
    policies_pb2,
    projects_pb2,
    proposals_pb2,
    regions_pb2,
    rotation_pb2,
    sealing_pb2,
    service_pb2,
    signing_pb2,
    tags_pb2,
    temporary_keys_pb2,
    ukeys_pb2,
    upkeep_pb2,
    users_pb2,
)
# A worker is replaced and a token found again within seconds: five attempts spread over about three.
_RETRY = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def repeatable_methods() -> list[tuple[str, str]]:
    """(service, method) of every method whose proto option says that it is safe to send again."""
    return [
        (service.full_name, method.name)
        for module in _MODULES
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.GetOptions().Extensions[options_pb2.method].repeatable
    ]


def service_config() -> str:
    """The gRPC service config that repeats these methods, and no others."""
    names = [{"service": service, "method": method} for service, method in repeatable_methods()]
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": _RETRY}]})


def open_channel(
    target: str, *, ca: Path | None, certificate: Path | None, key: Path | None, server_name: str
) -> grpc.Channel:
    """A channel to host:port by mutual TLS, or to unix:PATH in the clear. Raises SetupError."""
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", service_config()),
        ("grpc.use_local_subchannel_pool", 1),  # a connection of its own: clients spread over workers
        ("grpc.initial_reconnect_backoff_ms", 100),  # not later than the repeats above
        ("grpc.min_reconnect_backoff_ms", 5000),  # despite its name: how long one attempt may take
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]
    if target.startswith("unix:"):
        return grpc.insecure_channel(target, options)
    if not target:
        raise SetupError("the server's address (host:port or unix:PATH) is missing")
    if ca is None or certificate is None or key is None:
        raise SetupError(
            f"{target}: a CA, a client certificate and its key are needed; only unix: goes without"
        )
    if server_name:
        options.append(("grpc.ssl_target_name_override", server_name))
    return grpc.secure_channel(target, _credentials(ca, certificate, key), options)


def _credentials(ca: Path, certificate: Path, key: Path) -> grpc.ChannelCredentials:
    """Credentials from PEM files, tried first: gRPC itself would only say "unavailable", much later."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _tried(f"CA file {ca}", lambda: context.load_verify_locations(cafile=ca))
    pair = f"client certificate {certificate} with key {key}"
    _tried(pair, lambda: context.load_cert_chain(certificate, key, password=""))
    return grpc.ssl_channel_credentials(ca.read_bytes(), key.read_bytes(), certificate.read_bytes())


def _tried(what: str, load: Callable[[], None]) -> None:
    try:
        load()
    except ssl.SSLError as error:
        raise SetupError(f"{what}: not usable: {error.reason or 'not PEM'}") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the key is encrypted"
        raise SetupError(f"{what}: can't be read: {reason}") from error


class Calls:
    """What the generated stubs take for their channel.

    Every method made through it sends a fresh request id (and the project's, if any), has a deadline in
    seconds unless the call names its own `timeout`, and raises ApiError.
    """

    def __init__(self, channel: grpc.Channel, *, deadline: float, project_id: str) -> None:
        self._channel = channel
        self._deadline = deadline
        self._project = ((_PROJECT_ID, project_id),) if project_id else ()

    def unary_unary(self, path: str, *arguments: Any, **options: Any) -> Callable[..., Any]:
        """Like grpc.Channel.unary_unary: a function (request, timeout=None) -> response."""
        return self.made(path, *arguments, more=tuple, **options)

    def made(
        self, *arguments: Any, more: Callable[[], tuple[tuple[str, str], ...]], **options: Any
    ) -> Callable[..., Any]:
        """The same, with `more` metadata for each call."""
        method = self._channel.unary_unary(*arguments, **options)

        def call(request: Any, timeout: float | None = None) -> Any:
            request_id = uuid.uuid4().hex
            metadata = ((REQUEST_ID, request_id), *self._project, *more())
            try:
                return method(
                    request,
                    timeout=self._deadline if timeout is None else timeout,
                    metadata=metadata,
                )
            except grpc.RpcError as error:
                raise from_rpc(error, request_id) from error

        return call
