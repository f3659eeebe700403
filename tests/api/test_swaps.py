"""Swapping rebuilt views causes no error, no empty answer and no step back for clients."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import httpx

from projections.views.registry import PROJECTIONS
from tests.harness import Stack, environment, eventually
from tests.ledger.pipeline import running_ledger
from tests.warm import COMMAND

from .client import list_product, order, register

MakeStack = Callable[..., Awaitable[Stack]]

READERS = 5
PAUSE_S = 0.05
SWAPS = 3


class Reader:
    """A client that reads all the time; each answer must be as new as the one before."""

    def __init__(self, http: httpx.AsyncClient, paths: list[str]) -> None:
        self._http = http
        self._paths = paths
        self.answers = 0

    async def run(self) -> None:
        position = 0
        while True:
            for path in self._paths:
                answer = await self._http.get(path)
                assert answer.status_code == 200, (path, answer.text)
                assert answer.json().get("items", True), "an empty list"
                shown = int(answer.headers["Ledger-Position"])
                assert shown >= position, f"{path}: from {position} back to {shown}"
                position = shown
                self.answers += 1
                await asyncio.sleep(PAUSE_S)


async def rebuild_all(stack: Stack, *more: str) -> str:
    """`ledger rebuild --all`; what it said."""
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        "rebuild",
        "--all",
        *more,
        env=os.environ | environment(stack.settings),
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_swaps_are_invisible_to_readers_while_orders_come_in(
    make_stack: MakeStack,
) -> None:
    stack = await make_stack()
    customer_id = await register(stack.http, "1000000.00")
    product_id = await list_product(stack.http, "1.00", 100_000)
    order_id = (await order(stack.http, customer_id, product_id))["order_id"]
    things = (f"orders/{order_id}", f"customers/{customer_id}", f"products/{product_id}")
    paths = [f"/{name}" for name in (*things, "orders", f"products/{product_id}?min_position=1")]
    readers = [Reader(stack.http, paths) for _ in range(READERS)]

    async def order_on() -> None:
        while True:
            await order(stack.http, customer_id, product_id)

    async with AsyncExitStack() as ending:
        works = [asyncio.create_task(reader.run()) for reader in readers]
        works += [asyncio.create_task(order_on()) for _ in range(3)]
        for work in works:
            ending.callback(work.cancel)
        for _ in range(SWAPS):
            assert (await rebuild_all(stack)).count("the same as before") == len(PROJECTIONS)
        before = sum(reader.answers for reader in readers)

        async def read_on() -> bool:
            return sum(reader.answers for reader in readers) > before + 50

        await eventually(read_on, "readers go on")
        assert before > 50
        for work in works:
            assert not work.done(), work.result()


async def test_a_repaired_row_is_served_although_its_position_is_the_same(
    make_stack: MakeStack,
) -> None:
    """Neither the ETag that a client has nor a page in the cache stands for what was wrong."""
    stack = await make_stack()
    path = f"/products/{await list_product(stack.http, stock=7)}"
    async with running_ledger(stack.settings) as ledger:
        await ledger.execute("UPDATE stock SET stock = 700")

    async def shows(stock: int) -> httpx.Response | None:
        response = await stack.http.get(path)
        return response if response.json()["stock"] == stock else None

    wrong = await eventually(lambda: shows(700), "the cache has the wrong row")
    repairing = asyncio.create_task(rebuild_all(stack, "--repair"))
    while not repairing.done():
        await stack.http.get(path)  # so that the cache has the page when the tables are swapped
        await asyncio.wait([repairing], timeout=PAUSE_S)
    assert "other than before" in await repairing
    right = await eventually(lambda: shows(7), "the cache has the right row")
    assert right.headers["Ledger-Position"] == wrong.headers["Ledger-Position"]
    for again in (path, f"{path}?min_position=1"):
        answer = await stack.http.get(again, headers={"If-None-Match": wrong.headers["ETag"]})
        assert (answer.status_code, answer.json()["stock"]) == (200, 7)
