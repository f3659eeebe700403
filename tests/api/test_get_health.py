"""GET /health/live, and GET /health/ready."""

import time
from collections.abc import Awaitable, Callable
from urllib.parse import urljoin
from uuid import uuid4

import httpx
from aio_pika import Message

from ledger.messaging.publisher import ASK_AGAIN_S, OVERDUE_S
from ledger.messaging.rabbitmq import Connection
from ledger.messaging.topology import ANNOUNCED_EXCHANGE, INBOX, SUBMITTED_EXCHANGE, declare
from projections.announcements import Announcement, encode_announcement
from tests.harness import Stack, eventually

from .client import problem, register


async def test_a_process_with_all_it_needs_is_ready(http: httpx.AsyncClient) -> None:
    await register(http)
    response = await http.get(urljoin(str(http.base_url), "/health/ready"))
    body = response.json()
    assert response.status_code == 200
    assert body["status"] == "ready"
    assert {body["inbox"], body["announcements"], body["views"]} == {True}
    assert body["position"] >= 1
    assert response.headers["cache-control"] == "no-store"


async def test_a_process_that_answers_is_live(http: httpx.AsyncClient) -> None:
    response = await http.get(urljoin(str(http.base_url), "/health/live"))
    assert response.status_code == 200
    assert response.json() == {"status": "live"}


async def readiness_and_inbox(stack: Stack) -> tuple[int, bool]:
    """The status of the answer of readiness, and whether it says that there is an inbox."""
    response = await stack.http.get(f"{stack.url}/health/ready")
    return response.status_code, response.json()["inbox"]


async def test_a_process_whose_inbox_is_not_bound_stays_unready_until_it_is(
    make_stack: Callable[..., Awaitable[Stack]],
) -> None:
    stack = await make_stack()

    async def inbox() -> bool:
        status, there = await readiness_and_inbox(stack)
        assert there == (status == 200)
        return there

    connection = Connection(stack.settings.amqp_url("migrate"), "t")
    async with connection.channel(confirms=False) as channel:
        queue = await channel.get_queue(INBOX)
        await queue.unbind(SUBMITTED_EXCHANGE)
        problem(
            await stack.http.post("/customers", json={"username": "ann"}), 503, "inbox-unavailable"
        )
        # Longer than any answer is kept for.
        end = time.monotonic() + 2 * ASK_AGAIN_S + OVERDUE_S
        while time.monotonic() < end:
            assert not await inbox()
        await queue.bind(SUBMITTED_EXCHANGE)
        await eventually(inbox, "the API is ready again")
    await register(stack.http)


async def test_a_process_without_an_inbox_is_not_ready_and_needs_no_refusal_to_know(
    make_stack: Callable[..., Awaitable[Stack]],
) -> None:
    stack = await make_stack()

    async def inbox() -> bool:
        status, there = await readiness_and_inbox(stack)
        assert there or status == 503
        return there

    async def no_inbox() -> bool:
        return not await inbox()

    connection = Connection(stack.settings.amqp_url("migrate"), "t")
    async with connection.channel(confirms=False) as channel:
        await channel.queue_delete(INBOX)
        await eventually(no_inbox, "the API is not ready")
        refusal = problem(
            await stack.http.post("/customers", json={"username": "ann"}), 503, "inbox-unavailable"
        )
        assert refusal["accepted"] == "no"
        assert not await inbox()
        await declare(channel, stack.settings.inbox_max_length)
        await eventually(inbox, "the API is ready again")
    await register(stack.http)


async def test_a_process_that_hears_another_ledger_is_not_ready_and_takes_nothing(
    make_stack: Callable[..., Awaitable[Stack]],
) -> None:
    stack = await make_stack()
    foreign = Announcement(90, 90, ledger_id=uuid4(), hash=bytes(32))
    async with Connection(stack.settings.amqp_url("projector"), "t").channel(
        confirms=True
    ) as channel:
        exchange = await channel.get_exchange(ANNOUNCED_EXCHANGE)
        await exchange.publish(Message(encode_announcement(foreign)), routing_key="")

    async def not_ready() -> str | None:
        response = await stack.http.get(f"{stack.url}/health/ready")
        body = response.json()
        assert (response.status_code == 200) is body["ledger"] is (body["problem"] is None)
        said: str | None = body["problem"]
        return said

    said = await eventually(not_ready, "the API is not ready")
    assert said
    assert str(foreign.ledger_id) in said
    refusal = problem(
        await stack.http.post("/customers", json={"username": "ann"}), 503, "inbox-unavailable"
    )
    assert refusal["accepted"] == "no"
    assert str(foreign.ledger_id) in refusal["detail"]
