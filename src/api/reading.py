"""Reading the views: not before the position a client asks for, and noting how far one saw."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from starlette.requests import Request

from api.problems import Problem
from api.requests import MAX_POSITION, parameters, whole
from api.waiting import Waiting

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


def min_position(request: Request) -> int:
    """The only parameter of a request for one thing."""
    return min_position_of(parameters(request, "min_position"))


def min_position_of(found: dict[str, str]) -> int:
    """The position the answer must at least hold at; 0 if the client does not mind."""
    text = found.get("min_position")
    return whole("min_position", text, 0, MAX_POSITION) if text is not None else 0
