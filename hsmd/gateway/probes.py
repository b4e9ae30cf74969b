"""GET /healthz and GET /readyz, for load balancers and those who start containers: open to anybody.

`/healthz` says that this process answers. `/readyz` asks the daemon's health service over the gateway's own
connections, once for all who ask within a second; why it isn't ready is for the log alone.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import grpc.aio
from grpc_health.v1 import health_pb2

from hsmd.gateway.transcoder import JSON_HEADERS, Answer

ALIVE, READY = b"/healthz", b"/readyz"
CACHE_SECONDS = 1.0
ASK_SECONDS = 2.0
CHECK = f"/{health_pb2.DESCRIPTOR.services_by_name['Health'].full_name}/Check"

_log = logging.getLogger(__name__)
_Response = health_pb2.HealthCheckResponse
_ALIVE = Answer(200, b'{"status":"alive"}', JSON_HEADERS)
_READY = Answer(200, b'{"status":"ready"}', JSON_HEADERS)
_NOT_READY = Answer(503, b'{"status":"not ready"}', JSON_HEADERS)


class Probes:
    """Both answers. `ask` asks the daemon's health service after the whole of it, within so many seconds."""

    def __init__(self, ask: Callable[[float], Awaitable[bytes]]) -> None:
        self._ask = ask
        self._asking: asyncio.Task[None] | None = None
        self._answer = _NOT_READY
        self._until = 0.0  # when the answer has to be found anew (monotonic)
        self._why = ""  # as the log knows it

    async def answer(self, path: bytes) -> Answer | None:
        """The answer to a probe; None for any other path."""
        if path == ALIVE:
            return _ALIVE
        if path != READY:
            return None
        if time.monotonic() >= self._until:
            if self._asking is None:
                self._asking = asyncio.get_running_loop().create_task(self._find_out())
            await asyncio.shield(self._asking)  # who leaves doesn't end it for the others
        return self._answer

    async def _find_out(self) -> None:
        try:
            status = _Response.FromString(await self._ask(ASK_SECONDS)).status
            why = "" if status == _Response.SERVING else "the daemon is not serving"
        except grpc.aio.AioRpcError as error:
            why = f"the daemon does not answer: {error.code().name}"
        except Exception as error:
            why = f"the daemon can't be asked: {error}"
        if why and why != self._why:
            _log.warning("not ready: %s", why)
        elif self._why and not why:
            _log.info("ready again")
        self._why = why
        self._answer = _NOT_READY if why else _READY
        self._until = time.monotonic() + CACHE_SECONDS
        self._asking = None
