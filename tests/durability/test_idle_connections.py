"""Ten thousand clients who say nothing more: the others are served, and memory is bounded."""

import asyncio
import resource
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from api.http.connection import KEEP_ALIVE_S
from tests.api.client import list_product, order, register, stock
from tests.harness import Stack

from .memory import measured

IDLE: Final = 10_000
AT_ONCE: Final = 200
SPARE_FILES: Final = 500
ORDINARY_FILES: Final = 1_024
"""What a shell allows by default."""

OPENED_WITHIN_S: Final = 60.0
SERVED_WITHIN_S: Final = 60.0
ASK: Final = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"

MakeStack = Callable[..., Awaitable[Stack]]
Idle = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextmanager
def open_files(count: int) -> Iterator[None]:
    """This process, and what it starts meanwhile, may open so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"only {hard} files may be open here: raise the limit with `ulimit -Hn`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def connect(stack: Stack) -> Idle:
    """A connection of a client that asked once and has its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.settings.api_port)
    writer.write(ASK)
    await reader.readuntil(b"}")
    return reader, writer


async def connect_all(stack: Stack) -> list[Idle]:
    """All of them, some at a time."""
    idle: list[Idle] = []
    async with asyncio.timeout(OPENED_WITHIN_S):
        while len(idle) < IDLE:
            idle += await asyncio.gather(*[connect(stack) for _ in range(AT_ONCE)])
    return idle


async def others_are_served(stack: Stack) -> None:
    """A new client sells something, as soon as ever."""
    async with asyncio.timeout(SERVED_WITHIN_S):
        customer_id, product_id = await register(stack.http), await list_product(stack.http)
        assert (await order(stack.http, customer_id, product_id))["status"] == "COMPLETED"
        assert await stock(stack.http, product_id) == 99


async def ended(idle: list[Idle]) -> None:
    """Wait until the API has hung up on each."""
    async with asyncio.timeout(KEEP_ALIVE_S + OPENED_WITHIN_S):
        assert set(await asyncio.gather(*[reader.read() for reader, _ in idle])) == {b""}
    hang_up(idle)


def hang_up(idle: list[Idle]) -> None:
    """Close this end of each, too."""
    for _, writer in idle:
        writer.transport.abort()


async def test_ten_thousand_idle_connections_keep_nobody_from_being_served(
    make_stack: MakeStack,
) -> None:
    with open_files(ORDINARY_FILES):
        stack = await make_stack()
    with open_files(IDLE + SPARE_FILES):
        async with measured(stack) as samples:
            idle = await connect_all(stack)
            await others_are_served(stack)
            hang_up(idle)
    samples.check_limit()


@pytest.mark.slow
async def test_idle_connections_are_closed_in_the_end(make_stack: MakeStack) -> None:
    stack = await make_stack()
    with open_files(IDLE + SPARE_FILES):
        async with measured(stack) as samples:
            await ended(await connect_all(stack))
            await others_are_served(stack)
    samples.check_limit()
