"""The projector: reads the ledger in order and keeps every view, each event exactly once."""

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, Final

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.core.events import Recorded
from ledger.eventlog.codec import origin_of
from ledger.eventlog.records import Record
from ledger.eventlog.store import LedgerDamaged, Store
from ledger.messaging.rabbitmq import Connection, Notifier, subscribe, until_closed
from ledger.messaging.topology import RECORDED_EXCHANGE
from ledger.runtime import tracing
from ledger.runtime.database import DATABASE_ERRORS
from ledger.runtime.failpoints import failpoint
from ledger.runtime.reconnect import keep_alive
from projections import metrics
from projections.announcements import Announcement, encode
from projections.pages import Page, ReadAhead, read_page
from projections.tables import fetch_rows, lock_checkpoints, move_checkpoints, write_rows
from projections.views.projection import Projection

log = logging.getLogger(__name__)

POLL_S: Final = 0.5
LINGER_S: Final = 0.02
"""A small batch makes the next one wait until so long after its own beginning, as in the writer."""
LARGE_BATCH: Final = 500
PAGE: Final = 10_000
"""A row that many events of a page change is written once; and it takes half a second at most."""
BEHIND: Final = 4
"""A page that is this part full is hardly the last one."""


class Projector:
    """The projector of one process. `run` works until `stop` was called.

    Two may run: the lock on the checkpoints lets them take turns, and no event counts twice.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        projections: Sequence[Projection[Any]],
        announcer: Notifier,
    ) -> None:
        self._engine = engine
        self._projections = projections
        self._announcer = announcer
        self._woken = asyncio.Event()
        self._stopping = False

    def stop(self) -> None:
        """Finish the batch under way and return from `run`."""
        self._stopping = True
        self._woken.set()

    def wake(self) -> None:
        """Look at the ledger now rather than at the next poll."""
        self._woken.set()

    async def run(self) -> None:
        """Project until stopped; raises LedgerDamaged and ViewOutdated, which no start can heal."""
        await keep_alive("projector", self._session, DATABASE_ERRORS)

    async def _session(self) -> None:
        ahead = ReadAhead(self._engine)
        async with self._engine.connect() as connection, aclosing(ahead):
            while not self._stopping:
                began = time.monotonic()
                self._woken.clear()
                announcement = await advance(connection, self._projections, ahead)
                moved = announcement.position - announcement.after
                if moved or not await self._woken_in_time():
                    self._announcer.notify(encode(announcement))
                if 0 < moved < LARGE_BATCH:
                    await asyncio.sleep(began + LINGER_S - time.monotonic())

    async def _woken_in_time(self) -> bool:
        try:
            async with asyncio.timeout(POLL_S):
                await self._woken.wait()
        except TimeoutError:
            return False
        return True


async def advance(
    connection: AsyncConnection,
    projections: Sequence[Projection[Any]],
    ahead: ReadAhead | None = None,
) -> Announcement:
    """Bring the views one batch further, rows and checkpoints in one transaction.

    Views at the same checkpoint advance together; one that lags catches up with the others first.
    While there is much to do, `ahead` reads the next page meanwhile. With nothing left to project
    it says where the views are. Raises LedgerDamaged at a gap, and where the ledger ends before a
    checkpoint or before its head.
    """
    checkpoints = await lock_checkpoints(connection, projections)
    after = min(checkpoints.values())
    store = Store(connection)
    began_ns, began = time.time_ns(), time.perf_counter()
    page = await _page(store, checkpoints, ahead)
    if not page.records:
        await _refuse_other_end(store, after, max(checkpoints.values()))
        await connection.rollback()
        return Announcement(after, after)
    behind = [view for view in projections if checkpoints[view.name] == after]
    last = page.records[-1].position
    if ahead and len(page.records) > PAGE // BEHIND:
        ahead.begin(last, PAGE)
    await _project(connection, behind, page.taking_effect)
    await move_checkpoints(connection, behind, last)
    await failpoint("projector.before-commit")
    await connection.commit()
    await failpoint("projector.after-commit")
    metrics.BATCH_S.observe(time.perf_counter() - began)
    metrics.BATCH_EVENTS.observe(len(page.records))
    _tell(page.records, began_ns)
    keys = [key for view in behind for key in view.announced_keys(page.taking_effect)]
    return Announcement(after, last, page.outcomes, keys)


async def _page(store: Store, checkpoints: dict[str, int], ahead: ReadAhead | None) -> Page:
    """The page after the checkpoint that is furthest behind; it doesn't go beyond another."""
    after = min(checkpoints.values())
    limit = min((end - after for end in checkpoints.values() if end > after), default=PAGE)
    page = await ahead.take(after) if ahead else None
    if page and 0 < len(page.records) <= limit:  # an empty one may have come too early
        return page
    return await read_page(store, after, min(limit, PAGE))


def _tell(records: Sequence[Record], began_ns: int) -> None:
    """Log lines and spans of a batch that the views show now."""
    first, last = records[0].position, records[-1].position
    log.debug("projector: shown", extra={"first_position": first, "position": last})
    if tracing.enabled():
        for record in records:
            if traceparent := origin_of(record).traceparent:
                about = {"ledger.position": record.position}
                tracing.record_span("project", traceparent, about, began_ns)


async def _refuse_other_end(store: Store, end: int, furthest: int) -> None:
    """Raises LedgerDamaged unless the ledger, found to end at `end`, ends where its head says."""
    head = await store.head()
    if head.position < furthest:
        raise LedgerDamaged(
            furthest, f"the views are there, ahead of the ledger at {head.position}"
        )
    # What was committed since is there by now; what is not there is lost.
    if head.position > end and not await store.read(end, 2):
        raise LedgerDamaged(end + 1, f"the head names position {head.position}, and this is gone")


async def _project(
    connection: AsyncConnection, projections: Sequence[Projection[Any]], events: Sequence[Recorded]
) -> None:
    """Write the rows that events, which took effect, change.

    The last views have the most rows; they go first, so that the database is busy with them while
    the others' rows are made.
    """
    at_hand = [
        (view, await fetch_rows(connection, view, view.needs(events)))
        for view in reversed(projections)
    ]
    changed = ((view, view.changed(rows, events)) for view, rows in at_hand)
    await write_rows(connection, changed)


async def listen(connection: Connection, projector: Projector) -> None:
    """Wake the projector at each notification of the writer, for as long as the process runs."""

    async def on_message(_: AbstractIncomingMessage) -> None:
        projector.wake()

    async def wake(channel: AbstractChannel) -> None:
        name = f"ledger.projector.{os.getpid()}"
        await subscribe(channel, name, RECORDED_EXCHANGE, on_message, max_waiting=1)
        await until_closed(channel)

    await connection.keep_channel("notifications of the writer", wake)
