"""Loading: the ledger is read once for some tables, and what they come to hold goes in in bulk."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from itertools import islice
from typing import Any, Final, Generic

from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.core.events import Recorded
from ledger.core.fold import effective
from ledger.eventlog.store import Store
from projections.tables import fetch_rows, write_rows
from projections.views.projection import Key, KeyedProjection, Projection, Row

STEP_EVENTS: Final = 50_000
"""Events between two commits: what a crash makes undone is done again in seconds."""
FULL_ROWS: Final = 20_000
"""Changed rows of a table that are written before the step ends."""
HELD_ROWS: Final = 50_000
"""Rows of a table that are kept in memory after they were written."""

Moved = Callable[[int], None]


class Loader(Generic[Row]):
    """Brings one table further, a page of events at a time; a row is written once for many events.

    Customers and products change again and again, so their rows stay in memory: as many as
    HELD_ROWS, those that changed last.
    """

    def __init__(self, projection: Projection[Row]) -> None:
        self._projection = projection
        self._changed: dict[Key, Row] = {}
        self._held: dict[Key, Row] = {}

    async def add(self, connection: AsyncConnection, events: Sequence[Recorded]) -> None:
        """Project events, which took effect; raises ViewDamaged."""
        missing = []
        for key in self._projection.needs(events):
            if (row := self._held.pop(key, None)) is not None:
                self._changed[key] = row
            elif key not in self._changed:
                missing.append(key)
        self._changed |= await fetch_rows(connection, self._projection, missing)
        for event in events:
            self._projection.project(self._changed, event)
        if len(self._changed) > FULL_ROWS:
            await self.write(connection)

    async def write(self, connection: AsyncConnection) -> None:
        """Write what changed since the last time; raises ViewDamaged."""
        await write_rows(connection, [(self._projection, self._changed.values())])
        if isinstance(self._projection, KeyedProjection):
            self._held |= self._changed
            for key in list(islice(self._held, max(0, len(self._held) - HELD_ROWS))):
                del self._held[key]
        self._changed = {}


async def load(
    connection: AsyncConnection,
    pages: AsyncIterator[list[Recorded]],
    projections: Sequence[Projection[Any]],
    commit: Callable[[int], Awaitable[None]],
    moved: Moved,
) -> None:
    """Bring tables further by pages of events; `commit` is called with the position of each step.

    `moved` is told how many events each page had. Raises ViewDamaged, and what the pages raise.
    """
    loaders = [Loader(projection) for projection in projections]
    since_commit = position = 0
    async for events in pages:
        taking_effect = list(effective(events))
        for loader in loaders:
            await loader.add(connection, taking_effect)
        position = events[-1].position
        since_commit += len(events)
        moved(len(events))
        if since_commit >= STEP_EVENTS:
            await _write(connection, loaders)
            await commit(position)
            since_commit = 0
    if since_commit:
        await _write(connection, loaders)
        await commit(position)


async def _write(connection: AsyncConnection, loaders: Sequence[Loader[Any]]) -> None:
    for loader in loaders:
        await loader.write(connection)


async def read_ahead(store: Store, after: int, up_to: int) -> AsyncGenerator[list[Recorded], None]:
    """Pages of events; one more is read and decoded while the database is at work on the last.

    Raises what Store.pages does.
    """
    pages = store.pages(after, up_to)
    coming = asyncio.create_task(_next_page(store, pages))
    try:
        while events := await coming:
            coming = asyncio.create_task(_next_page(store, pages))
            yield events
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


async def _next_page(store: Store, pages: AsyncIterator[Any]) -> list[Recorded]:
    records = await anext(pages, None)
    return await store.events(records) if records else []
