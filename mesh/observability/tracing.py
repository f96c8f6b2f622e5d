"""OpenTelemetry traces with W3C trace context, from the gateway to SQL statements.

The only module that uses OpenTelemetry. Without BOXOFFICE_TRACE_ENDPOINT it is not imported
and no spans are created.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from mesh.settings import MeshSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

HEADER: Final = "traceparent"

_NOTHING: AbstractContextManager["Span | None"] = nullcontext(None)
_EXPORT_SECONDS = 2.0

_tracer: "Tracer | None" = None
_provider: "TracerProvider | None" = None


def configure(service: str, settings: MeshSettings, *, replica: int = 0) -> None:
    """Starts exporting the process's spans if a collector is configured."""
    if settings.trace_endpoint is None:
        return
    global _tracer, _provider  # noqa: PLW0603  one per process, as logging has
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    _provider = TracerProvider(
        resource=Resource.create(
            {
                "service.name": service,
                "service.namespace": "boxoffice",
                "service.instance.id": f"{service}-{replica}",
                "deployment.environment.name": settings.environment,
            }
        ),
        # The gateway samples requests; the ratio here samples background work.
        sampler=ParentBased(TraceIdRatioBased(settings.trace_sample)),
    )
    exporter = OTLPSpanExporter(
        endpoint=settings.trace_endpoint,
        insecure=settings.trace_endpoint.startswith("http://"),
    )
    _provider.add_span_processor(
        BatchSpanProcessor(exporter, schedule_delay_millis=_EXPORT_SECONDS * 1000)
    )
    _tracer = _provider.get_tracer("boxoffice")


def shutdown() -> None:
    """Sends pending spans."""
    if _provider is not None:
        _provider.shutdown()


def serving(
    name: str, metadata: Mapping[str, str], attributes: Mapping[str, str], *, when: bool = True
) -> AbstractContextManager["Span | None"]:
    """The span of a served call, in the trace from the caller's metadata."""
    if _tracer is None or not when:
        return _NOTHING
    from opentelemetry.trace import SpanKind

    return _tracer.start_as_current_span(
        name,
        context=_context_of(metadata.get(HEADER, "")),
        kind=SpanKind.SERVER,
        attributes={"rpc.system": "grpc", **attributes},
        record_exception=False,
        set_status_on_exception=False,
    )


def calling(name: str) -> AbstractContextManager["Span | None"]:
    """The span of an outgoing call."""
    if _tracer is None:
        return _NOTHING
    from opentelemetry.trace import SpanKind

    return _tracer.start_as_current_span(
        name, kind=SpanKind.CLIENT, record_exception=False, set_status_on_exception=False
    )


@contextmanager
def following(name: str, *parents: str, **attributes: str) -> Iterator["Span | None"]:
    """The span of background work caused by calls, perhaps in another service.

    It is a child of the first parent and has a link to each of them.
    """
    if _tracer is None:
        yield None
        return
    from opentelemetry.trace import Link, SpanKind, get_current_span

    contexts = [_context_of(parent) for parent in parents]
    causes = [get_current_span(context).get_span_context() for context in contexts]
    with _tracer.start_as_current_span(
        name,
        context=contexts[0],
        kind=SpanKind.CONSUMER,
        links=[Link(cause) for cause in causes if cause.is_valid],
        attributes=attributes,
    ) as span:
        yield span


def statement(kind: str) -> Any:
    """Starts a SQL statement's span; None outside of a trace. The caller ends it.

    It has the kind of the statement, e.g. SELECT, but neither text nor values.
    """
    if _tracer is None:
        return None
    from opentelemetry.trace import SpanKind, get_current_span

    if not get_current_span().is_recording():
        return None
    return _tracer.start_span(kind, kind=SpanKind.CLIENT, attributes={"db.system": "postgresql"})


def ended(span: "Span | None", code: str = "OK") -> None:
    """Sets a span's status code; any code but OK marks it as failed."""
    if span is None:
        return
    if code != "OK":
        from opentelemetry.trace import Status, StatusCode

        span.set_status(Status(StatusCode.ERROR, code))
    span.set_attribute("rpc.grpc.status", code)


def parent() -> str:
    """The current span as `traceparent`; empty outside of a trace."""
    if _tracer is None:
        return ""
    from opentelemetry.trace import get_current_span

    context = get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _context_of(parent: str) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    # Not the current context: background work starts in unrelated contexts.
    return TraceContextTextMapPropagator().extract({HEADER: parent}, context=Context())
