"""However many orders wait in the inbox, no process takes more memory for it than is bounded."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import pytest

from api.schemas import MAX_BATCH
from tests.harness import Stack, eventually
from tests.ledger.pipeline import Ledger, running_ledger
from tests.submissions import ANN, PEN, opening

from .memory import measured

AT_ONCE: Final = 4
DEADLINE_S: Final = 600.0

MakeStack = Callable[..., Awaitable[Stack]]


async def bounded(stack: Stack, waiting: int, worked_off: int) -> None:
    """Let so many orders wait, then work some off; no process may take too much, or ever more."""
    async with running_ledger(stack.settings) as ledger:
        shop = opening(stock=10**9)
        await ledger.put_events(shop)
        await ledger.until_recorded(shop)
        stack.kill("writer")
        async with measured(stack) as filling:
            await fill(stack, waiting)
        filling.check_limit()
        stack.start("writer")
        await until_decided(ledger, worked_off // 4)
        async with measured(stack) as working:
            await until_decided(ledger, worked_off)
        working.check_limit()
        working.check_growth()


async def test_memory_is_bounded_with_a_hundred_thousand_orders_waiting(
    make_stack: MakeStack,
) -> None:
    await bounded(await make_stack(), 100_000, 10_000)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_memory_is_bounded_with_a_million_orders_waiting(make_stack: MakeStack) -> None:
    """The API remembers each of them until it is decided, and takes no more than these."""
    stack = await make_stack()
    await bounded(stack, 1_000_000, 200_000)


async def fill(stack: Stack, count: int) -> None:
    """Have the API accept so many orders, in batches."""
    order = {"customer_id": str(ANN), "product_id": str(PEN), "quantity": 1}
    body = {"orders": [order] * MAX_BATCH}
    left = iter(range(count // MAX_BATCH))

    async def accepted() -> bool:
        return (await stack.http.post("/orders/batch", json=body)).status_code == 202

    async def fill_on() -> None:
        for _ in left:
            await eventually(accepted, "the inbox takes a batch")

    await asyncio.gather(*[fill_on() for _ in range(AT_ONCE)])


async def until_decided(ledger: Ledger, count: int) -> None:
    """Wait until the views show that so many orders were decided."""

    async def are_decided() -> bool:
        ((position,),) = await ledger.rows("SELECT MIN(position) FROM checkpoints")
        return bool(position >= 2 * count)

    await eventually(are_decided, f"{count} orders are decided", DEADLINE_S)
