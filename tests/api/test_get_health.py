"""GET /health/live, and GET /health/ready."""

from collections.abc import Awaitable, Callable
from urllib.parse import urljoin

import httpx

from ledger.messaging.rabbitmq import Connection
from ledger.messaging.topology import INBOX, declare
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


async def test_a_process_without_an_inbox_is_not_ready_and_needs_no_refusal_to_know(
    make_stack: Callable[..., Awaitable[Stack]],
) -> None:
    stack = await make_stack()

    async def inbox() -> bool:
        response = await stack.http.get(f"{stack.url}/health/ready")
        there: bool = response.json()["inbox"]
        assert there or response.status_code == 503
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
