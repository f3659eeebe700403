"""Reading the views: not before the position a client asks for, and noting how far one saw."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

from api.problems import Problem
from api.requests import MAX_POSITION, whole
from api.waiters import Waiting

MIN_POSITION_WAIT_S: Final = 2.0

T = TypeVar("T")
Query = Callable[[], Awaitable[tuple[T, int]]]


class Reading:
    """Every read of a view goes through here; `seen` is the latest position any of them showed."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self.seen = 0

    async def read(self, query: Query[T]) -> tuple[T, int]:
        """What the query answers, and the position it holds at."""
        answer, position = await query()
        self.seen = max(self.seen, position)
        return answer, position

    async def read_at_least(self, min_position: int, query: Query[T]) -> tuple[T, int]:
        """As `read`, but not older than `min_position`; raises Problem if that takes too long."""
        answer, position = await self.read(query)
        if position >= min_position:
            return answer, position
        await self._waiting.position(min_position, MIN_POSITION_WAIT_S)
        answer, position = await self.read(query)
        if position >= min_position:
            return answer, position
        raise Problem(
            "views-behind",
            f"the views are at position {position}, {min_position - position} behind",
            position=position,
            min_position=min_position,
        )


class Shared(Generic[T]):
    """Reads of one thing by many at once: at most one query of a key runs at a time.

    Who comes while it runs shares the next one. So each answer was read after its reader came, and
    a thing that everybody asks for costs the database one query after the other, not all at once.
    """

    def __init__(self) -> None:
        self._next: dict[Hashable, asyncio.Task[T]] = {}
        self._running: dict[Hashable, asyncio.Task[T]] = {}

    async def read(self, key: Hashable, query: Callable[[], Awaitable[T]]) -> T:
        """What a query of this key answers that began after this call."""
        if key not in self._next:
            self._next[key] = asyncio.create_task(self._after(self._running.get(key), key, query))
        return await asyncio.shield(self._next[key])

    async def _after(
        self, before: asyncio.Task[T] | None, key: Hashable, query: Callable[[], Awaitable[T]]
    ) -> T:
        if before:
            await asyncio.wait((before,))
        mine = self._running[key] = self._next.pop(key)
        try:
            return await query()
        finally:
            if self._running[key] is mine:
                del self._running[key]


def min_position_of(found: dict[str, str]) -> int:
    """The position the answer must at least hold at; 0 if the client does not mind."""
    text = found.get("min_position")
    return whole("min_position", text, 0, MAX_POSITION) if text is not None else 0
