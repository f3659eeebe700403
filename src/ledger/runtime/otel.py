"""OpenTelemetry, for processes that have it installed and are told to use it."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ledger.runtime.tracing import Attributes, Span

EXPORT_TIMEOUT_S: Final = 3.0
STOP_TIMEOUT_S: Final = 2.0

_propagator: Final = TraceContextTextMapPropagator()


class _Span(Span):
    __slots__ = ("_span",)

    def __init__(self, span: trace.Span) -> None:
        super().__init__(_traceparent(span.get_span_context()))
        self._span = span

    def tell(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)


class Traces:
    """Makes spans and sends them from a thread of its own."""

    def __init__(self, process: str, endpoint: str | None) -> None:
        resource = Resource.create(
            {"service.namespace": "order-ledger", "service.name": f"order-ledger-{process}"}
        )
        url = f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None
        exporter = OTLPSpanExporter(endpoint=url, timeout=EXPORT_TIMEOUT_S)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("order-ledger")

    def stop(self) -> None:
        """Send what is left; what can't be sent by then is lost."""
        ending = Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(STOP_TIMEOUT_S)

    @contextmanager
    def span(
        self, name: str, traceparent: str | None, attributes: Attributes, serves: bool
    ) -> Iterator[Span]:
        """The step under way; what is raised in it is told with it."""
        kind = trace.SpanKind.SERVER if serves else trace.SpanKind.INTERNAL
        span = self._tracer.start_span(name, _below(traceparent), kind, attributes)
        with trace.use_span(span, end_on_exit=True):
            yield _Span(span)

    def record(self, name: str, traceparent: str, attributes: Attributes, began_ns: int) -> None:
        """A step that is over."""
        kind = trace.SpanKind.INTERNAL
        context = _below(traceparent)
        self._tracer.start_span(name, context, kind, attributes, start_time=began_ns).end()


def _below(traceparent: str | None) -> Context:
    carrier = {"traceparent": traceparent} if traceparent else {}
    return _propagator.extract(carrier, Context())


def _traceparent(context: trace.SpanContext) -> str:
    trace_id = trace.format_trace_id(context.trace_id)
    return f"00-{trace_id}-{trace.format_span_id(context.span_id)}-{context.trace_flags:02x}"
