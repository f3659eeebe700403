"""How the ledger grows under a load, and how far the views are behind it."""

import asyncio
import time
from bisect import bisect_right
from typing import Any, Final

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

EVERY_S: Final = 0.25


class Seen(Struct, frozen=True):
    """Where ledger and views were at a time."""

    at_s: float
    head: int
    shown: int


class Watch:
    """Looks at head and checkpoints again and again while the block under `async with` runs."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._task: asyncio.Task[None] | None = None
        self.seen: list[Seen] = []

    async def __aenter__(self) -> "Watch":
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task
        self._task.cancel()
        await asyncio.wait((self._task,))
        if not self._task.cancelled():
            self._task.result()

    async def _look(self) -> None:
        async with self._engine.connect() as connection:
            while True:
                self.seen.append(await _look(connection))
                await asyncio.sleep(EVERY_S)

    def lags_s(self) -> list[float]:
        """How long before each look the ledger was where the views are now, in seconds."""
        heads = [seen.head for seen in self.seen]
        return [
            0.0 if seen.shown >= seen.head else seen.at_s - self._reached_s(heads, seen.shown)
            for seen in self.seen
        ]

    def _reached_s(self, heads: list[int], position: int) -> float:
        """When the ledger, as steady between two looks as can be, went beyond a position."""
        after = bisect_right(heads, position)
        one, later = self.seen[max(0, after - 1)], self.seen[after]
        share = (position - one.head) / (later.head - one.head) if after else 0
        return one.at_s + share * (later.at_s - one.at_s)

    def rates(self) -> list[tuple[float, float]]:
        """Events a second between each two looks, with the time since the first."""
        return [
            (later.at_s - self.seen[0].at_s, (later.head - one.head) / (later.at_s - one.at_s))
            for one, later in zip(self.seen, self.seen[1:], strict=False)
        ]


async def _look(connection: AsyncConnection) -> Seen:
    found = await connection.exec_driver_sql(
        "SELECT h.position, MIN(c.position) FROM ledger_head h JOIN checkpoints c"
        " GROUP BY h.position"
    )
    row: Any = found.one()
    await connection.rollback()
    return Seen(time.monotonic(), int(row[0]), int(row[1]))
