"""Imports the events of an export into an empty ledger, as they are."""

import asyncio
import struct
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Final

from msgspec import DecodeError, Struct, structs
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from cli import console
from cli.connections import engine
from cli.export import BadExport, ImportRefused
from cli.export.directory import read_manifest, verified_path
from cli.export.formats import RecordPages, functions_of, read_keys
from cli.export.tables import EVENTS
from cli.settings import Settings
from ledger.core.decider import InvariantViolated
from ledger.eventlog import snapshots
from ledger.eventlog.codec import Unreadable
from ledger.eventlog.decisions import last_decision_index
from ledger.eventlog.reader import EventPage, EventReader
from ledger.eventlog.records import ChainCheck, Head, LedgerDamaged, Record, VerificationFailed
from ledger.eventlog.snapshots import LedgerState, load
from ledger.eventlog.store import Fenced, Store
from ledger.runtime.cache import Prefetch
from ledger.runtime.database import DATABASE_ERRORS, refuse_unsafe

# The records of one transaction, and the state after them where a snapshot is due.
ImportBatch = tuple[list[Record], LedgerState | None]

# The server may take this long to end the session of an import that was killed.
SESSION_END_S: Final = 3.0


class EventsExport:
    """An export of events whose files have the SHA-256 sums of its manifest.

    Raises BadExport and NoParquet.
    """

    def __init__(self, directory: Path) -> None:
        self.manifest = read_manifest(directory)
        _, self._read = functions_of(self.manifest.format)
        events = next((file for file in self.manifest.tables if file.name == EVENTS.name), None)
        if events is None:
            raise BadExport(
                f"{directory} has no events: `ledger export events` makes such an export"
            )
        self._path = verified_path(directory, events)
        keys = self.manifest.keys
        self.keys_path = verified_path(directory, keys) if keys else None

    def batches(self) -> RecordPages:
        """All records in order and checked, in batches that end with whole decisions.

        Raises BadExport, which names the first position that is not as it must be.
        """
        chain = ChainCheck()
        # The last batch is whole only if the file ends where the manifest says.
        held_back: list[Record] = []
        try:
            for batch in whole_decisions(self._read(self._path)):
                chain.check(batch)
                if held_back:
                    yield held_back
                held_back = batch
        except (LedgerDamaged, struct.error) as error:  # struct's: a number out of range
            raise BadExport(f"{self._path} is not a ledger's: {error}") from error
        except (DecodeError, ValueError, LookupError, OverflowError) as error:
            raise BadExport(f"{self._path} can't be read: {error}") from error
        if (chain.position, chain.hash.hex()) != (self.manifest.position, self.manifest.hash):
            raise BadExport(
                f"{self._path} ends at position {chain.position}, its manifest names"
                f" {self.manifest.position}, or another hash"
            )
        if held_back:
            yield held_back


def whole_decisions(pages: RecordPages) -> RecordPages:
    """The same records, in batches that never end between a cause and what was decided of it."""
    batch: list[Record] = []
    for page in pages:
        batch += page
        # More may follow of the last decision.
        if start := last_decision_index(batch, whole_batches=False):
            yield batch[:start]
            batch = batch[start:]
    if batch:
        yield batch


class Imported(Struct, frozen=True):
    """The new end of the ledger, the number of appended events, and whether keys came along."""

    position: int
    hash: str
    appended: int
    with_keys: bool


async def import_events(settings: Settings, directory: Path) -> Imported:
    """Append the events of an export to a ledger that is empty or holds the first of them.

    Each transaction appends whole decisions, so an import that was interrupted can be run again.
    Raises BadExport, NoParquet, ImportRefused, UnsafeDatabase, LedgerDamaged, and DATABASE_ERRORS
    where no database answers at first.
    """
    export = EventsExport(directory)
    async with engine(settings, "writer") as pool, pool.connect() as connection:
        await refuse_unsafe(connection)
        await refuse_writers(connection)
        ledger = await load(connection)
        before = ledger.head
        if before.position > export.manifest.position:
            raise ImportRefused(
                f"the ledger is at position {before.position}, the export ends at"
                f" {export.manifest.position}: import into an empty ledger"
            )
        await fence_off_writers(connection, ledger)
        try:
            # Keys before events: the projector must find the key of each name it reads.
            if export.keys_path:
                await _restore_keys(connection, export.keys_path)
            await _append_all(pool, connection, export, ledger, settings.snapshot_every)
        except DATABASE_ERRORS as error:
            reason = getattr(error, "orig", None) or error
            raise ImportRefused(
                f"the database failed after position {ledger.head.position}: {reason};"
                " run it again, and it goes on from there"
            ) from error
    end = ledger.head
    appended = end.position - before.position
    return Imported(end.position, end.hash.hex(), appended, export.keys_path is not None)


async def refuse_writers(connection: AsyncConnection) -> None:
    """Raise ImportRefused while other sessions use the writer's account on this ledger."""
    # The fence alone would keep the two from mixing; but a writer that gets a message takes the
    # ledger over, and the import would fail half-way.
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(ImportRefused),
        wait=wait_fixed(0.1),
        stop=stop_after_delay(SESSION_END_S),
        reraise=True,
    ):
        with attempt:
            result = await connection.exec_driver_sql(
                "SELECT COUNT(*) FROM information_schema.processlist"
                " WHERE db = DATABASE() AND id <> CONNECTION_ID()"
            )
            if result.scalar():
                raise ImportRefused(
                    "a writer, or another import, is connected to this ledger: stop it first"
                )


async def fence_off_writers(connection: AsyncConnection, ledger: LedgerState) -> None:
    """Fence off every older writer; raise ImportRefused if one has appended to what was loaded."""
    before = ledger.head
    ledger.head = await Store(connection).raise_epoch()
    if (ledger.head.position, ledger.head.hash) != (before.position, before.hash):
        raise ImportRefused(f"a writer has gone on from position {before.position}: stop it first")


async def _restore_keys(connection: AsyncConnection, path: Path) -> None:
    """Store the encryption keys of a file; keys that the ledger has stay as they are."""
    try:
        for page in read_keys(path):
            stored = await EventReader(connection).encryption_keys(
                [key.customer_id for key in page]
            )
            new = [key for key in page if key.customer_id not in stored]
            await Store(connection).insert_keys(new)
            await connection.commit()
    except ValueError as error:
        raise BadExport(f"{path} can't be read: {error}") from error


async def _append_all(
    pool: AsyncEngine,
    connection: AsyncConnection,
    export: EventsExport,
    ledger: LedgerState,
    snapshot_every: int,
) -> None:
    """Append batch after batch; the next one is read and checked while one is written."""
    batches = Prefetch(_in_thread(_new_batches(export, ledger, snapshot_every)))
    with console.progress("importing", export.manifest.position) as advance:
        advance(ledger.head.position)
        async with aclosing(batches):
            async for records, snapshot in batches:
                try:
                    ledger.head = await Store(connection).append(ledger.head, records)
                except Fenced as error:
                    raise ImportRefused(
                        f"a writer took the ledger over at position {ledger.head.position}:"
                        " stop it first"
                    ) from error
                except IntegrityError as error:
                    raise BadExport(
                        f"an event of the positions {records[0].position} to"
                        f" {records[-1].position} has an id, or a version in its stream, that"
                        " another has"
                    ) from error
                if snapshot:
                    await snapshots.save(pool, snapshot)
                advance(len(records))


async def _in_thread(items: Iterator[ImportBatch]) -> AsyncGenerator[ImportBatch, None]:
    while item := await asyncio.to_thread(next, items, None):
        yield item


def _new_batches(
    export: EventsExport, ledger: LedgerState, snapshot_every: int
) -> Iterator[ImportBatch]:
    """The records that the ledger does not have, with the snapshots that a writer would take."""
    # `ledger.head` moves while this runs ahead of it; the fold is this one's alone.
    head, ahead = ledger.head, structs.replace(ledger)
    for batch in export.batches():
        first, last = batch[0].position, batch[-1]
        if first <= head.position <= last.position and (
            batch[head.position - first].hash != head.hash
        ):
            raise ImportRefused(
                f"the ledger holds other events up to position {head.position} than the export:"
                " import into an empty ledger"
            )
        records = batch[max(0, head.position + 1 - first) :]
        if not records:
            continue
        try:
            for event in EventPage(records).effective_events():
                ahead.fold.apply(event)
        except (Unreadable, DecodeError, InvariantViolated, VerificationFailed) as error:
            raise BadExport(
                f"this version can't read an event of the positions {records[0].position} to"
                f" {last.position}: {error}"
            ) from error
        ahead.fold.orders.clear()  # a snapshot has none, and they would fill the memory
        ahead.head = Head(last.position, last.hash, head.epoch)
        ahead.recorded_at_us = last.recorded_at_us
        due = last.position - ahead.snapshot_position >= snapshot_every
        yield records, ahead.take_snapshot() if due else None
