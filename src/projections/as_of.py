"""Views as of a position: a row, or all rows, as they were there, from the ledger alone.

For one row little is read: the event that created it, its entry of the nearest snapshot, and only
those later events that concern it. Answers never change, but for a name that is erased later.
"""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

from msgspec import Struct, structs
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.core.decider import CustomerState
from ledger.core.events import TYPE_OF, Recorded
from ledger.core.pricing import CURRENT_RULES, RULES, Rules
from ledger.eventlog import snapshots
from ledger.eventlog.codec import origin_of
from ledger.eventlog.reader import EventPage, EventReader
from ledger.runtime.timestamps import now_us
from projections.queries import connected
from projections.tables import OnProgress, chunks
from projections.views.projection import STREAM, KeyedProjection

# Positions that one statement looks at, so that none takes long or returns much.
WINDOW: Final = 5_000
# Streams that one statement names: of 1,000 and more MariaDB makes a temporary table.
STREAMS: Final = 500
_BYTES: Final = attrgetter("bytes")


class PositionBeyondHead(Exception):
    """A position or time that lies after the end of the ledger; `ledger_id` where it is known."""

    def __init__(self, what: str, head: int, ledger_id: UUID | None = None) -> None:
        super().__init__(f"{what} lies ahead: the ledger ends at position {head}")
        self.head = head
        self.ledger_id = ledger_id


class AsOf(Struct, frozen=True):
    """What to read as of: a position, or else a time in µs."""

    position: int | None
    time_us: int | None = None


class AsOfPosition(Struct, frozen=True):
    """The position to read at; unless `final`, more may yet be recorded for the time asked for."""

    position: int
    final: bool


@asynccontextmanager
async def open_as_of(engine: AsyncEngine, timeout_s: float) -> AsyncIterator["AsOfReader"]:
    """A reader on a connection of its own; raises ViewsUnavailable, after `timeout_s` too."""
    async with connected(engine, timeout_s) as connection:
        yield AsOfReader(connection)


class AsOfReader:
    """Finds positions, and rows of keyed views as of a position."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._reader = EventReader(connection)

    async def resolve(self, as_of: AsOf) -> AsOfPosition:
        """The position asked for, or the last one recorded by the time asked for, which may be 0.

        Raises PositionBeyondHead where the ledger has not come to the position, and for a time in
        the future.
        """
        head, head_us = await self._reader.last_recorded()
        if as_of.position is not None:
            if as_of.position > head:
                raise await self._beyond_head(f"position {as_of.position}")
            return AsOfPosition(as_of.position, final=True)
        time_us = as_of.time_us or 0
        if time_us > max(head_us, now_us()):
            raise await self._beyond_head("that time")
        # Recorded times never fall: what comes next may still be recorded at the head's time.
        if head_us <= time_us:
            return AsOfPosition(head, final=False)
        low, high = 0, head
        while high - low > 1:
            middle = (low + high) // 2
            _, recorded_at_us = await self._reader.last_recorded(middle)
            low, high = (middle, high) if recorded_at_us <= time_us else (low, middle)
        return AsOfPosition(low, final=True)

    async def _beyond_head(self, what: str) -> PositionBeyondHead:
        head = await self._reader.identified_head()
        return PositionBeyondHead(what, head.position, head.ledger_id)

    async def row(self, view: KeyedProjection[Any], key: UUID, position: int) -> Any:
        """Return a row as of a position, as the view's `as_of_row`; None if it did not exist.

        A row with a stream of its own is made of all events of that. Any other begins with the
        event that created it, goes on from what the nearest snapshot has of it, if the view says
        what that is, and then takes the events that mention its key, window by window.
        """
        row: Any = None
        if view.own_stream:
            types = [TYPE_OF[payload] for payload in view.keyed_by]
            for event in await self._reader.effective_events_of([key], types, up_to=position):
                row = view.apply(row, event)
        else:
            after = 0
            if view.keyed_by[view.creates] is STREAM:
                creates = [TYPE_OF[view.creates]]
                events = await self._reader.effective_events_of([key], creates, up_to=position)
                if not events:
                    return None
                row, after = view.apply(None, events[0]), events[0].position
            if row and view.snapshot_entry:
                saved = await snapshots.entry(self._connection, key, after, position)
                if saved and isinstance(saved[1], view.snapshot_entry):
                    row, after = structs.replace(row, **structs.asdict(saved[1])), saved[0]
            others = [TYPE_OF[payload] for payload, of in view.keyed_by.items() if of is not STREAM]
            for start in range(after, position, WINDOW):
                end = min(start + WINDOW, position)
                for event in await self._reader.effective_events_mentioning(
                    key, others, start, end
                ):
                    # The text of an event may mention the key without being about it.
                    if view.key(event) == key:
                        row = view.apply(row, event)
        if row is None:
            return None
        rules = await rules_at(self._reader, position) if view.by_rules else CURRENT_RULES
        return as_of_row(view, row, position, rules)


async def rules_at(reader: EventReader, position: int) -> Rules:
    """The rules in force at a position: those by which the last decision up to it was made."""
    decided = await reader.last_decided_record(position, WINDOW)
    return RULES[origin_of(decided).rules] if decided else CURRENT_RULES


def as_of_row(view: KeyedProjection[Any], row: Any, position: int, rules: Rules) -> Any:
    """The answer for a row of a view at a position, by the rules that were in force there."""
    if view.by_rules:
        row = view.by_rules(row, rules)
    if view.as_of_row is None:
        return structs.replace(row, position=position)
    fields = {name: getattr(row, name) for name in view.as_of_row.__struct_fields__}
    return view.as_of_row(**fields | {"position": position})


async def view_as_of(
    connection: AsyncConnection,
    view: KeyedProjection[Any],
    position: int,
    on_progress: OnProgress,
) -> AsyncIterator[Any]:
    """Yield all rows of a view as of a position by key, or with `own_stream` as they were created.

    `on_progress` is called with numbers of positions. Memory: a page of events for `own_stream`;
    the customers and products, as in the writer, with `snapshot_entry`; else all rows of the view.
    """
    reader = EventReader(connection)
    rules = await rules_at(reader, position) if view.by_rules else CURRENT_RULES
    if view.own_stream:
        rows = _own_stream_rows(reader, view, position, on_progress)
    elif view.snapshot_entry:
        rows = _rows_by_snapshot(connection, view, position, on_progress)
    else:
        rows = _all_rows(reader, view, position, on_progress)
    async for row in rows:
        yield as_of_row(view, row, position, rules)


async def _own_stream_rows(
    reader: EventReader, view: KeyedProjection[Any], position: int, on_progress: OnProgress
) -> AsyncIterator[Any]:
    """Rows are created by a page, and changed by it and by later events of their own streams."""
    changes = [TYPE_OF[payload] for payload in view.keyed_by if payload is not view.creates]
    async for page, events in _pages(reader, 0, position, on_progress):
        rows: dict[Any, Any] = {}
        for event in events:
            if isinstance(event.payload, view.creates) or view.key(event) in rows:
                view.project(rows, event)
        # Most orders have no event after those of this page. Their versions tell it, which the
        # index has, while the condition on positions makes the server read the records.
        versions = Counter(record.stream_id for record in page.records)
        for keys in chunks(list(rows), STREAMS):
            version = min(versions[key.bytes] for key in keys)
            for event in await reader.effective_events_of(
                keys, changes, after=page.position, up_to=position, beyond_version=version
            ):
                view.project(rows, event)
        for row in rows.values():
            yield row


async def _rows_by_snapshot(
    connection: AsyncConnection,
    view: KeyedProjection[Any],
    position: int,
    on_progress: OnProgress,
) -> AsyncIterator[Any]:
    """Rows as they were created, with the fields of a fold that begins at the nearest snapshot."""
    reader = EventReader(connection)
    snapshot = await snapshots.nearest(connection, position)
    fold, after = snapshot.fold, snapshot.head.position
    on_progress(after)
    async for _, events in _pages(reader, after, position, on_progress):
        for event in events:
            fold.apply(event)
        fold.orders.clear()
    entries: Any = fold.customers if view.snapshot_entry is CustomerState else fold.products
    for keys in chunks(sorted(entries, key=_BYTES), STREAMS):
        creates = [TYPE_OF[view.creates]]
        events = await reader.effective_events_of(keys, creates, up_to=position)
        created = {event.stream_id: event for event in events}
        for key in keys:
            row = view.apply(None, created[key])
            yield structs.replace(row, **structs.asdict(entries[key]))


async def _all_rows(
    reader: EventReader, view: KeyedProjection[Any], position: int, on_progress: OnProgress
) -> AsyncIterator[Any]:
    rows: dict[Any, Any] = {}
    async for _, events in _pages(reader, 0, position, on_progress):
        for event in events:
            view.project(rows, event)
    for key in sorted(rows, key=_BYTES):
        yield rows[key]


async def _pages(
    reader: EventReader, after: int, position: int, on_progress: OnProgress
) -> AsyncIterator[tuple[EventPage, list[Recorded]]]:
    """Pages between two positions, with those of their events that took effect."""
    # One more is read: it may be the refusal of the submission at the position.
    up_to = min(position + 1, (await reader.head()).position)
    async for page in reader.pages(after, up_to, with_keys=True):
        events = [event for event in page.effective_events() if event.position <= position]
        if events:
            yield page, events
        on_progress(len(page.records))
