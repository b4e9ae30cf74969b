"""The server of a sealed daemon's worker: health says that it doesn't serve, any other call is refused.

Nothing of a call is read, nobody is identified, nothing is recorded: there is nothing here that anybody
could get at.
"""

import re
import uuid
from typing import Any

import grpc

from hsmd import metrics
from hsmd.api import health, server
from hsmd.api.patience import Patience
from hsmd.api.pipeline import REQUEST_ID_KEY, rejection
from hsmd.config import Grpc
from hsmd.errors import SEALED, Error

_REQUEST_ID = re.compile(r"[0-9a-f]{32}")


def build(patience: Patience, settings: Grpc) -> grpc.Server:
    """The server; ports are added by the caller."""
    checks = health.Health(server.needs())
    one = grpc.server(
        patience.pool,  # type: ignore[arg-type]  # only submit() of it is used
        maximum_concurrent_rpcs=settings.threads + settings.waiting_calls,
        options=[
            ("grpc.so_reuseport", 1),
            ("grpc.max_connection_age_ms", settings.connection_age_seconds * 1000),
        ],
    )
    handlers = checks.handlers(patience)
    one.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(health.SERVICE_NAME, handlers), _Refusing())
    )
    return one


class _Refusing(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # it is no generic class at run time
    """Every method there could be."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.stream_stream_rpc_method_handler(_refuse)


def _refuse(_messages: Any, context: grpc.ServicerContext) -> Any:
    sent = dict(context.invocation_metadata()).get(REQUEST_ID_KEY)
    known = isinstance(sent, str) and _REQUEST_ID.fullmatch(sent)
    metrics.CALLS.inc(metrics.OTHER, SEALED.code, SEALED.grpc, "anonymous")
    context.abort_with_status(rejection(Error(SEALED), str(sent) if known else uuid.uuid4().hex))
    yield b""  # never: but this is a stream
