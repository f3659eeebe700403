"""The clients of a run, who act at once and wait when they are told to."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Final

from ledger.runtime.reconnect import end
from tests.faults.client import TIMEOUT_S, TRIES, Client, Shop
from tests.faults.history import History

STOCKED_WITHIN_S: Final = 60.0
ANSWERED_WITHIN_S: Final = TRIES * TIMEOUT_S + 5


class Clients:
    """All clients of a run. They act from `begin` on, but for times when they are told to wait."""

    def __init__(self, seed: int, count: int, history: History, urls: Mapping[str, str]) -> None:
        shop = Shop()
        names = [f"client-{number}" for number in range(count)]
        self._all = [Client(n, Random(f"{seed} {n}"), shop, history, urls) for n in names]
        self._gate = asyncio.Event()
        self._gate.set()
        self._holds = 0
        self._acting: list[asyncio.Task[None]] = []

    async def begin(self, stack: AsyncExitStack, pause_s: float) -> None:
        """Stock the shop, and act until the stack is left."""
        for client in self._all:
            await client.open(stack)
        async with asyncio.timeout(STOCKED_WITHIN_S):
            await self._all[0].stock_the_shop()
        works = [client.run(self._gate, pause_s) for client in self._all]
        self._acting = [asyncio.create_task(work) for work in works]
        stack.push_async_callback(end, self._acting)

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Nobody asks for anything until the block is left."""
        self._holds += 1
        self._gate.clear()
        try:
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                for client, task in zip(self._all, self._acting, strict=True):
                    await client.idle.wait()
                    if task.done():
                        task.result()
            yield
        finally:
            self._holds -= 1
            if not self._holds:
                self._gate.set()

    async def barrier(self, deadline_s: float) -> None:
        """Return when all is decided that was accepted before; raises TimeoutError."""
        async with asyncio.timeout(deadline_s):
            await self._all[0].pay_in_and_wait()

    async def settle(self) -> None:
        """Learn how everything ended that has a key."""
        await asyncio.gather(*[client.settle() for client in self._all])
