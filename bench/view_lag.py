"""The growth of the ledger under a load, and the lag of the views behind it."""

import asyncio
import time
from bisect import bisect_right
from typing import Any, Final

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

EVERY_S: Final = 0.25


class Observation(Struct, frozen=True):
    """Where ledger and views were at a time."""

    at_s: float
    head: int
    shown: int


class LagMonitor:
    """Looks at head and checkpoints again and again while the block under `async with` runs."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._task: asyncio.Task[None] | None = None
        self.observations: list[Observation] = []

    async def __aenter__(self) -> "LagMonitor":
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
                self.observations.append(await _look(connection))
                await asyncio.sleep(EVERY_S)

    def lags_s(self) -> list[float]:
        """The lag at each observation: the seconds since the ledger was at the views' position."""
        heads = [observation.head for observation in self.observations]
        return [
            0.0
            if observation.shown >= observation.head
            else observation.at_s - self._reached_s(heads, observation.shown)
            for observation in self.observations
        ]

    def _reached_s(self, heads: list[int], position: int) -> float:
        """When the ledger, as steady between two looks as can be, went beyond a position."""
        after = bisect_right(heads, position)
        one, later = self.observations[max(0, after - 1)], self.observations[after]
        share = (position - one.head) / (later.head - one.head) if after else 0
        return one.at_s + share * (later.at_s - one.at_s)

    def rates(self) -> list[tuple[float, float]]:
        """Events a second between each two looks, with the time since the first."""
        return [
            (
                later.at_s - self.observations[0].at_s,
                (later.head - one.head) / (later.at_s - one.at_s),
            )
            for one, later in zip(self.observations, self.observations[1:], strict=False)
        ]


async def _look(connection: AsyncConnection) -> Observation:
    result = await connection.exec_driver_sql(
        "SELECT h.position, MIN(c.position) FROM ledger_head h JOIN checkpoints c"
        " GROUP BY h.position"
    )
    row: Any = result.one()
    await connection.rollback()
    return Observation(time.monotonic(), int(row[0]), int(row[1]))
