"""Connections to the daemon: several, so that every worker behind the one port is reached.

SO_REUSEPORT spreads connections, not calls. Each channel has its own connection; a call takes the least
busy one that is ready. Lost connections come back by themselves; calls that find none wait a moment for one,
so that a daemon that is back is not missed.
"""

import asyncio
import time
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path

import grpc
import grpc.aio

from hsmd.config import ConfigError, Gateway
from hsmd.gateway.failures import said_by_daemon
from hsmd.gateway.signatures import Metadata

_METADATA_BYTES = 16 * 1024
_CONNECT_MILLISECONDS = 5000
_RECONNECT_MILLISECONDS = 1000  # longest pause between attempts
_PATIENCE_SECONDS = 1.5  # the longest pause, which varies by a fifth, and a handshake
_READY = grpc.ChannelConnectivity.READY


class _Line:
    """One channel, its callables by method, and how many calls it carries."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.calls: dict[str, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = {}
        self.busy = 0

    def ready(self) -> bool:
        """Whether it is connected; one that is not is set to connecting."""
        return self.channel.get_state(try_to_connect=True) is _READY

    async def wait(self, seconds: float) -> None:
        """Return when it is connected, or after so many seconds."""
        with suppress(TimeoutError):  # the call that follows says best why
            await asyncio.wait_for(self.channel.channel_ready(), seconds)

    async def call(self, method: str, request: bytes, metadata: Metadata, seconds: float) -> bytes:
        """One attempt. Raises AioRpcError."""
        call = self.calls.get(method)
        if call is None:
            call = self.calls[method] = self.channel.unary_unary(
                method, request_serializer=None, response_deserializer=None
            )
        self.busy += 1
        try:
            answer: bytes = await call(
                request, timeout=seconds, metadata=tuple(metadata), wait_for_ready=False
            )
            return answer
        finally:
            self.busy -= 1


class Channels:
    """All connections to the daemon. Made within a running event loop."""

    def __init__(self, settings: Gateway, message_bytes: int) -> None:
        """Raises ConfigError when a certificate file can't be read."""
        credentials = grpc.ssl_channel_credentials(
            root_certificates=_bytes_of("daemon_ca", settings.daemon_ca),
            private_key=_bytes_of("daemon_key", settings.daemon_key),
            certificate_chain=_bytes_of("daemon_certificate", settings.daemon_certificate),
        )
        options: dict[str, int | str] = {
            "grpc.use_local_subchannel_pool": 1,
            "grpc.max_send_message_length": message_bytes,
            "grpc.max_receive_message_length": 2 * message_bytes,
            "grpc.max_metadata_size": _METADATA_BYTES,
            "grpc.initial_reconnect_backoff_ms": 100,
            # Despite its name how long one attempt may take, with TLS on a busy machine or a far network.
            "grpc.min_reconnect_backoff_ms": _CONNECT_MILLISECONDS,
            "grpc.max_reconnect_backoff_ms": _RECONNECT_MILLISECONDS,
            **({"grpc.ssl_target_name_override": settings.daemon_name} if settings.daemon_name else {}),
        }
        self._lines = [
            _Line(grpc.aio.secure_channel(settings.daemon, credentials, options=tuple(options.items())))
            for _ in range(max(1, settings.channels))
        ]
        self._starts = cycle(range(len(self._lines)))
        for line in self._lines:
            line.ready()  # begins to connect

    async def call(
        self, method: str, request: bytes, metadata: Metadata, *, seconds: float, repeatable: bool
    ) -> bytes:
        """The daemon's serialised answer. Raises grpc.aio.AioRpcError.

        A call that broke before the daemon answered is sent once more on another connection when it may
        be repeated. gRPC itself repeats what surely was not sent.
        """
        end = time.monotonic() + seconds
        line = self._best(None)
        if not line.ready():
            await line.wait(min(_PATIENCE_SECONDS, seconds))
        try:
            return await line.call(method, request, metadata, max(0.0, end - time.monotonic()))
        except grpc.aio.AioRpcError as error:
            if not repeatable or error.code() is not grpc.StatusCode.UNAVAILABLE or said_by_daemon(error):
                raise
        return await self._best(line).call(method, request, metadata, max(0.0, end - time.monotonic()))

    def _best(self, broken: _Line | None) -> _Line:
        start = next(self._starts)
        order = [*islice(self._lines, start, None), *islice(self._lines, start)]
        chosen: _Line | None = None
        for line in order:
            if line is not broken and (chosen is None or line.busy < chosen.busy) and line.ready():
                chosen = line
                if not line.busy:
                    break
        return chosen or order[0]

    @property
    def ready(self) -> int:
        """How many connections are up."""
        return sum(line.ready() for line in self._lines)

    async def close(self) -> None:
        """Close all connections; calls in flight end."""
        for line in self._lines:
            await line.channel.close(None)


def _bytes_of(option: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"gateway.{option}: {path} can't be read: {error.strerror}") from error
