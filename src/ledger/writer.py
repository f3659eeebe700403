"""The single writer: it folds the inbox, in queue order, into the ledger.

Many may run; the broker's single active consumer feeds one of them, and the fence in the store
keeps every other from appending. After any error the writer forgets all it knew and starts again
from the ledger.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
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
    COMMIT_EVENTS,
    COMMIT_S,
    CONNECTED,
    DECIDED,
    DUPLICATES,
    EPOCH,
    FOREIGN_LEDGER,
    HEAD_POSITION,
    PARKED,
)
from ledger.runtime.reconnect import keep_alive
from ledger.runtime.timestamps import now_us

log = logging.getLogger(__name__)

BATCH_EVENTS: Final = 1_000
IDLE_CHECK_S: Final = 1.0
# After a small batch the next one begins so long after it at the earliest: a commit costs the same
# for one event as for a hundred, and the processor that it takes is wanted elsewhere.
LINGER_S: Final = 0.02
LARGE_BATCH: Final = 250


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
        now_us: Callable[[], int] = now_us,
    ) -> None:
        self._engine = engine
        self._consuming = consuming
        self._publishing = publishing
        self._notifier = notifier
        self._snapshot_every = snapshot_every
        self._lost_after = lost_after
        self._now_us = now_us
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
        errors = (*BROKER_ERRORS, *DATABASE_ERRORS, Fenced)
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
            async with open_inbox(self._consuming) as inbox:
                CONNECTED.set(1)
                try:
                    await self._append_batches(connection, state, inbox, ledger_id)
                finally:
                    CONNECTED.set(0)
                    EPOCH.set(0)

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
            new_events = await append_new(connection, state, batch.events, self._now_us())
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
