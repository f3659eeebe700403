"""Single flight and the bounded dict."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ledger.runtime.cache import BoundedDict, SingleFlight


class Call:
    """A call that ends when the test says so, and counts how often it began."""

    def __init__(self) -> None:
        self.began = 0
        self.result: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> int:
        self.began += 1
        return await asyncio.shield(self.result)


async def many(ask: Callable[[str, Call], Awaitable[int]], call: Call) -> list[asyncio.Future[int]]:
    tasks = [asyncio.ensure_future(ask("key", call)) for _ in range(3)]
    await asyncio.sleep(0.01)
    return tasks


async def test_callers_of_one_key_share_one_call() -> None:
    flights = SingleFlight[str, int]()
    call = Call()
    tasks = await many(flights.join, call)
    assert "key" in flights
    assert len(flights) == 1
    call.result.set_result(7)
    assert await asyncio.gather(*tasks) == [7, 7, 7]
    assert call.began == 1
    assert not len(flights)


async def test_a_cancelled_caller_does_not_cancel_the_call_of_the_others() -> None:
    flights = SingleFlight[str, int]()
    call = Call()
    first, second, third = await many(flights.join, call)
    first.cancel()
    call.result.set_result(7)
    assert await asyncio.gather(second, third) == [7, 7]


async def test_every_caller_gets_the_exception_and_the_next_one_calls_again() -> None:
    flights = SingleFlight[str, int]()
    call = Call()
    tasks = await many(flights.join, call)
    call.result.set_exception(OSError("away"))
    for task in tasks:
        with pytest.raises(OSError, match="away"):
            await task
    call.result = asyncio.get_running_loop().create_future()
    call.result.set_result(8)
    assert await flights.join("key", call) == 8


async def test_join_next_waits_for_a_call_that_begins_afterwards() -> None:
    flights = SingleFlight[str, int]()
    old, new = Call(), Call()
    first = asyncio.ensure_future(flights.join_next("key", old))
    await asyncio.sleep(0.01)
    late = await many(flights.join_next, new)
    assert (old.began, new.began) == (1, 0)
    new.result.set_result(2)
    old.result.set_result(1)
    assert await first == 1
    assert await asyncio.gather(*late) == [2, 2, 2]
    assert new.began == 1


def test_a_full_dict_drops_its_oldest_entry_for_a_new_key_only() -> None:
    kept = BoundedDict[str, int](2)
    kept["a"] = 1
    kept["b"] = 2
    kept["a"] = 3
    assert kept == {"a": 3, "b": 2}
    kept["c"] = 4
    assert kept == {"b": 2, "c": 4}
    kept.renew("b", 5)
    kept["d"] = 6
    assert kept == {"b": 5, "d": 6}
