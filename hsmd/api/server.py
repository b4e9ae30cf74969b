"""The gRPC servers: a worker's, with health and reflection, and the one for UKeys at the warden's door."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_reflection.v1alpha import reflection, reflection_pb2

from hsmd import metrics
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
    gateways,
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
    node,
    peers,
    pins,
    policies,
    projects,
    proposals,
    regions,
    rotation,
    sealing,
    service,
    signing,
    tags,
    temporary_keys,
    traces,
    ukeys,
    upkeep,
    users,
)
from hsmd.api.methods import Method, methods_of
from hsmd.api.patience import Patience
from hsmd.api.pipeline import Pipeline, Serve
from hsmd.config import Grpc
from hsmd.descriptors import service_options
from hsmd.domain.readiness import PARTS, TOKEN

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
    gateways,
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
    node,
    traces,
    service,
)
Handlers = dict[str, dict[str, Any]]  # by service, by method

_METADATA_BYTES = 64 * 1024
_MOST_REFLECTIONS = 4
_REFLECTION_SECONDS = 60.0
_WORD = re.compile(r"(?<!^)(?=[A-Z])")


# Served at the administrators' door, where health is all that stands beside them.
_ADMIN_MODULES = (ukeys, sealing, proposals, upkeep)


def all_methods(
    owners: Iterable[Any], modules: Iterable[Any] = _MODULES
) -> Iterator[tuple[ServiceDescriptor, str, Method, Serve]]:
    """Every rpc with the function that serves it. Raises AttributeError for an rpc that has none.

    Owners are objects that serve some of the methods of the service in their attribute SERVICE.
    """
    for module in modules:
        mine = [each for each in owners if each.SERVICE is module.SERVICE]
        for descriptor, method in methods_of(module.SERVICE):
            name = _WORD.sub("_", descriptor.name).lower()
            owner = next((each for each in mine if hasattr(each, name)), module)
            yield module.SERVICE, descriptor.name, method, getattr(owner, name)


def service_names(modules: Iterable[Any] = _MODULES) -> tuple[str, ...]:
    """The full names of the services that we serve."""
    return tuple(module.SERVICE.full_name for module in modules)


def needs() -> dict[str, frozenset[str]]:
    """What each service takes to be served, for its health."""
    return _needs(_MODULES)


def admin_needs() -> dict[str, frozenset[str]]:
    """The same of the administrators' door."""
    return _needs(_ADMIN_MODULES)


def _needs(modules: Iterable[Any]) -> dict[str, frozenset[str]]:
    return {
        module.SERVICE.full_name: PARTS - {TOKEN} if service_options(module.SERVICE).without_token else PARTS
        for module in modules
    }


def admin_names() -> tuple[str, ...]:
    """The full names of the services at the administrators' door."""
    return service_names(_ADMIN_MODULES)


def build(
    pipeline: Pipeline,
    patience: Patience,
    checks: health.Health,
    owners: Sequence[Any],
    settings: Grpc,
    message_bytes: int,
) -> grpc.Server:
    """A server with all methods, health and reflection; ports are added by the caller."""
    methods = all_methods(owners)
    more = {reflection.SERVICE_NAME: _reflection(patience)}
    return _build(pipeline, patience, checks, methods, more, settings, message_bytes)


def build_admin(
    pipeline: Pipeline,
    patience: Patience,
    checks: health.Health,
    owners: Sequence[Any],
    settings: Grpc,
    message_bytes: int,
) -> grpc.Server:
    """A server with health and what is for UKeys, nothing else; `owners` are its servicers with a state."""
    methods = all_methods(owners, _ADMIN_MODULES)
    return _build(pipeline, patience, checks, methods, {}, settings, message_bytes)


def _build(
    pipeline: Pipeline,
    patience: Patience,
    checks: health.Health,
    methods: Iterable[tuple[ServiceDescriptor, str, Method, Serve]],
    more: Handlers,
    settings: Grpc,
    message_bytes: int,
) -> grpc.Server:
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
    handlers: Handlers = {health.SERVICE_NAME: checks.handlers(patience), **more}
    for descriptor, name, method, serve in methods:
        handlers.setdefault(descriptor.full_name, {})[name] = patience.once(pipeline.handler(method, serve))
    known = [grpc.method_handlers_generic_handler(name, each) for name, each in handlers.items()]
    server.add_generic_rpc_handlers([*known, _Unknown()])
    return server


class _Unknown(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # it is no generic class at run time
    """Counts calls of methods that there are not, which gRPC then refuses itself."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> None:
        status = grpc.StatusCode.UNIMPLEMENTED.name
        metrics.CALLS.inc(metrics.OTHER, status, status, "anonymous")


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
