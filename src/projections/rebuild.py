"""Rebuild: views are made anew beside the live ones, compared with them, and swapped in.

Nothing is done to a live view until one RENAME puts the rebuilt one in its place, together with its
checkpoint. A rebuild that ends before leaves a shadow with which the next one goes on; one that
ends after leaves the rebuilt view.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Generic

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from msgspec import Struct, structs
from sqlalchemy import Connection, MetaData
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.schema import CreateTable

from ledger.core.events import Recorded
from ledger.eventlog.reader import EventReader
from ledger.runtime.cache import Prefetch
from ledger.runtime.failpoints import failpoint
from projections.check import Difference, first_difference
from projections.table_swap import (
    BUSY_S,
    OLD,
    REBUILDS,
    SESSION_S,
    SHADOW,
    RebuildRefused,
    Shadow,
    add_indexes,
    drop_tables,
    existing_tables,
    find_state,
    open_shadow,
    projectors_paused,
    side_table,
    swap,
)
from projections.tables import (
    Checkpoint,
    OnProgress,
    begin_consistent_read,
    fetch_rows,
    read_checkpoints,
    write_rows,
)
from projections.views.projection import Key, KeyedProjection, Projection, Row

# Events between two commits: after a crash so many are loaded again, which takes seconds.
STEP_EVENTS: Final = 50_000
# Changed rows of a table that are written before the step ends: they bound the memory.
FULL_ROWS: Final = 20_000
# Rows of a table that stay in memory after they were written, to spare reading them again.
HELD_ROWS: Final = 50_000
# With so few events left, projectors can wait while they are loaded.
NEAR_EVENTS: Final = 1_000
# Rounds of catching up with a projector that is as fast; the rest is loaded while it waits.
ROUNDS: Final = 100
SWAP_ATTEMPTS: Final = 10
SWAP_PAUSE_S: Final = 1.0

# What Alembic calls a difference of columns; it names those of indexes and comments, too.
OTHER_COLUMNS: Final = {"add_column", "remove_column", "modify_type", "modify_nullable"}

# Shows the progress of a step: takes its name and the total, if known.
ShowProgress = Callable[[str, int | None], AbstractContextManager[OnProgress]]


class Rebuilt(Struct, frozen=True):
    """The result for one view, whose table is the rebuilt one if `swapped`.

    `not_compared` is the reason why the live view could not be compared with the rebuilt one.
    """

    view: str
    position: int
    version: int
    swapped: bool
    not_compared: str | None = None
    difference: Difference | None = None


class Outdated(Struct, frozen=True):
    """A view that this code can't go on with as it is, and why.

    `is_newer` is true where newer code made it: only that may go on with it.
    """

    name: str
    reason: str
    is_newer: bool = False

    @property
    def remedy(self) -> str:
        """What to do."""
        return "run the newer code" if self.is_newer else f"run `ledger rebuild {self.name}`"

    def __str__(self) -> str:
        """The reason with what to do."""
        return f"{self.reason}: {self.remedy}"


async def outdated_views(
    connection: AsyncConnection, projections: Sequence[Projection[Any]]
) -> list[Outdated]:
    """The views whose version or columns are not those of this code; raises CheckpointLost."""
    checkpoints = await read_checkpoints(connection, projections)
    outdated = []
    for view in projections:
        version = checkpoints[view.name].version
        if version != view.version:
            reason = (
                f"view {view.name} was made by version {version}, this code makes version"
                f" {view.version}"
            )
            outdated.append(Outdated(view.name, reason, version > view.version))
        elif not await connection.run_sync(has_columns_of, view):
            reason = f"view {view.name} has other columns than this code makes"
            outdated.append(Outdated(view.name, reason))
    return outdated


def has_columns_of(connection: Connection, view: Projection[Any]) -> bool:
    """True if the table of a view has the columns, types and NULLs that this code makes."""
    wanted = MetaData()
    view.table.to_metadata(wanted)
    options = {"include_name": lambda name, kind, _: kind != "table" or name == view.name}
    found = compare_metadata(MigrationContext.configure(connection, opts=options), wanted)
    # The changes of one column come as a list.
    changes = (change for item in found for change in (item if isinstance(item, list) else [item]))
    return not any(kind in OTHER_COLUMNS for kind, *_ in changes)


class Loader(Generic[Row]):
    """Loads events into one table, and writes a row once however many events change it.

    Customers and products change again and again, so their rows stay in memory: the HELD_ROWS that
    changed last.
    """

    def __init__(self, projection: Projection[Row]) -> None:
        self._projection = projection
        self._changed: dict[Key, Row] = {}
        self._held: dict[Key, Row] = {}

    async def add(self, connection: AsyncConnection, events: Sequence[Recorded]) -> None:
        """Project events that took effect; raises ViewDamaged."""
        missing = []
        for key in self._projection.keys_needed(events):
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
        """Write the rows that changed since the last call; raises ViewDamaged."""
        await write_rows(connection, [(self._projection, self._changed.values())])
        if isinstance(self._projection, KeyedProjection):
            self._held |= self._changed
            for key in list(islice(self._held, max(0, len(self._held) - HELD_ROWS))):
                del self._held[key]
        self._changed = {}


@dataclass
class Rebuild:
    """Rebuilds some views together, which are also swapped together."""

    writing: AsyncConnection
    reading: AsyncConnection
    all_views: Sequence[Projection[Any]]
    views: Sequence[Projection[Any]]
    show_progress: ShowProgress

    async def rebuild(self, *, restart: bool = False, repair: bool = False) -> list[Rebuilt]:
        """Rebuild the views and swap all of them, or none where one differs from the live view.

        With `restart` nothing of an earlier rebuild is used; with `repair` views that differ are
        swapped, too. Raises RebuildRefused, LedgerDamaged and ViewDamaged.
        """
        shadows = []
        for view in self.views:
            # A shadow ahead of the views is of another time: the database came from a backup.
            up_to = -1 if restart else await self._target(await self._checkpoints())
            shadows.append(await open_shadow(self.writing, view, up_to))
        await self._catch_up(shadows)
        await failpoint("rebuild.after-load")
        with self.show_progress("indexing", len(shadows)) as on_progress:
            for shadow in shadows:
                await add_indexes(self.writing, shadow)
                on_progress(1)
        await self._catch_up(shadows)
        results = await self._compare(shadows)
        if not repair and any(result.difference for result in results):
            return results
        await drop_tables(self.writing, *(view.name + OLD for view in self.views))
        return await self._swap(shadows, results)

    async def undo(self) -> list[Rebuilt]:
        """Swap the old tables back in, brought to where the live views are; raises RebuildRefused.

        The tables that were live are kept as old ones, so that a second undo reverts the first.
        """
        tables, results = [], []
        for view in self.views:
            old = side_table(view, OLD)
            state = await find_state(self.writing, old.name)
            if not state:
                raise RebuildRefused(f"there is no {old.name}: {view.name} has nothing to undo")
            if state.view_version != view.version:
                raise RebuildRefused(
                    f"{old.name} was made by version {state.view_version}, this code makes version"
                    f" {view.version}: use `--undo` of the code that made it"
                )
            tables.append(Shadow(view, old, state.position))
            results.append(Rebuilt(view.name, state.position, view.version, False))
            # An earlier release may have made the table, and the API names the indexes it reads by.
            await add_indexes(self.writing, tables[-1])
        return await self._swap(tables, results)

    async def drop_old(self) -> set[str]:
        """Drop old tables, and shadows that were not swapped; returns the names of both."""
        names = [view.name + suffix for view in self.views for suffix in (OLD, SHADOW)]
        return await drop_tables(self.writing, *names)

    async def _checkpoints(self) -> dict[str, Checkpoint]:
        checkpoints = await read_checkpoints(self.writing, self.all_views)
        await self.writing.rollback()
        return checkpoints

    async def _target(self, checkpoints: dict[str, Checkpoint]) -> int:
        """Return the position to load up to: the furthest checkpoint of any view.

        Where all views are rebuilt and none was ever filled it is the head of the ledger.
        """
        furthest = max(checkpoint.position for checkpoint in checkpoints.values())
        if furthest or len(self.views) < len(self.all_views):
            return furthest
        return (await EventReader(self.reading).head()).position

    async def _catch_up(self, shadows: Sequence[Shadow]) -> None:
        """Load until at most NEAR_EVENTS are missing, while projectors go on."""
        names = ", ".join(shadow.live.name for shadow in shadows)
        for _ in range(ROUNDS):
            target = await self._target(await self._checkpoints())
            behind = target - min(shadow.position for shadow in shadows)
            if behind > 0:
                with self.show_progress(f"loading {names}", behind) as on_progress:
                    await self._load(shadows, target, on_progress)
            if behind <= NEAR_EVENTS:
                return

    async def _load(
        self, shadows: Sequence[Shadow], up_to: int, on_progress: OnProgress = lambda more: None
    ) -> None:
        """Load shadows up to a position, all in one reading that begins where the last one is."""
        loaders = [Loader(shadow.table) for shadow in shadows]
        uncommitted_events = 0
        # One page more is read and decoded while the database is at work on the last.
        after = min(shadow.position for shadow in shadows)
        pages = EventReader(self.reading).pages(after, up_to, with_keys=True)
        prefetched = Prefetch((page, page.effective_events()) async for page in pages)
        async with aclosing(prefetched):
            async for page, events in prefetched:
                for loader, shadow in zip(loaders, shadows, strict=True):
                    newer = events
                    if shadow.position > after:
                        newer = [event for event in events if event.position > shadow.position]
                    await loader.add(self.writing, newer)
                position = page.position
                on_progress(len(page.records))
                uncommitted_events += len(page.records)
                if uncommitted_events < STEP_EVENTS and position < up_to:
                    continue
                for loader, shadow in zip(loaders, shadows, strict=True):
                    await loader.write(self.writing)
                    await self.writing.exec_driver_sql(
                        "UPDATE rebuilds SET position = %s WHERE name = %s",
                        (max(position, shadow.position), shadow.table.name),
                    )
                await failpoint("rebuild.before-commit")
                await self.writing.commit()
                for shadow in shadows:
                    shadow.position = max(position, shadow.position)
                uncommitted_events, after = 0, position
                await failpoint("rebuild.after-commit")

    async def _compare(self, shadows: Sequence[Shadow]) -> list[Rebuilt]:
        """Compare with the live views as of one position, while projectors go on."""
        async with projectors_paused(self.writing, self.all_views) as checkpoints:
            await self._load(shadows, await self._target(checkpoints))
            await self.reading.rollback()
            tables = [table for shadow in shadows for table in (shadow.live, shadow.table)]
            await begin_consistent_read(self.reading, tables)
        results = []
        for shadow in shadows:
            live, checkpoint = shadow.live, checkpoints[shadow.live.name]
            not_compared = difference = None
            if checkpoint.version != live.version:
                not_compared = f"the view was of version {checkpoint.version}"
            elif not await self.reading.run_sync(has_columns_of, live):
                not_compared = "the view had other columns"
            elif checkpoint.position != shadow.position:
                not_compared = f"the view was at position {checkpoint.position}"
            else:
                with self.show_progress(f"comparing {live.name}", None) as on_progress:
                    difference = await first_difference(
                        self.reading, live, shadow.table, on_progress
                    )
            results.append(
                Rebuilt(live.name, shadow.position, live.version, False, not_compared, difference)
            )
        await self.reading.rollback()
        return results

    async def _swap(self, shadows: Sequence[Shadow], results: Sequence[Rebuilt]) -> list[Rebuilt]:
        for _ in range(SWAP_ATTEMPTS):
            await self._catch_up(shadows)
            async with projectors_paused(self.writing, self.all_views) as checkpoints:
                await self._load(shadows, await self._target(checkpoints))
                await self.reading.rollback()
                swapped = await swap(self.writing, self.reading, shadows, checkpoints)
            if swapped:
                return [
                    structs.replace(result, position=shadow.position, swapped=True)
                    for result, shadow in zip(results, shadows, strict=True)
                ]
            await asyncio.sleep(SWAP_PAUSE_S)
        names = ", ".join(shadow.live.name for shadow in shadows)
        raise RebuildRefused(
            f"a long transaction goes on reading {names}: end it, then run this again; all that is"
            " done so far is kept"
        )


@asynccontextmanager
async def open_rebuild(
    engine: AsyncEngine,
    all_views: Sequence[Projection[Any]],
    views: Sequence[Projection[Any]],
    show_progress: ShowProgress,
) -> AsyncIterator[Rebuild]:
    """A rebuild of `views`, with the account that migrates; one at a time for each view.

    The caller must dispose of the engine afterwards, whatever happens: its sessions hold the locks.
    Raises RebuildRefused while another one rebuilds one of the views.
    """
    async with engine.connect() as writing, engine.connect() as reading:
        for connection in (writing, reading):
            await connection.exec_driver_sql(
                f"SET SESSION wait_timeout = {SESSION_S}, lock_wait_timeout = 1"
            )
            await connection.rollback()
        for view in views:
            locked = await writing.exec_driver_sql(
                "SELECT GET_LOCK(CONCAT(DATABASE(), '.rebuild.', %s), %s)", (view.name, BUSY_S)
            )
            if not locked.scalar_one():
                raise RebuildRefused(
                    f"another rebuild of {view.name} is under way: let it end first"
                )
            await writing.rollback()
        if not await existing_tables(writing, [REBUILDS.name]):
            await writing.execute(CreateTable(REBUILDS, if_not_exists=True))
        yield Rebuild(writing, reading, all_views, views, show_progress)
