"""Exports the spans of one process by OTLP over gRPC: sampled, bounded, and never in a call's way.

A collector that is slow or away costs spans, no call waits for it: they go out in batches by a thread of
their own, from a queue that drops what it can't hold. How many were lost is logged.
"""

import itertools
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hsmd import __version__, tracing
from hsmd.config import ConfigError, Tracing
from hsmd.errors import Error
from hsmd.tracing import NOTHING, Kind, Span

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExportResult

QUEUE = 4096  # spans that wait; a call makes some ten
_BATCH = 512
_BATCH_MILLISECONDS = 1000
_EXPORT_SECONDS = 5.0
_PARTING_SECONDS = 1.5  # after the grace time, before the supervisor's patience ends

log = logging.getLogger(__name__)


@contextmanager
def exported(settings: Tracing, service: str, process: str) -> Iterator[None]:
    """While this lasts the spans of the process go to the collector, if there is one.

    `service` is appended to the service's name. Raises ConfigError.
    """
    if not settings.endpoint:
        yield
        return
    tracer = _Tracer(settings, service, process)
    tracing.use(tracer)
    try:
        yield
    finally:
        tracing.use(None)
        tracer.close()


def check(settings: Tracing) -> None:
    """Raises ConfigError for an endpoint that can't be one, or would send spans in the clear."""
    if not settings.endpoint:
        return
    if find_spec("opentelemetry") is None:
        raise ConfigError("tracing.endpoint: this needs OpenTelemetry: pip install 'hsmd[tracing]'")
    url = urlsplit(settings.endpoint)
    try:
        well_formed = url.scheme in ("http", "https") and url.hostname and url.port and url.path in ("", "/")
    except ValueError:
        well_formed = False
    if not well_formed:
        raise ConfigError(f"tracing.endpoint: https://HOST:PORT is due, not {settings.endpoint!r}")
    if url.scheme == "http" and not _is_loopback(str(url.hostname)):
        raise ConfigError("tracing.endpoint: http is for this machine alone (127.0.0.1, ::1); https is due")
    if url.scheme == "http" and (settings.ca or settings.certificate or settings.key):
        raise ConfigError("tracing: ca, certificate and key are for https")
    if (settings.certificate is None) != (settings.key is None):
        raise ConfigError("tracing: certificate and key come together")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class _Tracer:
    """The OpenTelemetry SDK behind the stations of tracing.py."""

    def __init__(self, settings: Tracing, service: str, process: str) -> None:
        """Raises ConfigError for files that can't be read."""
        from opentelemetry import context, trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # the deliveries tell, and only once
        self._context, self._trace = context, trace
        self._propagator = TraceContextTextMapPropagator()
        self._deliveries = _Deliveries(_exporter(settings), settings.endpoint, SpanExportResult.SUCCESS)
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
            resource=Resource(
                {
                    "service.name": settings.service_name + service,
                    "service.version": __version__,
                    "service.instance.id": process,
                }
            ),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._deliveries,  # type: ignore[arg-type]  # it has what is asked for
                max_queue_size=QUEUE,
                schedule_delay_millis=_BATCH_MILLISECONDS,
                max_export_batch_size=_BATCH,
            )
        )
        self._tracer = self._provider.get_tracer("hsmd", __version__)
        self._kinds: dict[Kind, Any] = {
            "server": trace.SpanKind.SERVER,
            "client": trace.SpanKind.CLIENT,
            "internal": trace.SpanKind.INTERNAL,
        }

    def entry(self, name: str, parent: str) -> Span:
        """Begin a trace, or go on with the parent's."""
        above = self._propagator.extract({"traceparent": parent}, context=self._context.Context())
        return self._begin(name, "server", {}, above)

    def span(self, name: str, kind: Kind, attributes: dict[str, object]) -> Span:
        """Go on with the current trace."""
        if not self._trace.get_current_span().is_recording():
            return NOTHING
        return self._begin(name, kind, attributes, None)

    def parent(self) -> str:
        """The current span for others."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier.get("traceparent", "")

    def close(self) -> None:
        """Send what waits, for a moment."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True, name="traces")
        thread.start()
        thread.join(_PARTING_SECONDS)
        self._deliveries.sum_up()

    def _begin(self, name: str, kind: Kind, attributes: dict[str, object], above: Any) -> Span:
        span = self._tracer.start_span(
            name,
            context=above,
            kind=self._kinds[kind],
            record_exception=False,  # their texts are not for everybody
            set_status_on_exception=False,
        )
        if span.is_recording():
            next(self._deliveries.begun)
        inside = self._trace.use_span(span, record_exception=False, set_status_on_exception=False)
        begun = _Begun(span, inside, self._trace.StatusCode.ERROR)
        begun.note(**attributes)
        return begun


class _Begun(Span):
    """A span that is under way: the current one of its thread or task, until its `with` statement ends."""

    __slots__ = ("_failed", "_inside", "_span")

    def __init__(self, span: Any, inside: AbstractContextManager[Any], failed: Any) -> None:
        """`inside`: while it is the current one; `failed`: the status of one that an error has passed."""
        self._span, self._inside, self._failed = span, inside, failed

    def __enter__(self) -> Span:
        """Begin."""
        self._inside.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        if error is not None:
            self.note(error=error.fault.code if isinstance(error, Error) else type(error).__name__)
        self._inside.__exit__(None, None, None)
        self._span.end()

    def note(self, **attributes: object) -> None:
        """Attributes hsmd.NAME; `error` marks the span besides."""
        if not self._span.is_recording():
            return
        for name, value in attributes.items():
            self._span.set_attribute(f"hsmd.{name}", getattr(value, "name", value))  # a mechanism's name
        if "error" in attributes:
            self._span.set_status(self._failed, str(attributes["error"]))


class _Deliveries:
    """The exporter, watched: one line in the log when it begins to fail, one when it is over."""

    def __init__(self, exporter: Any, endpoint: str, success: object) -> None:
        self.begun = itertools.count()  # counts for all threads without a lock
        self._exporter = exporter
        self._endpoint = endpoint
        self._success = success
        self._sent = 0
        self._failing = False

    def export(self, spans: Sequence["ReadableSpan"]) -> "SpanExportResult":
        """Send a batch."""
        result: SpanExportResult = self._exporter.export(spans)
        failed = result is not self._success
        if not failed:
            self._sent += len(spans)
        if failed and not self._failing:
            log.warning("the collector %s takes no spans: they are lost, and calls go on", self._endpoint)
        elif self._failing and not failed:
            log.info("the collector %s takes spans again", self._endpoint)
        self._failing = failed
        return result

    def shutdown(self) -> None:
        """End."""
        self._exporter.shutdown()

    def sum_up(self) -> None:
        """Tell what did not arrive."""
        begun = next(self.begun)
        if begun > self._sent:
            log.warning("%d of %d spans were not delivered to %s", begun - self._sent, begun, self._endpoint)


def _exporter(settings: Tracing) -> Any:
    from grpc import ssl_channel_credentials
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    files = (settings.ca, settings.key, settings.certificate)
    ca, key, certificate = (None if path is None else _read(path) for path in files)
    secure = settings.endpoint.startswith("https:")
    return OTLPSpanExporter(
        endpoint=settings.endpoint,
        insecure=not secure,
        credentials=ssl_channel_credentials(ca, key, certificate) if secure else None,
        timeout=_EXPORT_SECONDS,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"tracing: {path} can't be read: {error.strerror}") from error
