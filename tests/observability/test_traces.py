"""Spans follow one order from the request to the views; the SDK is loaded only for that."""

import subprocess
import sys
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from ledger.runtime import tracing
from tests.harness import Stack, eventually, start_stack
from tests.observability.collector import Collector, Received, run_collector
from tests.observability.test_traceparent import place, recorded_trace
from tests.private_servers import Servers


@pytest.fixture(scope="module")
async def traced(servers: Servers) -> AsyncIterator[tuple[Stack, Collector]]:
    """A ledger, and the collector that its processes send their spans to."""
    with run_collector() as collector, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        stack = await start_stack(servers, otel_endpoint=collector.url)
        yield stack, collector
        await stack.stop()


async def spans_of(collector: Collector, trace_id: str) -> dict[str, Received]:
    """The spans of an order's trace by name, once all of them came."""

    async def complete() -> dict[str, Received] | None:
        found = {span.name: span for span in collector.of(trace_id)}
        return found if found.keys() >= {"decide and commit", "project", REQUEST} else None

    return await eventually(complete, "the spans of all three processes")


REQUEST = "POST /api/v1/orders"


async def test_one_trace_runs_through_all_processes(traced: tuple[Stack, Collector]) -> None:
    stack, collector = traced
    given = f"00-{uuid4().hex}-{uuid4().hex[:16]}-01"
    _, trace_id, caller_id, _ = given.split("-")
    order_id = await place(stack, [("traceparent", given)])
    spans = await spans_of(collector, trace_id)

    request = spans[REQUEST]
    assert request.parent_id == caller_id
    # Who waits for an order that fails is told so: nobody listed the product.
    assert request.attributes["http.response.status_code"] == 404
    below = ("publish", "decide and commit", "project")
    assert {name: spans[name].parent_id for name in below} == dict.fromkeys(below, request.span_id)
    assert [spans[name].process for name in (REQUEST, *below)] == [
        "order-ledger-api",
        "order-ledger-api",
        "order-ledger-writer",
        "order-ledger-projector",
    ]
    position = spans["decide and commit"].attributes["ledger.position"]
    assert spans["project"].attributes["ledger.position"] == position
    recorded = await recorded_trace(stack, order_id)
    assert recorded == f"00-{trace_id}-{request.span_id}-01"


async def test_an_order_without_a_traceparent_starts_a_trace(
    traced: tuple[Stack, Collector],
) -> None:
    stack, collector = traced
    recorded = await recorded_trace(stack, await place(stack, []))
    assert recorded
    spans = await spans_of(collector, recorded.split("-")[1])
    assert spans[REQUEST].parent_id == ""


async def test_an_unsampled_trace_is_propagated_and_not_exported(
    traced: tuple[Stack, Collector],
) -> None:
    stack, collector = traced
    trace_id = uuid4().hex
    order_id = await place(stack, [("traceparent", f"00-{trace_id}-b7ad6b7169203331-00")])
    recorded = await recorded_trace(stack, order_id)
    assert recorded
    assert recorded.startswith(f"00-{trace_id}-")
    assert recorded.endswith("-00")
    after = await recorded_trace(stack, await place(stack, []))
    assert after
    await spans_of(collector, after.split("-")[1])
    assert collector.of(trace_id) == []


def test_the_sdk_is_not_loaded_unless_traces_are_on() -> None:
    code = (
        "import sys, cli.commands.processes\n"
        "print([name for name in sys.modules if 'opentelemetry.sdk' in name])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert found.stdout.strip() == b"[]"


def test_traces_without_the_sdk_are_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    with pytest.raises(tracing.NoOpenTelemetry, match=r"pip install 'order-ledger\[otel\]'"):
        tracing.start("api", "http://127.0.0.1:9")
    assert not tracing.enabled()
