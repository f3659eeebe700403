"""Reading of the events that a replay is of, page by page, and on as the ledger grows."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.eventlog.codec import encode_recorded
from ledger.eventlog.encryption import REGISTERED
from ledger.eventlog.records import Record
from ledger.eventlog.store import LedgerDamaged, Store
from ledger.runtime.database import DATABASE_ERRORS
from ledger.runtime.reconnect import keep_alive
from projections.as_of import PositionBeyondHead

WINDOW: Final = 5_000
"""Positions that one statement looks at, or events of one stream that it finds."""
POLL_S: Final = 0.3
_COLUMNS: Final = ", ".join(f"e.{name}" for name in Record.__struct_fields__)


class Wish(Struct, frozen=True):
    """The events asked for: those between two positions, of a type and of a stream if given."""

    first: int = 1
    last: int | None = None
    type: str | None = None
    stream: UUID | None = None


class Found(Struct, frozen=True):
    """A record, the id of the event that it was decided of, and the key of a name in it."""

    record: Record
    cause_id: bytes | None
    sealing_key: bytes | None

    @property
    def line(self) -> bytes:
        """The event as the feed gives it out."""
        return encode_recorded(self.record, self.cause_id)


class Page(Struct, frozen=True):
    """What was found, in order; all up to `scanned_to` was looked at, `is_last` at the end."""

    found: list[Found]
    scanned_to: int
    is_last: bool


Take = Callable[[Page], Awaitable[None]]


class Reading:
    """Reads what a wish is of and hands it over; all up to `position` has been.

    It may be cancelled at any moment.
    """

    def __init__(self, engine: AsyncEngine, wish: Wish, moved: Callable[[int], None]) -> None:
        self._engine = engine
        self._wish = wish
        self._moved = moved
        self.position = wish.first - 1

    async def run(self, take: Take) -> None:
        """Read to the end; raises PositionBeyondHead, LedgerDamaged, one of DATABASE_ERRORS."""
        async with self._engine.connect() as connection:
            head = (await Store(connection).head()).position
            last = head if self._wish.last is None else self._wish.last
            if max(last, self.position) > head:
                raise PositionBeyondHead(f"position {max(last, self.position + 1)}", head)
            await self._read(connection, last, take)

    async def follow(self, take: Take) -> None:
        """Read up to the end of the wish, however long that takes; without a database, wait."""
        await keep_alive("replay", lambda: self._follow(take), DATABASE_ERRORS)

    async def _follow(self, take: Take) -> None:
        async with self._engine.connect() as connection:
            while self._wish.last is None or self.position < self._wish.last:
                head = (await Store(connection).head()).position
                if head > self.position:
                    await self._read(connection, min(head, self._wish.last or head), take)
                else:
                    await asyncio.sleep(POLL_S)

    async def _read(self, connection: AsyncConnection, last: int, take: Take) -> None:
        while self.position < last:
            page = await read_page(connection, self._wish, self.position, last)
            await take(page)
            self._moved(page.scanned_to - self.position)
            self.position = page.scanned_to


async def read_page(connection: AsyncConnection, wish: Wish, after: int, last: int) -> Page:
    """What is next after a position, up to another; raises LedgerDamaged where there is a gap."""
    if wish.stream:
        found = await _found(connection, wish, "events_stream", "e.version", after, last)
        end = last if len(found) < WINDOW else found[-1].record.position
        return Page(found, end, end == last)
    end = min(after + WINDOW, last)
    found = await _found(connection, wish, "PRIMARY", "e.position", after, end)
    if not wish.type and len(found) < end - after:
        raise LedgerDamaged(f"some of the positions from {after + 1} to {end} are missing")
    return Page(found, end, end == last)


async def _found(
    connection: AsyncConnection, wish: Wish, index: str, order: str, after: int, end: int
) -> list[Found]:
    """At most WINDOW of the events between two positions, by an index and in its order."""
    wanted: dict[str, object] = {"e.position > %s": after, "e.position <= %s": end}
    if wish.stream:
        wanted["e.stream_id = %s"] = wish.stream.bytes
    if wish.type:
        wanted["e.type = %s"] = wish.type
    rows: Any = await connection.exec_driver_sql(
        f"SELECT c.event_id, k.sealing_key, {_COLUMNS} FROM events e FORCE INDEX ({index})"
        " LEFT JOIN events c ON c.position = e.cause_position"
        f" LEFT JOIN customer_keys k ON k.customer_id = e.stream_id AND e.type = '{REGISTERED}'"
        f" WHERE {' AND '.join(wanted)} ORDER BY {order} LIMIT {WINDOW}",
        tuple(wanted.values()),
    )
    return [Found(Record(*columns), cause_id, key) for cause_id, key, *columns in rows]
