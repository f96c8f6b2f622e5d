"""An OTLP collector that keeps the spans of services and gateway."""

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2


class TraceCollector(trace_service_pb2_grpc.TraceServiceServicer):
    """Stores every received span with the name of its service, and all requests as text."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[tuple[str, trace_pb2.Span]] = []
        self._texts: list[str] = []
        self.url = ""

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        with self._lock:
            self._texts.append(str(request))
            for resource in request.resource_spans:
                service = next(
                    attribute.value.string_value
                    for attribute in resource.resource.attributes
                    if attribute.key == "service.name"
                )
                for scope in resource.scope_spans:
                    self._spans += ((service, span) for span in scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def text(self) -> str:
        with self._lock:
            return "\n".join(self._texts)

    def trace_of(self, request_id: str) -> list[tuple[str, trace_pb2.Span]]:
        """All spans of the trace of a request, or with an attribute of this value."""
        with self._lock:
            ids = {
                span.trace_id
                for _, span in self._spans
                for attribute in span.attributes
                if attribute.value.string_value == request_id
            }
            return [(service, span) for service, span in self._spans if span.trace_id in ids]


@contextmanager
def trace_collector() -> Iterator[TraceCollector]:
    collector = TraceCollector()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    collector.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None)
