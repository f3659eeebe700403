"""The private servers of the suite, and ledgers on them."""

import compileall
import logging
import os
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from cli.localstack import StackRefused
from cli.settings import Settings
from ledger.messaging import publisher
from tests.forks import WARM
from tests.harness import DEADLINE_S, Stack, make_ledger, start_stack
from tests.leaks import failing_leaks
from tests.ledger.pipeline import Ledger, running_ledger
from tests.private_servers import Servers, start_servers

TESTS = Path(__file__).parent
SRC = TESTS.parent / "src"
MEMORY = Path("/dev/shm")
# A worker's servers have some 500 MB on their disk in the end.
NEEDED_BYTES = 6_000_000_000

# The files that take longest, longest first: at the end one worker would be busy with such a file
# for a minute while the others have nothing left to do.
LONGEST = (
    "projections/test_rebuild.py",
    "api/test_fuzz.py",
    "api/test_outages.py",
    "cli/test_rebuild.py",
    "cli/test_parked.py",
    "cli/test_parked_queue.py",
    "edge/test_server.py",
    "ledger/test_crash.py",
    "cli/test_import.py",
    "cli/test_verify.py",
    "ledger/test_failpoints.py",
    "ledger/test_writer_outages.py",
    "stack/test_up.py",
    "docs/test_commands.py",
    "edge/test_attacks.py",
    "cli/test_hostile_names.py",
    "projections/test_every_projection.py",
    "api/test_swaps.py",
    "cli/test_replay_into_inbox.py",
    "cli/test_export.py",
    "cli/test_erase_customer.py",
    "api/test_requests.py",
    "ledger/test_erasure.py",
    "cli/test_stopping.py",
    "durability/test_failing_well.py",
    "projections/test_as_of.py",
    "ledger/test_standby.py",
    "durability/test_backlog.py",
)

# How long a confirm takes on a busy machine proves nothing; tests of these limits set their own.
publisher.LINE_TIMEOUT_S = publisher.ANSWER_TIMEOUT_S = publisher.OVERDUE_S = DEADLINE_S

# New examples each run; a failure prints how to repeat it. How long one takes is the machine's.
hypothesis_settings.register_profile(
    "ledger",
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
hypothesis_settings.load_profile("ledger")


def pytest_configure() -> None:
    """Compile src once where Python is told not to: each process would do it at its start.

    Where memory is ample all files of the tests, the servers' too, are in memory: hundreds of
    schemas are made, and each takes more than a hundred syncs of the disk.
    """
    if sys.dont_write_bytecode:
        compileall.compile_dir(SRC, quiet=1)
    if MEMORY.is_dir():
        free = min(psutil.virtual_memory().available, psutil.disk_usage(str(MEMORY)).free)
        if free > NEEDED_BYTES:
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest; xdist hands files out in this order."""
    ranks = {TESTS / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """A process that a test leaves running fails that test."""
    with failing_leaks():
        yield


@pytest.fixture(autouse=True)
def no_log_handler_left() -> Iterator[None]:
    """A command that ran in this process leaves a log handler whose stream ends with the test."""
    yield
    for handler in logging.root.handlers[:]:
        if type(handler) is logging.StreamHandler:
            logging.root.removeHandler(handler)


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
        raise pytest.fail.Exception(str(refused), pytrace=False) from None
    with running:
        if running.warm_ledger:
            os.environ[WARM] = running.warm_ledger.address
        yield running
    for name in ("database", "rabbitmq"):
        shutil.rmtree(running.home / name)  # of a run that failed the logs are kept


@pytest.fixture
async def settings(servers: Servers) -> Settings:
    """An empty ledger of the test's own, with nothing running on it."""
    return await make_ledger(servers)


@pytest.fixture
async def ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """An empty ledger of the test's own; the test starts what is to work on it."""
    async with running_ledger(settings) as ledger:
        yield ledger


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
