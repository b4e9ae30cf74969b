"""How long a client may hold a thread: for a message that does not come, and for a stream.

gRPC gives a call its thread when the headers are there; the message may follow at once, late or never.
So every call is served as a stream of messages of which one is read: whoever waits for it can be counted,
given a spare thread, and ended.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc

from hsmd.api.pool import Pool

Unary = Callable[[Any, grpc.ServicerContext], Any]
Stream = Callable[[Iterator[Any], grpc.ServicerContext], Iterable[Any]]
Coder = Callable[[Any], Any]

_SILENT_SECONDS = 0.1  # a thread that waits longer than this is replaced
_CROWDED_SECONDS = 1.0  # for a message, when half of the spare threads are taken
_SPARES = "clients are awaited"

log = logging.getLogger(__name__)


class Patience:
    """The waiting of all of a worker's calls; `seconds` is the time that a message has to arrive."""

    def __init__(self, pool: Pool, seconds: float) -> None:
        self.pool = pool
        self._seconds = seconds
        self._waiting: dict[Any, float] = {}  # context → since when (monotonic)
        self._streams: dict[Any, float] = {}  # context → until when (monotonic)

    def once(self, serve: Unary, decode: Coder | None = None, encode: Coder | None = None) -> Any:
        """The gRPC handler of a call with one message and one answer."""
        waiting = self._waiting

        def handle(messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
            waiting[context] = time.monotonic()
            try:
                message = next(messages, None)
            finally:
                in_time = waiting.pop(context, None) is not None
            if not in_time:  # taken away by tend() just now: the client has been told so
                context.abort(grpc.StatusCode.CANCELLED, "the message came too late")
            if message is None:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "the method requires exactly one message")
            return serve(message, context)

        return grpc.stream_unary_rpc_method_handler(handle, decode, encode)

    def stream(
        self, serve: Stream, decode: Coder, encode: Coder, *, most: int, seconds: float, full: grpc.StatusCode
    ) -> Any:
        """The gRPC handler of a stream: `most` at once, each for `seconds`; more are refused with `full`."""
        places = threading.BoundedSemaphore(most)

        def handle(messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            if not places.acquire(blocking=False):
                context.abort(full, "too many of these streams are open")
            self._streams[context] = time.monotonic() + seconds
            try:
                yield from serve(messages, context)
            finally:
                self._streams.pop(context, None)
                places.release()

        return grpc.stream_stream_rpc_method_handler(handle, decode, encode)

    def tend(self) -> None:
        """End what has taken too long, and see that there is a spare thread for each that is held."""
        now = time.monotonic()
        silent = [each for each in list(self._waiting.items()) if now - each[1] > _SILENT_SECONDS]
        streams = list(self._streams.items())
        self.pool.have_spares(len(silent) + len(streams), _SPARES)
        crowded = len(silent) > self.pool.most_spares // 2
        seconds = min(self._seconds, _CROWDED_SECONDS) if crowded else self._seconds
        late = [context for context, since in silent if now - since > seconds]
        late = [context for context in late if self._waiting.pop(context, None) is not None]
        if late:
            peers = ", ".join(sorted({context.peer() for context in late}))
            log.warning("%d calls without a message are ended, from %s", len(late), peers)
        for context in late + [context for context, until in streams if until < now]:
            context.cancel()
