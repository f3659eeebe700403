"""SIGTERM under load: each process ends in time, and nothing is acked that is not committed."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import httpx
import pytest

from tests.harness import Stack, eventually
from tests.ledger.naive_audit import audit, causes, ids
from tests.ledger.pipeline import Ledger, running_ledger
from tests.projections.view_rows import all_live, all_replayed, checkpoints, until_projected
from tests.submissions import opening, orders

# Far below DEADLINE_S: a process that waits for something when it's to end is found.
STOP_S = 30

MakeStack = Callable[..., Awaitable[Stack]]


async def terminated(stack: Stack, name: str) -> None:
    begun = time.monotonic()
    status = await asyncio.to_thread(stack.terminate, name)
    said = stack.log_path(name).read_text()
    assert (status, time.monotonic() - begun < STOP_S) == (0, True), said
    assert "Traceback" not in said


@pytest.mark.parametrize("name", ["writer", "projector"])
async def test_a_stopped_process_leaves_no_work_half_done(make_stack: MakeStack, name: str) -> None:
    stack = await make_stack()
    async with running_ledger(stack.settings) as ledger, ledger.publishing() as publisher:
        events = [*opening(), *orders(1_500)]
        await publisher.submit(events[:2])
        load = asyncio.gather(*[publisher.submit([event]) for event in events[2:]])
        await both_are_at_work(ledger)
        await terminated(stack, name)
        await load
        stack.start(name)
        records = await ledger.until_recorded(events)
        await ledger.until_inbox_empty()
        assert causes(records) == ids(events)
        audit(records)
        await until_projected(ledger)
        assert await all_live(ledger) == await all_replayed(ledger)


async def both_are_at_work(ledger: Ledger) -> None:
    """Wait until writer and projector have begun; before, a process has no work to leave whole."""

    async def shown() -> bool:
        return min((await checkpoints(ledger)).values()) > 0

    await eventually(shown, "the views show something")


async def test_a_stopped_api_answers_the_requests_it_accepted(make_stack: MakeStack) -> None:
    stack = await make_stack()
    body = {"customer_id": str(uuid4()), "product_id": str(uuid4())}
    accepted: list[str] = []

    async def place_orders(http: httpx.AsyncClient) -> None:
        while True:
            try:
                answer = await http.post("/orders", json=body)
            except httpx.TransportError:
                return
            if answer.status_code != 202:
                return
            accepted.append(answer.json()["order_id"])

    async with httpx.AsyncClient(base_url=f"{stack.url}/api/v1") as http:
        clients = [asyncio.create_task(place_orders(http)) for _ in range(16)]
        while len(accepted) < 200:  # noqa: ASYNC110 (each turn lets the clients go on)
            await asyncio.sleep(0)
        await terminated(stack, "api")
        await asyncio.gather(*clients)
    async with running_ledger(stack.settings) as ledger:

        async def are_placed() -> bool:
            records = await ledger.records()
            return set(accepted) <= {str(UUID(bytes=record.stream_id)) for record in records}

        await eventually(are_placed, "every accepted order is in the ledger")
        audit(await ledger.records())


async def test_idle_processes_end_at_once(make_stack: MakeStack) -> None:
    stack = await make_stack()
    async with running_ledger(stack.settings) as ledger, ledger.publishing() as publisher:
        await publisher.submit(events := opening())
        await ledger.until_recorded(events)
        await until_projected(ledger)
    for name in ("api", "projector", "writer"):
        await terminated(stack, name)
