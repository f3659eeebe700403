"""Loads the events of an export into an empty ledger, as they are."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec import DecodeError, Struct
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from cli.export import BadExport, ImportRefused
from cli.export.checks import EventsExport
from cli.export.sealing_keys import restore_keys
from cli.progress import progress
from cli.settings import Settings
from ledger.core.fold import Fold, effective
from ledger.core.invariants import LawBroken
from ledger.eventlog import snapshots
from ledger.eventlog.codec import Unreadable, recorded
from ledger.eventlog.records import Record
from ledger.eventlog.snapshots import Snapshot
from ledger.eventlog.store import Fenced, Head, Store
from ledger.runtime.database import DATABASE_ERRORS, make_engine, refuse_unsafe
from ledger.writer import Known, load

GONE_TIMEOUT_S: Final = 3.0
"""How long the server may take to see that an import which was killed is gone."""


class Batch(Struct, frozen=True):
    """Records that go into one transaction, and the fold after them where a snapshot is due."""

    records: list[Record]
    snapshot: Snapshot | None


class Loaded(Struct, frozen=True):
    """Where the ledger ends now, how many events the import appended, and whether keys came."""

    position: int
    hash: str
    appended: int
    with_keys: bool


async def load_export(settings: Settings, directory: Path) -> Loaded:
    """Append the events of an export to a ledger that is empty or holds the first of them.

    Raises BadExport, NoParquet, ImportRefused, UnsafeDatabase, LedgerDamaged and what the database
    raises at its start. Each transaction is whole: an import that ended can be run again.
    """
    export = EventsExport(directory)
    engine = make_engine(settings.db_url("writer"), settings.db_ca_file)
    try:
        async with engine.connect() as connection:
            await refuse_unsafe(connection)
            await _refuse_writers(connection)
            known = await load(connection)
            before = known.head.position
            _refuse_beyond(known.head, export)
            known.head = await _take_over(connection, known.head)
            try:
                await _restore_keys(connection, export)
                await _load(engine, connection, export, known, settings.snapshot_every)
            except DATABASE_ERRORS as error:
                reason = getattr(error, "orig", None) or error
                raise ImportRefused(
                    f"the database failed after position {known.head.position}: {reason};"
                    " run it again, and it goes on from there"
                ) from error
    finally:
        await engine.dispose()
    head = known.head
    return Loaded(head.position, head.hash.hex(), head.position - before, export.keys is not None)


async def _restore_keys(connection: AsyncConnection, export: EventsExport) -> None:
    """Before the events come, so that the projector reads no name without its key."""
    if export.keys:
        try:
            await restore_keys(connection, export.keys)
        except ValueError as error:
            raise BadExport(f"{export.keys} can't be read: {error}") from error


def _refuse_beyond(head: Head, export: EventsExport) -> None:
    if head.position > export.manifest.position:
        raise ImportRefused(
            f"the ledger is at position {head.position}, the export ends at"
            f" {export.manifest.position}: import into an empty ledger"
        )


async def _take_over(connection: AsyncConnection, head: Head) -> Head:
    """Fence off every writer."""
    taken = await Store(connection).raise_epoch()
    if (taken.position, taken.hash) != (head.position, head.hash):
        raise ImportRefused(f"a writer has gone on from position {head.position}: stop it first")
    return taken


async def _load(
    engine: AsyncEngine,
    connection: AsyncConnection,
    export: EventsExport,
    known: Known,
    snapshot_every: int,
) -> None:
    """Append batch after batch; each is made ready while the one before it is written."""
    with progress("importing", export.manifest.position) as moved:
        moved(known.head.position)
        batches = _batches(export, known, snapshot_every)
        coming = await asyncio.to_thread(next, batches, None)
        while batch := coming:
            appending = asyncio.create_task(_append(connection, known, batch.records))
            try:
                coming = await asyncio.to_thread(next, batches, None)
            finally:
                await appending
            if batch.snapshot:
                await snapshots.save(engine, batch.snapshot)
            moved(len(batch.records))


async def _append(connection: AsyncConnection, known: Known, records: list[Record]) -> None:
    try:
        known.head = await Store(connection).append(known.head, records)
    except Fenced as error:
        raise ImportRefused(
            f"a writer took the ledger over at position {known.head.position}: stop it first"
        ) from error
    except IntegrityError as error:
        raise BadExport(
            f"an event of the positions {records[0].position} to {records[-1].position} has an id,"
            " or a version in its stream, that another has"
        ) from error


def _batches(export: EventsExport, known: Known, snapshot_every: int) -> Iterator[Batch]:
    """What is to be appended, and the snapshots that the writer would have taken."""
    head = known.head
    snapshot_position = known.snapshot_position
    for batch in export.batches():
        records = _beyond(batch, head)
        if not records:
            continue
        _fold(known.fold, records)
        last = records[-1]
        snapshot = None
        if last.position - snapshot_position >= snapshot_every:
            snapshot_position = last.position
            snapshot = snapshots.take(known.fold, last.position, last.hash, last.recorded_at_us)
        yield Batch(records, snapshot)


def _beyond(batch: list[Record], head: Head) -> list[Record]:
    """What the ledger did not have at first; raises ImportRefused where it had something else."""
    first = batch[0].position
    if first <= head.position <= batch[-1].position and (
        batch[head.position - first].hash != head.hash
    ):
        raise ImportRefused(
            f"the ledger holds other events up to position {head.position} than the export:"
            " import into an empty ledger"
        )
    return batch[max(0, head.position + 1 - first) :]


def _fold(fold: Fold, records: list[Record]) -> None:
    try:
        for event in effective([recorded(record) for record in records]):
            fold.apply(event.stream_id, event.payload)
    except (Unreadable, DecodeError, LawBroken) as error:
        raise BadExport(
            f"this version can't read an event of the positions {records[0].position} to"
            f" {records[-1].position}: {error}"
        ) from error
    fold.orders.clear()


async def _refuse_writers(connection: AsyncConnection) -> None:
    """Raises ImportRefused while others are connected with the writer's account.

    The fence would keep the two from mixing; but a writer that is fed takes the ledger over, and
    the import could not go on.
    """
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(ImportRefused),
        wait=wait_fixed(0.1),
        stop=stop_after_delay(GONE_TIMEOUT_S),
        reraise=True,
    ):
        with attempt:
            found = await connection.exec_driver_sql(
                "SELECT COUNT(*) FROM information_schema.processlist"
                " WHERE db = DATABASE() AND id <> CONNECTION_ID()"
            )
            if found.scalar():
                raise ImportRefused(
                    "a writer, or another import, is connected to this ledger: stop it first"
                )
