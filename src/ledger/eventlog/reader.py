"""What an audit reads: the end of the ledger, and page after page with what stands before each."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.core.events import TYPE_OF, OrderPlaced
from ledger.eventlog.chain import VerificationFailed
from ledger.eventlog.decisions import whole
from ledger.eventlog.records import GENESIS_HASH, Record
from ledger.eventlog.store import COLUMNS, PAGE

Unknown = Callable[[Sequence[Record]], list[bytes]]

_position = attrgetter("position")


class Earlier(Struct, frozen=True):
    """What stands in the ledger, before a page of records, of what the page names.

    The histories of its streams, by stream, and the positions of its event ids.
    """

    histories: Mapping[bytes, Sequence[Record]]
    positions: Mapping[bytes, int]


NOTHING: Final = Earlier({}, {})


class End(Struct, frozen=True):
    """The last position that both the events and `ledger_head` have, and what is wrong there."""

    position: int
    wrong: VerificationFailed | None = None


class Page(Struct, frozen=True):
    """Contiguous records, whole runs of them, and what stands before of what they name."""

    records: Sequence[Record]
    earlier: Earlier


async def read_end(connection: AsyncConnection) -> End:
    """Where the ledger ends; `ledger_head` must name its last record."""
    # One statement sees head and events at one moment, whatever the writer does.
    rows = await _rows(
        connection,
        "SELECT h.position, h.hash, e.position, e.hash FROM ledger_head h"
        " LEFT JOIN events e ON e.position = (SELECT MAX(position) FROM events) WHERE h.id = 1",
    )
    if not rows:
        return End(
            0, VerificationFailed(1, "ledger_head has no row that says where the ledger ends")
        )
    head, head_hash, last, last_hash = rows[0]
    last, last_hash = last or 0, last_hash or GENESIS_HASH
    end = min(head, last)
    if head != last:
        what = f"ledger_head says that the ledger ends at {head}, but it ends at {last}"
        return End(end, VerificationFailed(end + 1, what))
    if head_hash != last_hash:
        return End(end, VerificationFailed(end, "ledger_head has another hash than the record"))
    return End(end)


async def record_at(connection: AsyncConnection, position: int) -> Record | None:
    """The record at a position, if there is one."""
    rows = await _rows(connection, f"SELECT {COLUMNS} FROM events WHERE position = %s", (position,))
    return Record(*rows[0]) if rows else None


async def pages(
    connection: AsyncConnection, after: int, up_to: int, unknown: Unknown | None
) -> AsyncIterator[Page]:
    """The records after a position and up to another.

    Raises VerificationFailed where they end before.

    `unknown` names the streams that are to be looked up; without it nothing is.
    """
    async for records in whole_pages(connection, after, up_to):
        yield Page(records, await _earlier(connection, records, unknown) if unknown else NOTHING)


async def whole_pages(
    connection: AsyncConnection, after: int, up_to: int
) -> AsyncIterator[Sequence[Record]]:
    """The records after a position and up to another, as they are, but whole runs of them.

    Raises VerificationFailed where they end before.
    """
    limit = PAGE
    while after < up_to:
        rows = await _rows(
            connection,
            f"SELECT {COLUMNS} FROM events WHERE position > %s AND position <= %s"
            " ORDER BY position LIMIT %s",
            (after, up_to, limit),
        )
        records: Sequence[Record] = [Record(*row) for row in rows]
        if not records:
            raise VerificationFailed(after + 1, "the event is gone, and all that came after it")
        if records[-1].position < up_to:
            records = whole(records)
        if not records:
            limit *= 2  # an atomic batch is longer than a page
            continue
        yield records
        after, limit = records[-1].position, PAGE


async def last_positions(
    connection: AsyncConnection, records: Sequence[Record]
) -> dict[bytes, int]:
    """The last position of those orders placed in the records that come up again after them."""
    placed = [record.stream_id for record in records if record.type == TYPE_OF[OrderPlaced]]
    rows = await _rows(
        connection,
        "SELECT stream_id, MAX(position) FROM events WHERE position > %s"
        f" AND stream_id IN ({_literals(placed)}) GROUP BY stream_id",
        (records[-1].position,),
    )
    return dict(rows)


async def ahead(pages: AsyncIterator[Page]) -> AsyncGenerator[Page]:
    """The same pages, with the next one on its way while one is worked on; must be closed."""
    coming = asyncio.ensure_future(anext(pages, None))
    try:
        while (page := await coming) is not None:
            coming = asyncio.ensure_future(anext(pages, None))
            yield page
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


async def _earlier(
    connection: AsyncConnection, records: Sequence[Record], unknown: Unknown
) -> Earlier:
    first = records[0].position
    histories: dict[bytes, list[Record]] = {}
    if streams := unknown(records):
        rows = await _rows(
            connection,
            f"SELECT {COLUMNS} FROM events WHERE stream_id IN ({_literals(streams)})"
            " AND position < %s",
            (first,),
        )
        # Sorted here: with ORDER BY, MariaDB makes a temporary table on disk of what has BLOBs.
        for record in sorted((Record(*row) for row in rows), key=_position):
            histories.setdefault(record.stream_id, []).append(record)
    ids = [record.event_id for record in records if not record.cause_position]
    known = await _rows(
        connection,
        f"SELECT event_id, position FROM events WHERE event_id IN ({_literals(ids)})"
        " AND position < %s",
        (first,),
    )
    return Earlier(histories, dict(known))


def _literals(ids: Sequence[bytes]) -> str:
    """Ids as text of a statement: of thousands it takes a fifth of what placeholders take."""
    return ", ".join([f"x'{each.hex()}'" for each in ids]) or "NULL"


async def _rows(
    connection: AsyncConnection, statement: str, parameters: Sequence[object] = ()
) -> Sequence[Any]:
    return (await connection.exec_driver_sql(statement, tuple(parameters))).all()
