"""The single writer: it folds the inbox, in queue order, into the ledger.

Many may run; the broker's single active consumer feeds one of them, and the fence in the store
keeps every other from appending. After any error the writer forgets all it knew and starts again
from the ledger.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final
from uuid import UUID

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.eventlog import snapshots
from ledger.eventlog.decisions import compose, drop_duplicates, recall_orders
from ledger.eventlog.encryption import NEEDS_KEY, CustomerKeys, new_key
from ledger.eventlog.identity import ForeignLedger, HeadCheck, SeenHead, encode_head, read_head
from ledger.eventlog.reader import EventReader
from ledger.eventlog.records import LedgerDamaged, Record, Submitted
from ledger.eventlog.snapshots import LedgerState, catch_up, load
from ledger.eventlog.store import Fenced, Store
from ledger.messaging.consumer import Inbox, open_inbox
from ledger.messaging.parking import park
from ledger.messaging.rabbitmq import BROKER_ERRORS, Connection, Notifier
from ledger.runtime import tracing
from ledger.runtime.database import DATABASE_ERRORS, refuse_unsafe
from ledger.runtime.failpoints import failpoint
from ledger.runtime.metrics import (
    CLOCK_AHEAD_S,
    CLOCK_WRONG,
    COMMIT_EVENTS,
    COMMIT_S,
    CONNECTED,
    DECIDED,
    DUPLICATES,
    EPOCH,
    FOREIGN_LEDGER,
    HEAD_POSITION,
    PARKED,
    RECORDED_AHEAD_S,
)
from ledger.runtime.reconnect import keep_alive
from ledger.runtime.timestamps import SECOND_US, format_us, now_us

log = logging.getLogger(__name__)

BATCH_EVENTS: Final = 1_000
IDLE_CHECK_S: Final = 1.0
# After a small batch the next one begins so long after it at the earliest: a commit costs the same
# for one event as for a hundred, and the processor that it takes is wanted elsewhere.
LINGER_S: Final = 0.02
LARGE_BATCH: Final = 250
# The clocks are compared so often, and at once where the writer's was set in between.
CLOCK_CHECK_S: Final = 1.0
# While they differ too much the writer stays away from the inbox, and looks again.
CLOCK_RETRY_S: Final = 5.0
_CLOCK_REMEDY: Final = (
    "Nothing is recorded until then, and accepted orders wait in the inbox. See"
    " docs/how-to/clocks.md"
)


class ClockWrong(Exception):
    """The writer's clock differs too much from the database's, or from the newest record."""


class Clock:
    """The time to record at, compared with the database's clock and with the newest record.

    What is recorded far in the future can't be taken back: recorded times never fall, so all that
    comes after it would have the same time until the future has come.
    """

    def __init__(self, limit_s: float, now_us: Callable[[], int] = now_us) -> None:
        self._limit_us = int(limit_s * SECOND_US)
        self._now_us = now_us
        self._compared: tuple[int, float] | None = None
        self._ahead_us = 0

    async def read(self, connection: AsyncConnection, recorded_at_us: int) -> int:
        """The time now, in µs since 1970; raises ClockWrong. `recorded_at_us`: the newest record's.

        The database is asked on this connection, once in CLOCK_CHECK_S. A limit of 0 compares
        nothing.
        """
        now, monotonic_s = self._now_us(), time.monotonic()
        if not self._limit_us:
            return now
        if self._is_due(now, monotonic_s):
            # Not UNIX_TIMESTAMP(): in the hour that a summer time ends with it is ambiguous.
            result = await connection.exec_driver_sql(
                "SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"
            )
            database_us = int(result.scalar_one())
            # Any moment until the answer may have been that of the database.
            waited_us = int((time.monotonic() - monotonic_s) * SECOND_US)
            self._ahead_us = max(now - database_us, 0) or min(now + waited_us - database_us, 0)
            self._compared = now, monotonic_s
            CLOCK_AHEAD_S.set(self._ahead_us / SECOND_US)
        record_ahead_us = recorded_at_us - now
        RECORDED_AHEAD_S.set(max(0, record_ahead_us) / SECOND_US)
        limit = f"more than the {self._limit_us / SECOND_US:g} s of LEDGER_CLOCK_LIMIT_S"
        if abs(self._ahead_us) > self._limit_us:
            self._compared = None
            side = "ahead of" if self._ahead_us > 0 else "behind"
            by = timedelta(seconds=abs(self._ahead_us) // SECOND_US)
            raise ClockWrong(
                f"this machine's clock is {by} {side} the database's, {limit}: set the one that is"
                f" wrong. {_CLOCK_REMEDY}"
            )
        if record_ahead_us > self._limit_us:
            by = timedelta(seconds=record_ahead_us // SECOND_US)
            recorded_at = format_us(recorded_at_us)
            raise ClockWrong(
                f"the newest event was recorded at {recorded_at}, {by} ahead of this machine's"
                f" clock, {limit}: set the clock, if that is wrong, or decide about the ledger, if"
                f" the record is. {_CLOCK_REMEDY}"
            )
        return now

    def _is_due(self, now: int, monotonic_s: float) -> bool:
        if self._compared is None:
            return True
        then, then_s = self._compared
        passed_s = monotonic_s - then_s
        was_set = abs(now - then - passed_s * SECOND_US) > SECOND_US
        return was_set or passed_s >= CLOCK_CHECK_S


async def take_over(connection: AsyncConnection, state: LedgerState) -> None:
    """Fence off every older writer, then read what it wrote until then.

    Raises LedgerDamaged when the ledger does not end where its head says, and Fenced where the
    reason is that yet another writer took over and appended meanwhile.
    """
    head = await Store(connection).raise_epoch()
    await catch_up(connection, state)
    if (state.head.position, state.head.hash) != (head.position, head.hash):
        if (await EventReader(connection).head()).epoch != head.epoch:
            raise Fenced(f"epoch {head.epoch} ended while it began")
        raise LedgerDamaged(
            state.head.position,
            f"the head names position {head.position}, and the ledger ends here",
        )
    state.head = head
    log.info(
        "writer: leads from position %s in epoch %s",
        head.position,
        head.epoch,
        extra={"position": head.position, "epoch": head.epoch},
    )


async def append_new(
    connection: AsyncConnection,
    state: LedgerState,
    submitted: Sequence[Submitted],
    now_us: int,
    make_key: Callable[[], bytes] = new_key,
) -> int:
    """Decide and append those of the events that the ledger does not have; return their number.

    They are recorded at `now_us`, but never before the event that precedes them. Raises Fenced.
    """
    if not submitted:
        return 0
    began_ns = time.time_ns()
    reader, store = EventReader(connection), Store(connection)
    duplicates, versions = await store.duplicates_and_versions(
        [event.event_id.bytes for event in submitted],
        {event.stream_id.bytes for event in submitted},
    )
    events = drop_duplicates(submitted, duplicates)
    if not events:
        await connection.rollback()
        return 0
    fold = state.fold
    # A stream that is no customer's or product's may be an order's, and its history is needed: else
    # its id would count as new once the order was forgotten.
    unknown = [
        stream_id
        for stream_id in versions
        if (key := UUID(bytes=stream_id)) not in fold.customers and key not in fold.products
    ]
    recall_orders(fold, (await reader.streams(unknown)).values())
    customers = {event.stream_id.bytes for event in events if isinstance(event.payload, NEEDS_KEY)}
    keys = CustomerKeys(await reader.encryption_keys(customers), make_key)
    recorded_at_us = max(now_us, state.recorded_at_us)
    composed = compose(events, fold, state.head, versions, recorded_at_us, keys)
    append_began = time.perf_counter()
    state.head = await store.append(state.head, composed.records, keys)
    COMMIT_S.observe(time.perf_counter() - append_began)
    state.recorded_at_us = recorded_at_us
    # Orders are looked up again when a batch needs them: so the memory has a bound.
    fold.orders.clear()
    COMMIT_EVENTS.observe(len(composed.records))
    HEAD_POSITION.set(state.head.position)
    for labels, count in composed.outcomes.items():
        DECIDED.labels(*labels).inc(count)
    if tracing.enabled() or log.isEnabledFor(logging.DEBUG):
        _trace(events, composed.records, state.head.epoch, began_ns)
    return len(events)


def _trace(
    events: Sequence[Submitted], records: Sequence[Record], epoch: int, began_ns: int
) -> None:
    """Log and trace the events of a batch that began at `began_ns` and is committed."""
    causes = (record for record in records if not record.cause_position)
    for event, record in zip(events, causes, strict=True):
        event_id = str(event.event_id)
        log.debug(
            "writer: recorded",
            extra={"event_id": event_id, "position": record.position, "epoch": epoch},
        )
        if event.traceparent:
            attributes: tracing.Attributes = {
                "ledger.event_id": event_id,
                "ledger.position": record.position,
            }
            tracing.record_span("decide and commit", event.traceparent, attributes, began_ns)


class WriterCounts(Struct):
    """What one writer did since it was made; the collectors count for the whole process."""

    messages: int = 0
    commits: int = 0
    duplicates: int = 0
    parked: int = 0


class Writer:
    """The writer of one process. `run` works until `stop` was called."""

    def __init__(
        self,
        engine: AsyncEngine,
        consuming: Connection,
        publishing: Connection,
        notifier: Notifier,
        *,
        snapshot_every: int,
        lost_after: int | None = None,
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._consuming = consuming
        self._publishing = publishing
        self._notifier = notifier
        self._snapshot_every = snapshot_every
        self._lost_after = lost_after
        self._clock = clock
        self._stopping = asyncio.Event()
        self._snapshot_task: asyncio.Task[None] | None = None
        self.progress = WriterCounts()

    def stop(self) -> None:
        """Finish the batch under way, ack what is committed, and return from `run`."""
        self._stopping.set()

    async def run(self) -> None:
        """Write until stopped; raises what no new start can heal.

        That is UnsafeDatabase, LedgerDamaged, and ForeignLedger where the inbox has orders that
        were accepted by an API of another ledger, or of one that has more than this one.
        """
        errors = (*BROKER_ERRORS, *DATABASE_ERRORS, Fenced, ClockWrong)
        try:
            await keep_alive("writer", self._session, errors)
        finally:
            if self._snapshot_task:
                self._snapshot_task.cancel()
                await asyncio.gather(self._snapshot_task, return_exceptions=True)

    async def _session(self) -> None:
        async with self._engine.connect() as connection:
            await refuse_unsafe(connection)
            state = await load(connection, self._snapshot_when_due)
            ledger_id = (await read_head(connection)).ledger_id
            await connection.rollback()
            HEAD_POSITION.set(state.head.position)
            await self._until_clock_is_right(connection, state)
            if self._stopping.is_set():
                return
            async with open_inbox(self._consuming) as inbox:
                CONNECTED.set(1)
                try:
                    await self._append_batches(connection, state, inbox, ledger_id)
                finally:
                    CONNECTED.set(0)
                    EPOCH.set(0)

    async def _until_clock_is_right(self, connection: AsyncConnection, state: LedgerState) -> None:
        """Wait, away from the inbox, so that the broker feeds a writer whose clock is right."""
        while not self._stopping.is_set():
            try:
                await self._clock.read(connection, state.recorded_at_us)
            except ClockWrong as error:
                CLOCK_WRONG.set(1)
                log.error("writer: %s", error)  # noqa: TRY400
            else:
                CLOCK_WRONG.set(0)
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOCK_RETRY_S):
                    await self._stopping.wait()
            await catch_up(connection, state)

    async def _append_batches(
        self, connection: AsyncConnection, state: LedgerState, inbox: Inbox, ledger_id: UUID
    ) -> None:
        """Append batch after batch, until stopped.

        The head is taken over at the first delivery, no sooner: a writer that stands by must not
        fence off the one that the broker feeds. It follows the ledger instead, so that it can take
        over at once.
        """
        leading = False
        check = HeadCheck(ledger_id, self._lost_after)

        def notify() -> None:
            head = state.head
            self._notifier.notify(encode_head(SeenHead(ledger_id, head.position, head.hash)))

        while not self._stopping.is_set():
            batch = await inbox.batch(BATCH_EVENTS, IDLE_CHECK_S)
            if batch is None:
                await inbox.ensure_consumed()
                await self._clock.read(connection, state.recorded_at_us)
                await catch_up(connection, state)
                HEAD_POSITION.set(state.head.position)
                if leading:
                    # Who reads the inbox says so: others notice if it is not of their ledger.
                    notify()
                continue
            try:
                await check.refuse_foreign(connection, batch.seen)
            except ForeignLedger as error:
                FOREIGN_LEDGER.set(1)
                log.critical("writer: %s", error)
                raise
            if not batch.events and not batch.rejected:
                # An API asked whether there is an inbox.
                await inbox.ack(batch)
                self.progress.messages += batch.messages
                continue
            if not leading:
                await take_over(connection, state)
                await failpoint("writer.after-fence")
                EPOCH.set(state.head.epoch)
                leading = True
            began = time.monotonic()
            await park(self._publishing, batch.rejected)
            at_us = await self._clock.read(connection, state.recorded_at_us)
            new_events = await append_new(connection, state, batch.events, at_us)
            await failpoint("writer.after-commit")
            await inbox.ack(batch)
            await failpoint("writer.after-ack")
            if new_events:
                notify()
                self.progress.commits += 1
            self.progress.messages += batch.messages
            self.progress.duplicates += len(batch.events) - new_events
            self.progress.parked += len(batch.rejected)
            DUPLICATES.inc(len(batch.events) - new_events)
            PARKED.inc(len(batch.rejected))
            self._snapshot_when_due(state)
            if len(batch.events) < LARGE_BATCH:
                await asyncio.sleep(began + LINGER_S - time.monotonic())
        log.info(
            "writer: stopped at position %s",
            state.head.position,
            extra={"position": state.head.position, "epoch": state.head.epoch},
        )

    def _snapshot_when_due(self, state: LedgerState) -> None:
        saving = self._snapshot_task is not None and not self._snapshot_task.done()
        if not saving and state.head.position - state.snapshot_position >= self._snapshot_every:
            self._snapshot_task = asyncio.create_task(self._save(state.take_snapshot()))

    async def _save(self, snapshot: LedgerState) -> None:
        try:
            await snapshots.save(self._engine, snapshot)
            log.info("writer: saved a snapshot at position %s", snapshot.head.position)
        except DATABASE_ERRORS as error:
            log.warning("writer: no snapshot at position %s: %s", snapshot.head.position, error)
