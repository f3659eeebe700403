"""Pages of the ledger for the projector, the next of which is read while the last is written."""

import asyncio

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from ledger.core.events import Recorded
from ledger.core.fold import effective
from ledger.eventlog.records import Record
from ledger.eventlog.store import Store
from projections.announcements import Outcome, outcomes


class Page(Struct, frozen=True):
    """Contiguous records, those of their events that took effect, and what came of each."""

    records: list[Record]
    taking_effect: list[Recorded]
    outcomes: list[Outcome]


async def read_page(store: Store, after: int, limit: int) -> Page:
    """The page after a position, of at most `limit` events; raises LedgerDamaged at a gap."""
    records = await store.read(after, limit)
    events = await store.events(records)
    return Page(records, list(effective(events)), outcomes(events))


class ReadAhead:
    """Reads and decodes the next page on a connection of its own.

    That takes no lock: the ledger is only added to, so what was read stays as it is.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._after = 0
        self._coming: asyncio.Task[Page] | None = None

    def begin(self, after: int, limit: int) -> None:
        """Begin to read the page after a position, of so many events at most."""
        self._after = after
        self._coming = asyncio.create_task(self._read(after, limit))

    async def take(self, after: int) -> Page | None:
        """The page after a position, if it is the one that was begun; raises as `read_page`."""
        if self._coming is None:
            return None
        coming, self._coming = self._coming, None
        page = await coming
        return page if self._after == after else None

    async def aclose(self) -> None:
        """Wait for the page that nobody takes any more, and whatever came of it."""
        if self._coming:
            await asyncio.gather(self._coming, return_exceptions=True)

    async def _read(self, after: int, limit: int) -> Page:
        async with self._engine.connect() as connection:
            return await read_page(Store(connection), after, limit)
