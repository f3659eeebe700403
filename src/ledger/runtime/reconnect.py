"""Restarts a session after errors, with random pauses; ends coroutines that belong together."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

log = logging.getLogger(__name__)

MIN_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 0.8
# Longer than a connection may take to close in an orderly way.
CANCEL_AGAIN_S: Final = 2.5


async def keep_alive(
    name: str,
    session: Callable[[], Awaitable[None]],
    errors: tuple[type[BaseException], ...],
) -> None:
    """Run `session` again after each of `errors`, until it returns or raises anything else."""
    while True:
        try:
            return await session()
        except errors as error:
            log.warning("%s: %s: %s; trying again", name, type(error).__name__, error)
        # With a random pause, processes that lost one broker do not all come back at one moment.
        await asyncio.sleep(random.uniform(MIN_PAUSE_S, MAX_PAUSE_S))  # noqa: S311


async def first_to_end(*works: Coroutine[Any, Any, object]) -> None:
    """Run the works together until one ends; cancel the others; raise what the first one raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(tasks)
    for task in done:
        task.result()


async def end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel tasks and return when all have ended, whatever they raised."""
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        # Cancelled again if need be: asyncio.wait_for of Python 3.11, which the drivers use, loses
        # a cancel that comes at the same moment as its answer
        # (https://github.com/python/cpython/issues/86296).
        await asyncio.wait(running, timeout=CANCEL_AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)
