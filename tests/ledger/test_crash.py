"""kill -9 in the middle of orders: every 202 is decided exactly once, whoever dies."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import httpx
import pytest

from ledger.core.events import OrderCompleted, OrderFailed, OrderPlaced
from ledger.eventlog.codec import decode_recorded
from ledger.eventlog.records import Record
from tests.harness import DEADLINE_S, Stack, eventually
from tests.projections.view_rows import all_live, all_replayed, until_projected
from tests.submissions import ANN, PEN, opening, orders

from .naive_audit import audit
from .pipeline import running_ledger

ORDERS = 400
CLIENTS = 16
BALANCE, STOCK = 10**9, 300

MakeStack = Callable[..., Awaitable[Stack]]


@dataclass
class Clients:
    """Clients that place orders, each with a key of its own, and retry until they have a 202."""

    http: httpx.AsyncClient
    left: list[str] = field(default_factory=lambda: [str(uuid4()) for _ in range(ORDERS)])
    accepted: dict[str, str] = field(default_factory=dict)

    async def place_all(self) -> None:
        await asyncio.gather(*[self._place() for _ in range(CLIENTS)])

    async def _place(self) -> None:
        while self.left:
            key = self.left.pop()
            await eventually(lambda key=key: self._accepted(key), "an order is accepted")

    async def _accepted(self, key: str) -> bool:
        body = {"customer_id": str(ANN), "product_id": str(PEN)}
        try:
            answer = await self.http.post("/orders", json=body, headers={"Idempotency-Key": key})
        except httpx.TransportError:
            return False
        assert answer.status_code in (202, 503), answer.text
        if answer.status_code == 202:
            self.accepted[key] = answer.json()["order_id"]
        return answer.status_code == 202

    async def until_accepted(self, count: int) -> None:
        """Wait until so many have their 202."""

        async def are_accepted() -> bool:
            return len(self.accepted) >= count

        await eventually(are_accepted, f"{count} orders are accepted")


async def test_whoever_is_killed_every_accepted_order_is_decided_exactly_once(
    make_stack: MakeStack,
) -> None:
    stack = await make_stack(snapshot_every=100)
    async with running_ledger(stack.settings) as ledger, ledger.publishing() as publisher:
        first = opening(BALANCE, STOCK)
        await publisher.submit(first)
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(
            base_url=f"{stack.url}/api/v1", limits=limits, timeout=DEADLINE_S
        ) as http:
            clients = Clients(http)
            placing = asyncio.create_task(clients.place_all())
            for count, name in ((60, "writer"), (160, "projector"), (260, "api")):
                await clients.until_accepted(count)
                stack.kill(name)
                stack.start(name)
            await placing
        await ledger.until_inbox_empty()

        async def are_decided() -> bool:
            return (await ledger.head()).position >= len(first) + 2 * ORDERS

        await eventually(are_decided, "every accepted order is decided")
        records = await ledger.records()
        fold = audit(records)
        placed = outcomes(records)
        assert set(clients.accepted.values()) == set(placed)
        assert len(placed) == ORDERS
        assert all(len(decided) == 1 for decided in placed.values())
        completed = [each[0] for each in placed.values() if isinstance(each[0], OrderCompleted)]
        failed = [each[0] for each in placed.values() if isinstance(each[0], OrderFailed)]
        assert (len(completed), len(failed)) == (STOCK, ORDERS - STOCK)
        assert fold.products[PEN].stock == 0
        spent = sum(each.total_minor for each in completed)
        assert fold.customers[ANN].balance_minor == BALANCE - spent
        assert await until_projected(ledger) == len(records)
        assert await all_live(ledger) == await all_replayed(ledger)
        wallet = await ledger.rows("SELECT balance_minor FROM wallets", "analyst")
        stock = await ledger.rows("SELECT stock FROM stock", "analyst")
        assert (wallet, stock) == ([(BALANCE - spent,)], [(0,)])


def outcomes(records: list[Record]) -> dict[str, list[object]]:
    """What was decided of each order."""
    found: dict[str, list[object]] = {}
    for record in records:
        event = decode_recorded(record)
        key = str(UUID(bytes=record.stream_id))
        if isinstance(event.payload, OrderPlaced):
            found.setdefault(key, [])
        elif record.cause_position and key in found:
            found[key].append(event.payload)
    return found


@pytest.mark.parametrize("name", ["writer", "projector"])
async def test_a_process_that_is_killed_again_and_again_loses_and_doubles_nothing(
    make_stack: MakeStack, name: str
) -> None:
    stack = await make_stack(snapshot_every=50)
    async with running_ledger(stack.settings) as ledger, ledger.publishing() as publisher:
        events = opening()
        await publisher.submit(events)
        for _ in range(4):
            more = orders(150)
            await asyncio.gather(*[publisher.submit([event]) for event in more])
            events += more
            await ledger.until_recorded(more[:1])
            stack.kill(name)
            stack.start(name)
        records = await ledger.until_recorded(events)
        audit(records)
        assert len(records) == 2 * len(events) - 2
        await until_projected(ledger)
        assert await all_live(ledger) == await all_replayed(ledger)
