"""Sessions run again after their errors; works that run together end together."""

import asyncio
from contextlib import suppress

import pytest

from ledger.runtime import reconnect
from ledger.runtime.reconnect import first_to_end, keep_alive
from tests.harness import DEADLINE_S


class Works:
    """Works of one test, and what became of them."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.attempts = 0

    async def waits(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.append("waits")

    async def loses_a_cancel(self) -> None:
        """As asyncio.wait_for of Python 3.11 does when its answer comes at the same moment."""
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await self.waits()

    async def fails(self) -> None:
        raise ConnectionError("gone")

    async def fails_twice(self) -> None:
        self.attempts += 1
        if self.attempts < 3:
            raise ConnectionError("gone")


async def test_the_first_work_to_end_ends_the_others_and_its_error_is_raised() -> None:
    works = Works()
    with pytest.raises(ConnectionError, match="gone"):
        await first_to_end(works.waits(), works.fails(), works.waits())
    assert works.ended == ["waits", "waits"]


async def test_a_lost_cancel_is_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a process whose work failed while it connected would hang, and never be restarted."""
    monkeypatch.setattr(reconnect, "CANCEL_AGAIN_S", 0.05)
    works = Works()
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(ConnectionError, match="gone"):
            await first_to_end(works.loses_a_cancel(), fails_later(works))
    assert works.ended == ["waits"]


async def fails_later(works: Works) -> None:
    await asyncio.sleep(0)
    await works.fails()


async def test_cancelling_first_to_end_cancels_each_work() -> None:
    works = Works()
    together = asyncio.create_task(first_to_end(works.waits(), works.waits()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    together.cancel()
    with pytest.raises(asyncio.CancelledError):
        await together
    assert works.ended == ["waits", "waits"]


async def test_a_session_runs_again_after_its_errors_and_no_others() -> None:
    works = Works()
    await keep_alive("test", works.fails_twice, (OSError,))
    assert works.attempts == 3
    with pytest.raises(ConnectionError):
        await keep_alive("test", works.fails, (ValueError,))
