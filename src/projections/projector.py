"""The projector: reads the ledger in order and keeps every view, each event exactly once."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from msgspec import Struct, structs
from prometheus_client import Gauge, Histogram
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.core.events import Recorded
from ledger.eventlog.codec import origin_of
from ledger.eventlog.identity import HeadWatch, decode_head
from ledger.eventlog.reader import EventReader
from ledger.eventlog.records import Head, LedgerDamaged, Record
from ledger.messaging.rabbitmq import Connection, Notifier, subscribe, until_closed
from ledger.messaging.topology import RECORDED_EXCHANGE
from ledger.runtime import tracing
from ledger.runtime.cache import Prefetch
from ledger.runtime.database import DATABASE_ERRORS
from ledger.runtime.failpoints import failpoint
from ledger.runtime.metrics import FOREIGN_LEDGER, LATENCY_S, SIZES
from ledger.runtime.reconnect import keep_alive
from ledger.runtime.timestamps import SECOND_US, now_us
from projections.announcements import Announcement, Outcome, encode_announcement, outcome_of
from projections.tables import fetch_rows, lock_checkpoints, move_checkpoints, write_rows
from projections.views.projection import Projection

log = logging.getLogger(__name__)

POLL_S: Final = 0.5
# A small batch makes the next one wait until so long after its own beginning, as in the writer:
# a commit costs the same for one event as for a hundred.
LINGER_S: Final = 0.02
LARGE_BATCH: Final = 500
# A row that many events of a page change is written once; and a page takes half a second at most.
PAGE: Final = 10_000
# After a page that is more than a quarter full the projector is behind, and reads ahead.
READ_AHEAD_DIVISOR: Final = 4

BATCH_EVENTS: Final = Histogram(
    "ledger_projector_batch_events", "Events in a projected batch", buckets=SIZES, registry=None
)
BATCH_S: Final = Histogram(
    "ledger_projector_batch_seconds",
    "From reading a batch to the answer to its COMMIT",
    buckets=LATENCY_S,
    registry=None,
)
POSITION: Final = Gauge("ledger_view_position", "The checkpoint of a view", ["view"], registry=None)
LAG_POSITIONS: Final = Gauge(
    "ledger_view_lag_positions", "Positions from a view to the head", ["view"], registry=None
)
LAG_S: Final = Gauge(
    "ledger_view_lag_seconds",
    "How long ago the oldest event was recorded that a view does not show; 0: it shows all",
    ["view"],
    registry=None,
)
LAG_KNOWN: Final = Gauge(
    "ledger_view_lag_known", "Whether the database told the positions just now", registry=None
)
PROJECTOR: Final = (
    BATCH_EVENTS,
    BATCH_S,
    POSITION,
    LAG_POSITIONS,
    LAG_S,
    LAG_KNOWN,
    FOREIGN_LEDGER,
)


class ProjectedBatch(Struct, frozen=True):
    """A page of the ledger, decoded: its events that took effect, and the outcomes."""

    records: Sequence[Record]
    events: list[Recorded]
    outcomes: list[Outcome]


async def read_batch(reader: EventReader, after: int, limit: int) -> ProjectedBatch:
    """The batch after a position, empty at the end; raises LedgerDamaged at a gap."""
    page = await reader.page(after, limit, with_keys=True)
    decisions = page.decisions()
    return ProjectedBatch(
        page.records,
        page.effective_events(decisions),
        [outcome_of(decision) for decision in decisions],
    )


class ReadAhead:
    """Reads and decodes the next batch on a second connection while the last one is written.

    That takes no lock: the ledger is only added to, so what was read stays as it is.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._batches: Prefetch[ProjectedBatch] | None = None

    def start(self, after: int) -> None:
        """Begin to read after a position, unless batches are read already."""
        if self._batches is None:
            self._batches = Prefetch(self._read(after))

    async def next(self, after: int) -> ProjectedBatch | None:
        """The batch after a position, if it was read ahead; raises LedgerDamaged at a gap."""
        if self._batches is None:
            return None
        batch = await anext(self._batches, None)
        # It may have come to the end too early, or another projector has gone on meanwhile.
        if batch is None or batch.records[0].position != after + 1:
            await self.aclose()
            return None
        return batch

    async def aclose(self) -> None:
        """Discard the batch that was read ahead, once it has come."""
        batches, self._batches = self._batches, None
        if batches:
            await batches.aclose()

    async def _read(self, after: int) -> AsyncGenerator[ProjectedBatch, None]:
        while True:
            # A connection for each batch: one that goes on would see the ledger as of its begin.
            async with self._engine.connect() as connection:
                batch = await read_batch(EventReader(connection), after, PAGE)
            if not batch.records:
                return
            yield batch
            after = batch.records[-1].position


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
        self.watch = HeadWatch(engine)
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
                announcement = await project_next_batch(connection, self._projections, ahead)
                moved = announcement.position - announcement.after
                if not moved:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(POLL_S):
                            await self._woken.wait()
                if moved or not self._woken.is_set():
                    self._announcer.notify(encode_announcement(self._with_ledger(announcement)))
                if 0 < moved < LARGE_BATCH:
                    await asyncio.sleep(began + LINGER_S - time.monotonic())

    def _with_ledger(self, announcement: Announcement) -> Announcement:
        """The announcement with what is known of the ledger, and of others beside it."""
        head = self.watch.head
        ledger_id = head.ledger_id if head else None
        return structs.replace(announcement, ledger_id=ledger_id, foreign=self.watch.foreign)


async def project_next_batch(
    connection: AsyncConnection,
    projections: Sequence[Projection[Any]],
    ahead: ReadAhead | None = None,
) -> Announcement:
    """Apply the next batch to the views, rows and checkpoints in one transaction.

    Views at the same checkpoint advance together; one that lags catches up with the others first.
    While there is much to do, `ahead` reads the next batch meanwhile. With nothing left to project
    the announcement says where the views are. Raises LedgerDamaged at a gap, and where the ledger
    ends before a checkpoint or before its head.
    """
    checkpoints = await lock_checkpoints(connection, projections)
    after, furthest = min(checkpoints.values()), max(checkpoints.values())
    reader = EventReader(connection)
    began_ns, began = time.time_ns(), time.perf_counter()
    # A batch doesn't go beyond the next checkpoint, so that views which meet go on together.
    limit = min((end - after for end in checkpoints.values() if end > after), default=PAGE)
    batch = await ahead.next(after) if ahead else None
    if batch is None or len(batch.records) > limit:
        batch = await read_batch(reader, after, min(limit, PAGE))
    if not batch.records:
        head = await _refuse_lost_end(reader, after, furthest)
        await connection.rollback()
        return Announcement(after, after, hash=head.hash if head.position == after else b"")
    behind = [view for view in projections if checkpoints[view.name] == after]
    last = batch.records[-1].position
    if ahead and len(batch.records) > PAGE // READ_AHEAD_DIVISOR:
        ahead.start(last)
    # The last views have the most rows; they go first, so that the database is busy with them while
    # the others' rows are made.
    rows = [
        (view, await fetch_rows(connection, view, view.keys_needed(batch.events)))
        for view in reversed(behind)
    ]
    await write_rows(
        connection, ((view, view.changed_rows(at_hand, batch.events)) for view, at_hand in rows)
    )
    await move_checkpoints(connection, behind, last)
    await failpoint("projector.before-commit")
    await connection.commit()
    await failpoint("projector.after-commit")
    BATCH_S.observe(time.perf_counter() - began)
    BATCH_EVENTS.observe(len(batch.records))
    log.debug("projector: shown", extra={"first_position": after + 1, "position": last})
    if tracing.enabled():
        for record in batch.records:
            if traceparent := origin_of(record).traceparent:
                attributes = {"ledger.position": record.position}
                tracing.record_span("project", traceparent, attributes, began_ns)
    keys = [key for view in behind for key in view.announced_keys(batch.events)]
    return Announcement(after, last, batch.outcomes, keys, hash=batch.records[-1].hash)


async def _refuse_lost_end(reader: EventReader, end: int, furthest: int) -> Head:
    """The head; raises LedgerDamaged unless the ledger, found to end at `end`, ends there."""
    head = await reader.head()
    if head.position < furthest:
        raise LedgerDamaged(
            furthest, f"the views are there, ahead of the ledger at {head.position}"
        )
    # What was committed since is there by now; what is not there is lost.
    if head.position > end and not (await reader.page(end, 2)).records:
        raise LedgerDamaged(end + 1, f"the head names position {head.position}, and this is gone")
    return head


async def listen(connection: Connection, projector: Projector) -> None:
    """Wake the projector at each notification of the writer, for as long as the process runs.

    The heads in them are compared with the ledger, as far as the projector's watch runs.
    """

    async def on_message(message: AbstractIncomingMessage) -> None:
        projector.watch.hear(decode_head(message.body))
        projector.wake()

    async def wake(channel: AbstractChannel) -> None:
        name = f"ledger.projector.{os.getpid()}"
        await subscribe(channel, name, RECORDED_EXCHANGE, on_message, max_waiting=100)
        await until_closed(channel)

    await connection.keep_channel("notifications of the writer", wake)


async def measure_lag(engine: AsyncEngine) -> None:
    """Ask the database where head and views are. While it's away, the views have no samples."""
    try:
        async with engine.connect() as connection:
            found = await connection.exec_driver_sql(
                "SELECT c.name, c.position, h.position FROM checkpoints c"
                " JOIN ledger_head h ON h.id = 1"
            )
            positions: Any = found.all()
            oldest = {position + 1 for _, position, _ in positions}
            not_shown = await EventReader(connection).records_at(oldest)
    except DATABASE_ERRORS:
        for gauge in (POSITION, LAG_POSITIONS, LAG_S):
            gauge.clear()
        LAG_KNOWN.set(0)
        return
    LAG_KNOWN.set(1)
    now = now_us()
    for view, position, head in positions:
        record = not_shown.get(position + 1)
        # One that was recorded after the head was read is not behind it yet.
        behind_us = now - record.recorded_at_us if record and position < head else 0
        POSITION.labels(view).set(position)
        LAG_POSITIONS.labels(view).set(head - position)
        LAG_S.labels(view).set(max(behind_us, 0) / SECOND_US)
