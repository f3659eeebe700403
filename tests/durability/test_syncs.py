"""A confirm and a COMMIT are on disk when they are told: the kernel is the witness."""

import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ledger.core.decider import Fold
from ledger.eventlog.decisions import compose
from ledger.eventlog.encryption import CustomerKeys
from ledger.eventlog.reader import EventReader
from ledger.eventlog.records import Head, Record, Submitted
from ledger.eventlog.store import Store
from tests.ledger.pipeline import Ledger
from tests.private_servers import Servers, start_servers
from tests.submissions import orders

from .syncs import BROKER, DATABASES, Sync, Trace, watched

TIMES = 5
DELAY_S = 0.3
WAL = ".wal"
"""The log of the broker's quorum queues."""

REDO = ("ib_logfile", "#ib_redo")
"""The database's log, as MariaDB and MySQL call it."""

Time = tuple[float, float]


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """Servers of its own, on a disk: MariaDB syncs no log that it finds to be in memory."""
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp") as home,
        start_servers(Path(home), with_management=True) as running,
    ):
        yield running


async def timed(work: Callable[[], Awaitable[None]]) -> Time:
    """When something began and when it was done, on the clock that the kernel's calls tell."""
    began_s = time.time()
    await work()
    return began_s, time.time()


def synced(trace: Trace, during: Time, is_log: Callable[[Sync], bool]) -> bool:
    """Whether the log was on disk before the end."""
    return any(map(is_log, trace.between(*during)))


def is_wal(sync: Sync) -> bool:
    return sync.path.suffix == WAL


def is_redo(sync: Sync) -> bool:
    return sync.path.name.startswith(REDO)


async def test_each_confirm_is_told_after_the_broker_had_its_log_on_disk(ledger: Ledger) -> None:
    async with ledger.publishing() as publisher:
        with watched(ledger, (BROKER,)) as trace:
            confirms = [await timed(lambda: publisher.submit(orders(1))) for _ in range(TIMES)]
    assert all(synced(trace, confirm, is_wal) for confirm in confirms)


async def test_a_confirm_waits_for_a_slow_disk(ledger: Ledger) -> None:
    """Not only was the log synced meanwhile: the confirm came after it because it waited."""
    async with ledger.publishing() as publisher:
        with watched(ledger, (BROKER,), DELAY_S):
            began_s, ended_s = await timed(lambda: publisher.submit(orders(1)))
    assert ended_s - began_s >= DELAY_S


async def test_each_commit_is_told_after_the_database_had_its_log_on_disk(ledger: Ledger) -> None:
    with watched(ledger, DATABASES) as trace:
        commits = [await timed_append(ledger) for _ in range(TIMES)]
    assert all(synced(trace, commit, is_redo) for commit in commits)


async def test_a_commit_waits_for_a_slow_disk(ledger: Ledger) -> None:
    with watched(ledger, DATABASES, DELAY_S):
        began_s, ended_s = await timed_append(ledger)
    assert ended_s - began_s >= DELAY_S


async def timed_append(ledger: Ledger) -> Time:
    """An append as the writer makes it; only its COMMIT could have something synced."""
    async with ledger.connection() as connection:
        store = Store(connection)
        head = await EventReader(connection).head()
        records = composed(head, orders(1))

        async def append() -> None:
            await store.append(head, records)

        return await timed(append)


def composed(head: Head, events: Sequence[Submitted]) -> list[Record]:
    """The records of events that come next."""
    versions: dict[bytes, int] = {}
    return compose(events, Fold(), head, versions, 1, CustomerKeys({})).records
