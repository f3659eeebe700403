"""The private servers of the suite, and ledgers on them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from cli.settings import Settings
from tests.harness import Stack, make_ledger, start_stack
from tests.private_servers import Servers, start_servers


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """One private RabbitMQ and one private MariaDB or MySQL, thrown away afterwards."""
    with start_servers(tmp_path_factory.mktemp("servers"), with_management=True) as running:
        yield running


@pytest.fixture
async def settings(servers: Servers) -> Settings:
    """An empty ledger of the test's own, with nothing running on it."""
    return await make_ledger(servers)


@pytest.fixture(scope="session")
async def stack(servers: Servers) -> AsyncIterator[Stack]:
    """A running ledger that many tests share; none may expect it to be empty, or harm it."""
    running = await start_stack(servers)
    yield running
    await running.stop()


@pytest.fixture
async def make_stack(servers: Servers) -> AsyncIterator[Callable[..., Awaitable[Stack]]]:
    """Makes running ledgers of the test's own, which it may harm."""
    made: list[Stack] = []

    async def make(**changes: object) -> Stack:
        made.append(await start_stack(servers, **changes))
        return made[-1]

    yield make
    for running in made:
        await running.stop()
