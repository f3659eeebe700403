"""The single writer: it folds the inbox, in queue order, into the ledger.

Many may run; the broker's single active consumer feeds one of them, and the fence in the store
keeps every other from appending. After any error the writer forgets all it knew and starts again
from the ledger.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.batch_report import tell_commit
from ledger.core.fold import Fold
from ledger.eventlog import snapshots
from ledger.eventlog.chain import GENESIS_HASH, ChainCheck, LedgerDamaged
from ledger.eventlog.composer import Composer, order_streams, recall_orders, without_repeats
from ledger.eventlog.encryption import CustomerKeys, named_customers
from ledger.eventlog.reader import EventReader
from ledger.eventlog.records import Head, Submitted
from ledger.eventlog.store import Fenced, Store
from ledger.messaging.consumer import Batch, Inbox, open_inbox
from ledger.messaging.parking import park
from ledger.messaging.rabbitmq import BROKER_ERRORS, Connection, Notifier
from ledger.runtime.database import DATABASE_ERRORS, refuse_unsafe
from ledger.runtime.failpoints import failpoint
from ledger.runtime.metrics import CONNECTED, EPOCH, HEAD_POSITION, PARKED, REPEATS
from ledger.runtime.reconnect import keep_alive
from ledger.runtime.timestamps import now_us

log = logging.getLogger(__name__)

BATCH_EVENTS: Final = 1_000
IDLE_CHECK_S: Final = 1.0
LINGER_S: Final = 0.02
"""A small batch makes the next one wait until so long after its own beginning: a commit costs the
same for one event as for a hundred, and the processor it takes is wanted elsewhere."""
LARGE_BATCH: Final = 250


class Progress(Struct):
    """What one writer did since it was made; the collectors count for the whole process."""

    messages: int = 0
    commits: int = 0
    repeats: int = 0
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
        now_us: Callable[[], int] = now_us,
    ) -> None:
        self._engine = engine
        self._consuming = consuming
        self._publishing = publishing
        self._notifier = notifier
        self._snapshot_every = snapshot_every
        self._now_us = now_us
        self._stopping = asyncio.Event()
        self._snapshot_task: asyncio.Task[None] | None = None
        self.progress = Progress()

    def stop(self) -> None:
        """Finish the batch under way, ack what is committed, and return from `run`."""
        self._stopping.set()

    async def run(self) -> None:
        """Write until stopped; raises what no new start can heal, such as UnsafeDatabase."""
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
            known = await load(connection, self._snapshot_when_due)
            HEAD_POSITION.set(known.head.position)
            async with open_inbox(self._consuming) as inbox:
                CONNECTED.set(1)
                try:
                    await self._write(connection, known, inbox)
                finally:
                    CONNECTED.set(0)
                    EPOCH.set(0)

    async def _write(self, connection: AsyncConnection, known: "Known", inbox: Inbox) -> None:
        """Append batch after batch. The head is taken over at the first delivery, no sooner:

        a writer that stands by must not fence off the one that the broker feeds. It follows the
        ledger instead, so that it can take over at once.
        """
        leading = False
        while not self._stopping.is_set():
            batch = await inbox.batch(BATCH_EVENTS, IDLE_CHECK_S)
            if batch is None:
                await inbox.check()
                await catch_up(connection, known)
                HEAD_POSITION.set(known.head.position)
                continue
            if not leading:
                await take_over(connection, known)
                await failpoint("writer.after-fence")
                EPOCH.set(known.head.epoch)
                leading = True
            began = time.monotonic()
            await self._append(connection, known, batch, inbox)
            if len(batch.events) < LARGE_BATCH:
                await asyncio.sleep(began + LINGER_S - time.monotonic())
        about = {"position": known.head.position, "epoch": known.head.epoch}
        log.info("writer: stopped at position %s", known.head.position, extra=about)

    async def _append(
        self, connection: AsyncConnection, known: "Known", batch: Batch, inbox: Inbox
    ) -> None:
        await park(self._publishing, batch.rejected)
        before = known.head.position
        events = await self._decide_and_commit(connection, known, batch.events)
        await failpoint("writer.after-commit")
        await inbox.ack(batch)
        await failpoint("writer.after-ack")
        if known.head.position > before:
            self._notifier.notify(str(known.head.position).encode())
        self.progress.messages += batch.messages
        self.progress.repeats += len(batch.events) - events
        self.progress.parked += len(batch.rejected)
        REPEATS.inc(len(batch.events) - events)
        PARKED.inc(len(batch.rejected))
        self._snapshot_when_due(known)

    async def _decide_and_commit(
        self, connection: AsyncConnection, known: "Known", submitted: list[Submitted]
    ) -> int:
        """Append what is new of a batch and return how many events that was."""
        if not submitted:
            return 0
        began_ns = time.time_ns()
        store = Store(connection)
        repeats, versions = await store.known(
            [event.event_id.bytes for event in submitted],
            {event.stream_id.bytes for event in submitted},
        )
        events = without_repeats(submitted, repeats)
        if not events:
            await connection.rollback()
            return 0
        histories = await EventReader(connection).streams(order_streams(known.fold, versions))
        recall_orders(known.fold, histories.values())
        keys = CustomerKeys(await store.keys(named_customers(events)))
        composer = self._decide(known, events, versions, keys)
        append_began = time.perf_counter()
        known.head = await store.append(known.head, composer.records, keys)
        commit_s = time.perf_counter() - append_began
        known.recorded_at_us = composer.records[-1].recorded_at_us
        known.fold.orders.clear()
        self.progress.commits += 1
        tell_commit(events, composer, known.head, began_ns, commit_s)
        return len(events)

    def _decide(
        self,
        known: "Known",
        events: list[Submitted],
        versions: dict[bytes, int],
        keys: CustomerKeys,
    ) -> Composer:
        recorded_at_us = max(self._now_us(), known.recorded_at_us)
        head = known.head
        composer = Composer(known.fold, head.position, head.hash, versions, recorded_at_us, keys)
        composer.add(events)
        return composer

    def _snapshot_when_due(self, known: "Known") -> None:
        saving = self._snapshot_task is not None and not self._snapshot_task.done()
        if saving or known.head.position - known.snapshot_position < self._snapshot_every:
            return
        known.snapshot_position = known.head.position
        snapshot = snapshots.take(
            known.fold, known.head.position, known.head.hash, known.recorded_at_us
        )
        self._snapshot_task = asyncio.create_task(self._save(snapshot))

    async def _save(self, snapshot: snapshots.Snapshot) -> None:
        try:
            await snapshots.save(self._engine, snapshot)
            log.info("writer: saved a snapshot at position %s", snapshot.position)
        except DATABASE_ERRORS as error:
            log.warning("writer: no snapshot at position %s: %s", snapshot.position, error)


class Known(Struct):
    """All that the writer knows of the ledger, up to its head."""

    fold: Fold
    head: Head
    recorded_at_us: int
    snapshot_position: int


Folded = Callable[[Known], None]


async def load(connection: AsyncConnection, folded: Folded = lambda known: None) -> Known:
    """The fold of the ledger as it is: the newest snapshot and what came after it.

    `folded` is called after each page: where no snapshot can be used, new ones may be taken then.
    """
    snapshot = await snapshots.newest(connection)
    known = Known(Fold(), Head(0, GENESIS_HASH, 0), 0, 0)
    if snapshot:
        known.fold = Fold(snapshot.customers, snapshot.products)
        known.head = Head(snapshot.position, snapshot.hash, 0)
        known.recorded_at_us = snapshot.recorded_at_us
        known.snapshot_position = snapshot.position
    await catch_up(connection, known, folded)
    return known


async def catch_up(
    connection: AsyncConnection, known: Known, folded: Folded = lambda known: None
) -> None:
    """Fold what the ledger has beyond what is known; raises LedgerDamaged if the chain breaks."""
    chain = ChainCheck(known.head.position, known.head.hash, known.recorded_at_us)
    async for page in EventReader(connection).pages(known.head.position, chain=chain):
        for event in page.effective_events():
            known.fold.apply(event.stream_id, event.payload)
        known.fold.orders.clear()
        known.head = Head(chain.position, chain.hash, known.head.epoch)
        known.recorded_at_us = chain.recorded_at_us
        folded(known)
    await connection.rollback()


async def take_over(connection: AsyncConnection, known: Known) -> None:
    """Fence off every older writer, then learn what it wrote until then.

    Raises LedgerDamaged when the ledger does not end where its head says, and Fenced where the
    reason is that yet another writer took over and appended meanwhile.
    """
    store = Store(connection)
    head = await store.raise_epoch()
    await catch_up(connection, known)
    if (known.head.position, known.head.hash) != (head.position, head.hash):
        if (await store.head()).epoch != head.epoch:
            raise Fenced(f"epoch {head.epoch} ended while it began")
        raise LedgerDamaged(
            known.head.position,
            f"the head names position {head.position}, and the ledger ends here",
        )
    known.head = head
    about = {"position": head.position, "epoch": head.epoch}
    log.info("writer: leads from position %s in epoch %s", *about.values(), extra=about)
