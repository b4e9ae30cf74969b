"""The gRPC servers of a worker: mTLS on the shared port, Unix sockets, health and reflection."""

import re
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hsmd.api import (
    agreement,
    aliases,
    crypto,
    datakeys,
    deletion,
    grants,
    identity,
    imports,
    keys,
    macs,
    rotation,
    service,
    signing,
    tags,
)
from hsmd.api.methods import Method, methods_of
from hsmd.api.pipeline import Pipeline, Serve
from hsmd.config import Grpc

_MODULES = (
    keys,
    aliases,
    tags,
    deletion,
    rotation,
    grants,
    crypto,
    datakeys,
    signing,
    macs,
    agreement,
    imports,
    identity,
    service,
)
_METADATA_BYTES = 64 * 1024
_WORD = re.compile(r"(?<!^)(?=[A-Z])")


def all_methods(status: service.Status) -> Iterator[tuple[ServiceDescriptor, str, Method, Serve]]:
    """Every rpc with the function that serves it. Raises AttributeError for an rpc that has none."""
    for module in _MODULES:
        for descriptor, method in methods_of(module.SERVICE):
            name = _WORD.sub("_", descriptor.name).lower()
            owner = status if hasattr(status, name) else module
            yield module.SERVICE, descriptor.name, method, getattr(owner, name)


def service_names() -> tuple[str, ...]:
    """The full names of the services that we serve."""
    return tuple(module.SERVICE.full_name for module in _MODULES)


class Health:
    """The standard health service over one yes or no."""

    def __init__(self) -> None:
        self._servicer = health.HealthServicer()
        self.tell(serving=False)

    def tell(self, *, serving: bool) -> None:
        """Set the answer for every service and for the whole server ("")."""
        state = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", *service_names()):
            self._servicer.set(name, state)

    def add_to(self, server: grpc.Server) -> None:
        """Serve it there too."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)


def build(
    pipeline: Pipeline,
    pool: futures.Executor,
    checks: Health,
    status: service.Status,
    settings: Grpc,
    message_bytes: int,
) -> grpc.Server:
    """A server with all methods, health and reflection; ports are added by the caller."""
    server = grpc.server(
        pool,  # type: ignore[arg-type]  # only submit() of it is used
        maximum_concurrent_rpcs=settings.threads + settings.waiting_calls,
        options=[
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", message_bytes),
            ("grpc.max_metadata_size", _METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", _METADATA_BYTES),
            ("grpc.max_connection_age_ms", settings.connection_age_seconds * 1000),
            ("grpc.max_connection_age_grace_ms", int(settings.grace_seconds * 1000)),
        ],
    )
    handlers: dict[str, dict[str, grpc.RpcMethodHandler[bytes, bytes]]] = {}
    for descriptor, name, method, serve in all_methods(status):
        handlers.setdefault(descriptor.full_name, {})[name] = pipeline.handler(method, serve)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, methods) for name, methods in handlers.items()]
    )
    checks.add_to(server)
    reflection.enable_server_reflection(
        (*service_names(), health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    return server


def server_credentials(settings: Grpc) -> grpc.ServerCredentials:
    """mTLS: our certificate, and the CA that clients' certificates must come from. Raises OSError."""
    key, certificate, ca = (
        Path(path).read_bytes() for path in (settings.key, settings.certificate, settings.client_ca)
    )
    return grpc.ssl_server_credentials([(key, certificate)], root_certificates=ca, require_client_auth=True)
