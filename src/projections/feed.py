"""The feed: the events of the ledger as CloudEvents, page after page, or of one stream."""

from typing import Final
from uuid import UUID

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from ledger.eventlog.codec import encode_recorded
from ledger.eventlog.reader import EventReader, RecordWithCause
from projections.queries import connected

# Positions that one page looks at, however few of them its filter lets through.
MAX_SCAN: Final = 10_000


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
        """True if the ledger has nothing after it yet."""
        return self.scanned_to >= self.head


class Feed:
    """The ledger, through the account of the API. Every method raises ViewsUnavailable."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def page(self, after: int, limit: int, type_: str | None = None) -> FeedPage:
        """At most `limit` events after a position, of one type if given."""
        up_to = after + MAX_SCAN
        async with connected(self._engine) as connection:
            head, found = await EventReader(connection).head_with_causes(after, up_to, limit, type_)
        events = [_feed_event(record) for record in found]
        is_full = len(events) == limit
        scanned_to = events[-1].position if is_full else max(after, min(up_to, head))
        return FeedPage(events, scanned_to, head)

    async def head(self) -> int:
        """The position at which the ledger ends."""
        async with connected(self._engine) as connection:
            position, _ = await EventReader(connection).last_recorded()
        return position

    async def history(self, stream_id: UUID, after: int, up_to: int, limit: int) -> list[FeedEvent]:
        """At most `limit` events of one stream, after a position and up to another."""
        async with connected(self._engine) as connection:
            found = await EventReader(connection).with_causes(
                after, up_to, limit, stream_id=stream_id
            )
        return [_feed_event(record) for record in found]


def _feed_event(found: RecordWithCause) -> FeedEvent:
    return FeedEvent(found.record.position, encode_recorded(found.record, found.cause_id))
