"""The standard health service, of which no client can hold a thread or a lock for others."""

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from hsmd.api.patience import Patience

SERVICE_NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_MOST_WATCHERS = 16
_WATCH_SECONDS = 600.0

_Response = health_pb2.HealthCheckResponse


class Health:
    """One yes or no for each of the named services and for the whole server ("")."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset({"", *services})
        self._changed = threading.Condition()
        self._serving = False

    def tell(self, *, serving: bool) -> None:
        """Set the answer."""
        with self._changed:
            if serving != self._serving:
                self._serving = serving
                self._changed.notify_all()

    def handlers(self, patience: Patience) -> dict[str, Any]:
        """The gRPC handlers of the service's methods by name.

        Watchers beyond the limit are told UNIMPLEMENTED: by the protocol they then go on without watching.
        """
        decode = health_pb2.HealthCheckRequest.FromString
        encode = _Response.SerializeToString
        return {
            "Check": patience.once(self._check, decode, encode),
            "Watch": patience.stream(
                self._watch,
                decode,
                encode,
                most=_MOST_WATCHERS,
                seconds=_WATCH_SECONDS,
                full=grpc.StatusCode.UNIMPLEMENTED,
            ),
        }

    def _check(self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext) -> Any:
        if request.service not in self._services:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return _Response(status=self._state(request.service))

    def _watch(
        self, requests: Iterator[health_pb2.HealthCheckRequest], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        request = next(requests, None)
        if request is None:
            return
        told = None
        context.add_callback(self._wake)
        while context.is_active():
            state = self._state(request.service)
            if state != told:
                yield _Response(status=state)
                told = state
            with self._changed:
                if self._state(request.service) == told and context.is_active():
                    self._changed.wait()

    def _state(self, service: str) -> Any:
        if service not in self._services:
            return _Response.SERVICE_UNKNOWN
        return _Response.SERVING if self._serving else _Response.NOT_SERVING

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
