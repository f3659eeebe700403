"""The private servers of the suite, and ledgers on them."""

import compileall
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from cli.localstack import StackRefused
from cli.settings import Settings
from tests.harness import Stack, make_ledger, start_stack
from tests.leaks import failing_leaks
from tests.private_servers import Servers, start_servers

SRC = Path(__file__).parents[1] / "src"


def pytest_configure() -> None:
    """Compile src once where Python is told not to: each process would do it at its start."""
    if sys.dont_write_bytecode:
        compileall.compile_dir(SRC, quiet=1)


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """A process that a test leaves running fails that test."""
    with failing_leaks():
        yield


@pytest.fixture(scope="session")
def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    """One private RabbitMQ and one private MariaDB or MySQL, thrown away afterwards."""
    try:
        running = start_servers(tmp_path_factory.mktemp("servers"), with_management=True)
    except StackRefused as refused:
        # Or each test that wants them would be an error of its own.
        request.session.shouldfail = str(refused)
        pytest.fail(str(refused), pytrace=False)
    with running:
        yield running


@pytest.fixture
async def settings(servers: Servers) -> Settings:
    """An empty ledger of the test's own, with nothing running on it."""
    return await make_ledger(servers)


@pytest.fixture(scope="session")
async def stack(request: pytest.FixtureRequest, servers: Servers) -> AsyncIterator[Stack]:
    """A running ledger that many tests share; none may expect it to be empty, or harm it."""
    try:
        running = await start_stack(servers)
    except Exception as error:
        request.session.shouldfail = f"no ledger runs: {error}"
        raise
    yield running
    await running.stop()


@pytest.fixture
async def make_stack(servers: Servers) -> AsyncIterator[Callable[..., Awaitable[Stack]]]:
    """Makes running ledgers of the test's own, which it may harm."""
    async with AsyncExitStack() as stacks:

        async def make(**changes: object) -> Stack:
            stack = await start_stack(servers, **changes)
            stacks.push_async_callback(stack.stop)
            return stack

        yield make
