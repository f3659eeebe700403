"""The trace of a request stays with its events for ever."""

import json
from uuid import UUID, uuid4

import pytest

from ledger.eventlog.store import Store
from ledger.runtime import tracing
from ledger.runtime.database import make_engine
from tests.api.client import WAIT
from tests.harness import Stack

TRACE = "0af7651916cd43dd8448eb211c80319c"
GIVEN = f"00-{TRACE}-b7ad6b7169203331-01"


async def recorded_trace(stack: Stack, order_id: str) -> str | None:
    """The traceparent of the order's first event, as the ledger has it."""
    engine = make_engine(stack.settings.db_url("projector"))
    async with engine.connect() as connection:
        placed, *_ = await Store(connection).stream(UUID(order_id))
    await engine.dispose()
    trace: str | None = json.loads(placed.meta).get("traceparent")
    return trace


async def place(stack: Stack, headers: list[tuple[str, str]]) -> str:
    """A decided order."""
    body = {"customer_id": str(uuid4()), "product_id": str(uuid4())}
    response = await stack.http.post("/orders", json=body, headers=[*WAIT.items(), *headers])
    assert response.status_code == 201, response.text
    order_id: str = response.json()["order_id"]
    return order_id


async def test_a_traceparent_is_recorded_with_the_event(talkative: Stack) -> None:
    order_id = await place(talkative, [("traceparent", GIVEN)])
    assert await recorded_trace(talkative, order_id) == GIVEN


async def test_a_batch_is_of_one_trace(talkative: Stack) -> None:
    orders = [{"customer_id": str(uuid4()), "product_id": str(uuid4())} for _ in range(2)]
    response = await talkative.http.post(
        "/orders/batch", json={"orders": orders}, headers={**WAIT, "traceparent": GIVEN}
    )
    assert response.is_success, response.text
    for order in response.json()["orders"]:
        assert await recorded_trace(talkative, order["order_id"]) == GIVEN


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("traceparent", "x" * 500)],
        [("traceparent", GIVEN), ("traceparent", GIVEN.replace("b7", "b8"))],
    ],
    ids=["none", "broken", "two"],
)
async def test_a_trace_that_cannot_be_read_is_none(
    talkative: Stack, headers: list[tuple[str, str]]
) -> None:
    assert await recorded_trace(talkative, await place(talkative, headers)) is None


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
    ],
)
def test_traceparents_are_read_as_w3c_says(given: str, carried_on: str | None) -> None:
    assert tracing.valid_traceparent(given) == carried_on
