"""The standard health service, of which no client can hold a thread or a lock for others.

It waits for nothing: what it answers was found out before, at most FRESH_SECONDS ago.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Set
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from hsmd.api.patience import Patience
from hsmd.domain.readiness import FRESH_SECONDS, PARTS

SERVICE_NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_MOST_WATCHERS = 16
_WATCH_SECONDS = 600.0

_Response = health_pb2.HealthCheckResponse


class Health:
    """A yes or no for each service, by the parts that it needs, and for the whole server (""), by all parts.

    Until it is told anything, nothing serves.
    """

    def __init__(self, needs: Mapping[str, frozenset[str]]) -> None:
        self._needs = {**needs, "": PARTS}
        self._changed = threading.Condition()
        self._failing: Set[str] = PARTS
        self._told = time.monotonic()

    def tell(self, failing: Set[str]) -> None:
        """Say which parts can't be used now."""
        with self._changed:
            self._told = time.monotonic()
            if failing != self._failing:
                self._failing = failing
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
        if request.service not in self._needs:
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
                    self._changed.wait(FRESH_SECONDS)

    def _state(self, service: str) -> Any:
        needs = self._needs.get(service)
        if needs is None:
            return _Response.SERVICE_UNKNOWN
        known = time.monotonic() - self._told <= FRESH_SECONDS
        return _Response.SERVING if known and not needs & self._failing else _Response.NOT_SERVING

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
