"""An OTLP collector for tests: a real gRPC server that keeps the spans it is sent."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent


@dataclass(frozen=True)
class Span:
    """A span that was received."""

    service: str
    instance: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    failed: bool
    attributes: dict[str, Any]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """What has been received, as messages and as spans."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.spans: list[Span] = []
        self._lock = threading.Lock()

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 -- its name
        with self._lock:
            self.raw.append(request.SerializeToString())
            for resource in request.resource_spans:
                of = {each.key: each.value.string_value for each in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self.spans += [
                        _span(of["service.name"], of["service.instance.id"], each) for each in scope.spans
                    ]
        return trace_service_pb2.ExportTraceServiceResponse()

    def of_request(self, request_id: str) -> list[Span]:
        """All spans of the trace that this request is in."""
        spans = list(self.spans)
        traces = {each.trace for each in spans if each.attributes.get("hsmd.request_id") == request_id}
        return [each for each in spans if each.trace in traces]


def _span(service: str, instance: str, sent: Sent) -> Span:
    attributes = {
        each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in sent.attributes
    }
    ids = (sent.trace_id.hex(), sent.span_id.hex(), sent.parent_span_id.hex())
    return Span(service, instance, sent.name, sent.kind, *ids, sent.status.code == 2, attributes)


@contextmanager
def collecting(port: int, credentials: grpc.ServerCredentials | None = None) -> Iterator[Collector]:
    """A collector on the loopback, with TLS or without."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    address = f"127.0.0.1:{port}"
    assert server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    try:
        yield collector
    finally:
        server.stop(1).wait()
