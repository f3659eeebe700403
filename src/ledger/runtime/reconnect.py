"""Keeping a connection's work alive: one session after another, for as long as the process runs."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random

log = logging.getLogger(__name__)

CANCEL_AGAIN_S: Final = 2.5
"""Longer than a connection may take to close in an orderly way."""


async def keep_alive(
    name: str,
    session: Callable[[], Awaitable[None]],
    errors: tuple[type[BaseException], ...],
) -> None:
    """Run `session` until it returns; after one of `errors` say so, wait a little, run it again."""

    def say(attempt: RetryCallState) -> None:
        error = attempt.outcome and attempt.outcome.exception()
        log.warning("%s: %s: %s; trying again", name, type(error).__name__, error)

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(errors),
        wait=wait_random(0.1, 0.8),
        before_sleep=say,
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            await session()


async def first_to_end(*works: Coroutine[Any, Any, None]) -> None:
    """Run the works together until one ends; end the others; raise what it raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(tasks)
    for task in done:
        task.result()


async def end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel tasks and return when all have ended, however they did.

    A cancel is repeated: asyncio.wait_for of Python 3.11, which the drivers use, loses one that
    comes at the same moment as its answer (https://github.com/python/cpython/issues/86296).
    """
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=CANCEL_AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)
