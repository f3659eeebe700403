"""Reads of the past: the state at a position or a time, a few at once, as they take a while."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from api.problems import Problem, invalid
from api.requests import MAX_POSITION, whole
from ledger.runtime.timestamps import BadTimestamp, parse_rfc3339
from projections.as_of import AsOfPosition, AsOfReader, PositionBeyondHead, open_as_of

AS_OF: Final = ("as_of_position", "as_of_time")
WHEN: Final = ("min_position", *AS_OF)
"""What a request for one thing may say of when it wants to see it."""
AT_ONCE: Final = 2
"""So that the past can't take the connections that the views are read with."""
TURN_TIMEOUT_S: Final = 2.0
TIMEOUT_S: Final = 5.0

T = TypeVar("T")
Look = Callable[[AsOfReader, int], Awaitable[T]]


class AsOf(Struct, frozen=True):
    """When a client wants to look at: one of the two."""

    position: int | None
    time_us: int | None


class Past:
    """The past, for the handlers of one API process."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def look(self, when: AsOf, look: Look[T]) -> tuple[T, AsOfPosition]:
        """What was there then, and which moment that was.

        Raises Problem for what has not come yet or when it is busy, and ViewsUnavailable.
        """
        await self._wait()
        try:
            async with open_as_of(self._engine, TIMEOUT_S) as history:
                moment = await _moment(history, when)
                return await look(history, moment.position), moment
        finally:
            self._turn.release()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(TURN_TIMEOUT_S):
                await self._turn.acquire()
        except TimeoutError:
            raise Problem("past-busy", f"{AT_ONCE} others look at the past here") from None


async def _moment(history: AsOfReader, when: AsOf) -> AsOfPosition:
    try:
        if when.position is not None:
            return await history.at(when.position)
        return await history.at_time(when.time_us or 0)
    except PositionBeyondHead as error:
        if when.position is None:
            raise invalid("as_of_time", "lies ahead") from None
        detail = f"must be at most {error.head}, where the ledger ends now"
        raise invalid("as_of_position", detail, error.head) from None


def as_of(found: Mapping[str, str]) -> AsOf | None:
    """When the parameters of a request ask for; None for now. Raises Problem."""
    given = [name for name in (*AS_OF, "min_position") if name in found]
    if len(given) > 1:
        raise invalid(given[0], f"can't stand together with {given[1]}")
    if not given or given == ["min_position"]:
        return None
    if "as_of_position" in found:
        return AsOf(whole("as_of_position", found["as_of_position"], 0, MAX_POSITION), None)
    try:
        return AsOf(None, parse_rfc3339(found["as_of_time"]))
    except BadTimestamp as error:
        raise invalid("as_of_time", f"{error}; in a query + is %2B") from None
