"""Traces of single orders, if they are wanted: what everybody calls, wanted or not.

The trace of a request travels with its event as a W3C `traceparent`, through inbox and ledger.
OpenTelemetry is an extra (`order-ledger[otel]`): it's imported by `start` and by nothing else.
"""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ledger.runtime.otel import Traces

Attributes = Mapping[str, str | int]

_TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
).fullmatch
_traces: "Traces | None" = None


class NoOpenTelemetry(Exception):
    """Traces are wanted, and OpenTelemetry is not installed."""


def start(process: str, endpoint: str | None) -> None:
    """Send spans from now on, by OTLP over HTTP; raises NoOpenTelemetry.

    Without `endpoint` they go where OTEL_EXPORTER_OTLP_ENDPOINT says.
    """
    global _traces  # noqa: PLW0603  # one process, one way out for its spans
    try:
        from ledger.runtime.otel import Traces
    except ModuleNotFoundError as error:
        raise NoOpenTelemetry(
            f"traces are on, and {error.name} is missing: "
            "`pip install 'order-ledger[otel]'`, or unset LEDGER_OTEL_ENDPOINT"
        ) from error
    _traces = Traces(process, endpoint)


def stop() -> None:
    """Send what is left, or give up after a moment; no spans from now on."""
    global _traces  # noqa: PLW0603
    if _traces:
        _traces.stop()
    _traces = None


def wanted() -> bool:
    """Whether spans are sent."""
    return _traces is not None


def valid(traceparent: str) -> str | None:
    """A W3C traceparent that may be carried on, as version 00; None where it breaks the rules."""
    found = _TRACEPARENT(traceparent)
    if not found or (found[1] == "00" and found[5]):
        return None
    return f"00-{found[2]}-{found[3]}-{found[4]}"


class Span:
    """One step of a trace: `traceparent` is what its children hang on, None without a trace."""

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str | None) -> None:
        self.traceparent = traceparent

    def tell(self, attributes: Attributes) -> None:
        """Say more of the step."""


def span(
    name: str, traceparent: str | None, attributes: Attributes, *, serves: bool = False
) -> AbstractContextManager[Span]:
    """The step under way, below `traceparent`; it `serves` if a client waits for it."""
    if _traces is None:
        return nullcontext(Span(traceparent))
    return _traces.span(name, traceparent, attributes, serves)


def record(name: str, traceparent: str, attributes: Attributes, began_ns: int) -> None:
    """A step below `traceparent` that began at `began_ns` since 1970 and ends now."""
    if _traces is not None:
        _traces.record(name, traceparent, attributes, began_ns)
