"""The traceparent of a request is recorded with its events."""

import json
from uuid import UUID, uuid4

import pytest

from ledger.eventlog.reader import EventReader
from ledger.runtime import tracing
from ledger.runtime.database import make_engine
from tests.api.client import WAIT, failed_order
from tests.harness import Stack

TRACE = "0af7651916cd43dd8448eb211c80319c"
GIVEN = f"00-{TRACE}-b7ad6b7169203331-01"


async def recorded_trace(stack: Stack, order_id: str) -> str | None:
    """The traceparent of the order's first event, as the ledger has it."""
    engine = make_engine(stack.settings.db_url("projector"))
    async with engine.connect() as connection:
        stream_id = UUID(order_id).bytes
        placed, *_ = (await EventReader(connection).streams([stream_id]))[stream_id]
    await engine.dispose()
    trace: str | None = json.loads(placed.meta).get("traceparent")
    return trace


async def place(stack: Stack, headers: list[tuple[str, str]]) -> str:
    """A decided order."""
    body = {"customer_id": str(uuid4()), "product_id": str(uuid4())}
    response = await stack.http.post("/orders", json=body, headers=[*WAIT.items(), *headers])
    order_id: str = failed_order(response)["order_id"]
    return order_id


async def test_a_traceparent_is_recorded_with_the_event(verbose_stack: Stack) -> None:
    order_id = await place(verbose_stack, [("traceparent", GIVEN)])
    assert await recorded_trace(verbose_stack, order_id) == GIVEN


async def test_all_events_of_a_batch_have_its_traceparent(verbose_stack: Stack) -> None:
    orders = [{"customer_id": str(uuid4()), "product_id": str(uuid4())} for _ in range(2)]
    response = await verbose_stack.http.post(
        "/orders/batch", json={"orders": orders}, headers={**WAIT, "traceparent": GIVEN}
    )
    assert response.status_code == 409, response.text
    for order in response.json()["orders"]:
        assert await recorded_trace(verbose_stack, order["order_id"]) == GIVEN


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("traceparent", "x" * 500)],
        [("traceparent", GIVEN), ("traceparent", GIVEN.replace("b7", "b8"))],
    ],
    ids=["none", "broken", "two"],
)
async def test_a_missing_or_invalid_traceparent_is_not_recorded(
    verbose_stack: Stack, headers: list[tuple[str, str]]
) -> None:
    assert await recorded_trace(verbose_stack, await place(verbose_stack, headers)) is None


@pytest.mark.parametrize(
    ("given", "carried_on"),
    [
        (GIVEN, GIVEN),
        (GIVEN[:-2] + "00", GIVEN[:-2] + "00"),
        ("cc" + GIVEN[2:] + "-what-comes-later", GIVEN),
        ("ff" + GIVEN[2:], None),
        (GIVEN + "-more", None),
        (GIVEN.upper(), None),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (GIVEN[:-1], None),
        ("", None),
        ("x" * 30_000, None),
        ("cc" + GIVEN[2:] + "-" + "x" * 30_000, None),
    ],
)
def test_traceparents_are_validated_as_w3c_specifies(
    caplog: pytest.LogCaptureFixture, given: str, carried_on: str | None
) -> None:
    assert tracing.valid_traceparent(given) == carried_on
    assert not caplog.records
