"""Reads of the ledger itself: its pages, and one stream's history."""

from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from ledger.eventlog.codec import encode_recorded
from ledger.eventlog.records import Record
from projections.queries import fetch

MAX_SCAN: Final = 10_000
"""Positions that one page looks at, however few of them its filter lets through."""

_COLUMNS: Final = Record.__struct_fields__
_WIDTH: Final = len(_COLUMNS)


class FeedEvent(Struct, frozen=True, gc=False):
    """One event as a CloudEvent in JSON."""

    position: int
    body: bytes


class FeedPage(Struct, frozen=True):
    """Events in ledger order; all up to `scanned_to` were looked at, `head` is the ledger's end."""

    events: list[FeedEvent]
    scanned_to: int
    head: int

    @property
    def is_last(self) -> bool:
        """Whether there is nothing after it yet."""
        return self.scanned_to >= self.head


class Feed:
    """The ledger, through the account of the API. Every method raises ViewsUnavailable."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def page(self, after: int, limit: int, type_: str | None = None) -> FeedPage:
        """At most `limit` events after a position, of one type if given, in one statement."""
        wanted = "e.position > %s AND e.position <= %s" + (" AND e.type = %s" if type_ else "")
        rows = await fetch(
            self._engine,
            f"SELECT h.head, p.* FROM (SELECT COALESCE(MAX(position), 0) AS head FROM events) h"
            f" LEFT JOIN ({_events(wanted)} ORDER BY e.position LIMIT %s) p ON TRUE",
            (after, after + MAX_SCAN, *((type_,) if type_ else ()), limit),
        )
        head = int(rows[0][0])
        events = sorted(_feed_events(row[1:] for row in rows), key=lambda event: event.position)
        full = len(events) == limit
        scanned_to = events[-1].position if full else max(after, min(after + MAX_SCAN, head))
        return FeedPage(events, scanned_to, head)

    async def head(self) -> int:
        """The position at which the ledger ends."""
        rows = await fetch(self._engine, "SELECT COALESCE(MAX(position), 0) FROM events", ())
        return int(rows[0][0])

    async def history(self, stream_id: UUID, after: int, up_to: int, limit: int) -> list[FeedEvent]:
        """At most `limit` events of one stream, after a position and up to another."""
        wanted = "e.stream_id = %s AND e.position > %s AND e.position <= %s"
        rows = await fetch(
            self._engine,
            f"{_events(wanted)} ORDER BY e.version LIMIT %s",
            (stream_id.bytes, after, up_to, limit),
        )
        return _feed_events(rows)


def _columns(alias: str) -> str:
    return ", ".join(f"{alias}.{name} AS {alias}_{name}" for name in _COLUMNS)


def _events(where: str) -> str:
    """Rows of events, each with the id of the event that it was decided of."""
    return (
        f"SELECT {_columns('e')}, c.event_id AS cause_id FROM events e"
        f" LEFT JOIN events c ON c.position = e.cause_position WHERE {where}"
    )


def _feed_events(rows: Any) -> list[FeedEvent]:
    return [
        FeedEvent(row[0], encode_recorded(Record(*row[:_WIDTH]), row[_WIDTH]))
        for row in rows
        if row[0] is not None
    ]
