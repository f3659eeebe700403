"""The events of a replay: read page by page, followed as the ledger grows, and printed."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from cli import connections, console
from cli.replay import ReplayStopped
from cli.settings import Settings
from ledger.eventlog.codec import encode_recorded
from ledger.eventlog.reader import EventReader, RecordWithCause
from ledger.eventlog.records import gap_error
from ledger.runtime.database import DATABASE_ERRORS
from ledger.runtime.reconnect import first_to_end, keep_alive
from projections.as_of import PositionBeyondHead

# Positions that one statement covers, or events of one stream that it returns: bounds the memory.
PAGE_SIZE: Final = 5_000
POLL_S: Final = 0.3


class Selection(Struct, frozen=True):
    """The events to replay: from position `first` to `last` or the head, of one type or stream."""

    first: int = 1
    last: int | None = None
    type: str | None = None
    stream: UUID | None = None


class Page(Struct, frozen=True):
    """Selected events in ledger order; no others are selected up to the position `read_to`."""

    events: list[RecordWithCause]
    read_to: int
    is_last: bool


class Replay:
    """Reads the selected events and hands them over; all up to `position` have been handled."""

    def __init__(
        self,
        engine: AsyncEngine,
        selection: Selection,
        advance: Callable[[int], None] = lambda positions: None,
    ) -> None:
        self._engine = engine
        self._selection = selection
        self._advance = advance
        self.position = selection.first - 1

    async def run(self, handle: Callable[[Page], Awaitable[None]], *, follow: bool) -> None:
        """Give each page to `handle`, up to the end of the selection.

        With `follow`, wait for events that are not recorded yet and for a database that is away,
        until SIGINT or SIGTERM. Raises PositionBeyondHead for a position ahead of the ledger's end,
        LedgerDamaged for a gap, and ReplayStopped when the database or `handle` fails.
        """

        async def read_new_events() -> None:
            last = self._selection.last
            async with self._engine.connect() as connection:
                reader = EventReader(connection)
                while last is None or self.position < last:
                    head = (await reader.head()).position
                    if head > self.position:
                        await self._read(reader, min(head, last or head), handle)
                    else:
                        await asyncio.sleep(POLL_S)

        try:
            if follow:
                reading = keep_alive("replay", read_new_events, DATABASE_ERRORS)
                await first_to_end(reading, _stop_signal())
                return
            async with self._engine.connect() as connection:
                reader = EventReader(connection)
                head = (await reader.head()).position
                last = self._selection.last or head
                if max(last, self.position) > head:
                    raise PositionBeyondHead(f"position {max(last, self.position + 1)}", head)
                await self._read(reader, last, handle)
        except DATABASE_ERRORS as error:
            reason = f"the database went away: {getattr(error, 'orig', error)}"
            raise self._stopped(reason) from error
        except ReplayStopped as error:
            raise self._stopped(str(error)) from error

    async def _read(
        self, reader: EventReader, last: int, handle: Callable[[Page], Awaitable[None]]
    ) -> None:
        while self.position < last:
            page = await read_page(reader, self._selection, self.position, last)
            await handle(page)
            self._advance(page.read_to - self.position)
            self.position = page.read_to

    def _stopped(self, reason: str) -> ReplayStopped:
        return ReplayStopped(f"{reason}; it came as far as position {self.position}")


async def read_page(reader: EventReader, selection: Selection, after: int, last: int) -> Page:
    """The next page of selected events after a position, up to another.

    Raises LedgerDamaged where a position is missing.
    """
    # Of one stream a page has so many events, however far apart; otherwise it is so many positions
    # wide, so that a rare type doesn't keep one statement busy with the whole ledger.
    end = last if selection.stream else min(after + PAGE_SIZE, last)
    events = await reader.with_causes(
        after, end, PAGE_SIZE, stream_id=selection.stream, type_=selection.type, with_keys=True
    )
    if selection.stream and len(events) == PAGE_SIZE:
        end = events[-1].record.position
    if not selection.stream and not selection.type:
        for position, event in zip(range(after + 1, end + 1), events, strict=False):
            if event.record.position != position:
                raise gap_error(position, event.record)
        if len(events) < end - after:
            raise gap_error(after + len(events) + 1, None)
    return Page(events, end, end == last)


async def print_events(settings: Settings, selection: Selection, *, follow: bool) -> None:
    """Print the selected events, one CloudEvent in JSON a line; raises as `Replay.run`."""
    lines = console.LineWriter()

    async def print_page(page: Page) -> None:
        for event in page.events:
            lines.add(encode_recorded(event.record, event.cause_id))
        lines.flush()

    async with connections.engine(settings, "projector", read_only=True, autocommit=True) as engine:
        await Replay(engine, selection).run(print_page, follow=follow)


async def _stop_signal() -> None:
    """Return at the first SIGINT or SIGTERM."""
    received = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, received.set)
    await received.wait()
