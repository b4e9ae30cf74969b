"""The gRPC servers of a worker: mTLS on the shared port, Unix sockets, health and reflection."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_reflection.v1alpha import reflection, reflection_pb2

from hsmd.api import (
    access_keys,
    access_points,
    agencies,
    agreement,
    aliases,
    assignments,
    capsules,
    certificates,
    crypto,
    datakeys,
    deletion,
    domain_settings,
    domains,
    grants,
    groups,
    health,
    identity,
    imports,
    key_policies,
    keys,
    keystores,
    limits,
    macs,
    peers,
    pins,
    policies,
    projects,
    regions,
    rotation,
    service,
    signing,
    tags,
    temporary_keys,
    users,
)
from hsmd.api.methods import Method, methods_of
from hsmd.api.patience import Patience
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
    access_points,
    key_policies,
    capsules,
    pins,
    keystores,
    regions,
    peers,
    identity,
    domains,
    projects,
    users,
    groups,
    policies,
    assignments,
    domain_settings,
    access_keys,
    temporary_keys,
    agencies,
    certificates,
    limits,
    service,
)
_METADATA_BYTES = 64 * 1024
_MOST_REFLECTIONS = 4
_REFLECTION_SECONDS = 60.0
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


def build(
    pipeline: Pipeline,
    patience: Patience,
    checks: health.Health,
    status: service.Status,
    settings: Grpc,
    message_bytes: int,
) -> grpc.Server:
    """A server with all methods, health and reflection; ports are added by the caller."""
    server = grpc.server(
        patience.pool,  # type: ignore[arg-type]  # only submit() of it is used
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
    handlers: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {
        health.SERVICE_NAME: checks.handlers(patience),
        reflection.SERVICE_NAME: _reflection(patience),
    }
    for descriptor, name, method, serve in all_methods(status):
        handlers.setdefault(descriptor.full_name, {})[name] = patience.once(pipeline.handler(method, serve))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, methods) for name, methods in handlers.items()]
    )
    return server


def _reflection(patience: Patience) -> dict[str, Any]:
    names = (*service_names(), health.SERVICE_NAME, reflection.SERVICE_NAME)
    handler = patience.stream(
        reflection.ReflectionServicer(names).ServerReflectionInfo,  # type: ignore[arg-type]  # its stub says None
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
        most=_MOST_REFLECTIONS,
        seconds=_REFLECTION_SECONDS,
        full=grpc.StatusCode.RESOURCE_EXHAUSTED,
    )
    return {"ServerReflectionInfo": handler}


def server_credentials(settings: Grpc) -> grpc.ServerCredentials:
    """mTLS: our certificate, and the CA that clients' certificates must come from. Raises OSError."""
    key, certificate, ca = (
        Path(path).read_bytes() for path in (settings.key, settings.certificate, settings.client_ca)
    )
    return grpc.ssl_server_credentials([(key, certificate)], root_certificates=ca, require_client_auth=True)
