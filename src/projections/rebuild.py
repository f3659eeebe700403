"""Rebuild: views are made anew beside the live ones, compared with them, and swapped in.

Nothing is done to a live view until one RENAME puts the rebuilt one in its place, together with the
checkpoint that belongs to it. Whatever ends the work before leaves a shadow that the next rebuild
goes on with; whatever ends it after leaves the rebuilt view.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, aclosing, asynccontextmanager
from typing import Any, Final

from msgspec import Struct, structs
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.schema import CreateTable

from ledger.eventlog.store import Store
from ledger.runtime.failpoints import failpoint
from projections.bulk_load import Moved, load, read_ahead
from projections.shadow_tables import (
    OLD,
    REBUILDS,
    SHADOW,
    Shadow,
    add_indexes,
    beside,
    drop,
    existing,
    known,
    move,
    open_shadow,
)
from projections.table_diff import Difference, first_difference
from projections.table_swap import BUSY_S, SESSION_S, RebuildRefused, held_still, swap
from projections.tables import Checkpoint, pin, read_checkpoints
from projections.views.projection import Projection

NEAR_EVENTS: Final = 1_000
"""So few events are left for when the projectors have to wait."""
ROUNDS: Final = 100
"""Of catching up with a projector that is as fast; the rest is then done while it waits."""
SWAP_ATTEMPTS: Final = 10
SWAP_PAUSE_S: Final = 1.0

Progress = Callable[[str, int | None], AbstractContextManager[Moved]]
"""Shows how far a part of the work is: what it is, and how much there is of it, if that's known."""


class Rebuilt(Struct, frozen=True):
    """What came of one view: its table is the rebuilt one if it was `swapped`.

    `not_compared` says why it was not, where that was not possible.
    """

    view: str
    position: int
    version: int
    swapped: bool
    not_compared: str | None = None
    difference: Difference | None = None


class Rebuild:
    """Rebuilds of some views together, which are also swapped together."""

    def __init__(
        self,
        writing: AsyncConnection,
        reading: AsyncConnection,
        all_views: Sequence[Projection[Any]],
        views: Sequence[Projection[Any]],
        progress: Progress,
    ) -> None:
        self._writing = writing
        self._reading = reading
        self._all_views = all_views
        self._views = views
        self._progress = progress

    async def rebuild(self, *, restart: bool = False, repair: bool = False) -> list[Rebuilt]:
        """Rebuild the views and swap all of them, or none where one differs from the live view.

        With `restart` from the first event, whatever an earlier rebuild left; with `repair` those
        that differ are swapped, too. Raises RebuildRefused, LedgerDamaged and ViewDamaged.
        """
        shadows = [await self._open(view, restart=restart) for view in self._views]
        await self._catch_up(shadows)
        await failpoint("rebuild.after-load")
        with self._progress("indexing", len(shadows)) as moved:
            for shadow in shadows:
                await add_indexes(self._writing, shadow)
                moved(1)
        await self._catch_up(shadows)
        compared = await self._compare(shadows)
        if not repair and any(each.difference for each in compared):
            return compared
        await drop(self._writing, *(view.name + OLD for view in self._views))
        return await self._swap(shadows, compared)

    async def undo(self) -> list[Rebuilt]:
        """Swap the old tables back in, brought to where the live views are; raises RebuildRefused.

        What was live is then kept as old: to undo twice is to undo nothing.
        """
        old = [await self._open_old(view) for view in self._views]
        return await self._swap(old, [_outcome(table) for table in old])

    async def drop_old(self) -> set[str]:
        """Drop old tables, and shadows that were not swapped; the names of what was there."""
        names = [view.name + suffix for view in self._views for suffix in (OLD, SHADOW)]
        return await drop(self._writing, *names)

    async def _open(self, view: Projection[Any], *, restart: bool) -> Shadow:
        shadow = await open_shadow(self._writing, view, restart=restart)
        if shadow.position > await self._target(await self._checkpoints()):
            return await open_shadow(self._writing, view, restart=True)
        return shadow

    async def _open_old(self, view: Projection[Any]) -> Shadow:
        made = beside(view, OLD)
        found = await known(self._writing, made.name)
        if not found:
            raise RebuildRefused(f"there is no {made.name}: {view.name} has nothing to go back to")
        if found.view_version != view.version:
            raise RebuildRefused(
                f"{made.name} was made by version {found.view_version}, this code makes version"
                f" {view.version}: use `--undo` of the code that made it"
            )
        return Shadow(view, made, found.position)

    async def _checkpoints(self) -> dict[str, Checkpoint]:
        checkpoints = await read_checkpoints(self._writing, self._all_views)
        await self._writing.rollback()
        return checkpoints

    async def _target(self, checkpoints: dict[str, Checkpoint]) -> int:
        """Where the furthest view is; the head, if none has begun and all are rebuilt."""
        furthest = max(checkpoint.position for checkpoint in checkpoints.values())
        if furthest or len(self._views) < len(self._all_views):
            return furthest
        return (await Store(self._reading).head()).position

    async def _catch_up(self, shadows: Sequence[Shadow]) -> None:
        """Come near to where the live views are."""
        names = ", ".join(shadow.live.name for shadow in shadows)
        for _ in range(ROUNDS):
            target = await self._target(await self._checkpoints())
            behind = target - min(shadow.position for shadow in shadows)
            if behind > 0:
                with self._progress(f"loading {names}", behind) as moved:
                    await self._bring(shadows, target, moved)
            if behind <= NEAR_EVENTS:
                return

    async def _bring(
        self, shadows: Sequence[Shadow], up_to: int, moved: Moved = lambda more: None
    ) -> None:
        """Bring shadows to a position; those that are behind the others catch up first."""
        while behind := [shadow for shadow in shadows if shadow.position < up_to]:
            after = min(shadow.position for shadow in behind)
            stops = [shadow.position for shadow in shadows if shadow.position > after]
            group = [shadow for shadow in behind if shadow.position == after]
            await self._load(group, min([up_to, *stops]), moved)

    async def _load(self, shadows: Sequence[Shadow], up_to: int, moved: Moved) -> None:
        async def commit(position: int) -> None:
            for shadow in shadows:
                await move(self._writing, shadow, position)
            await failpoint("rebuild.before-commit")
            await self._writing.commit()
            for shadow in shadows:
                shadow.position = position
            await failpoint("rebuild.after-commit")

        pages = read_ahead(Store(self._reading), shadows[0].position, up_to)
        async with aclosing(pages):
            await load(self._writing, pages, [shadow.made for shadow in shadows], commit, moved)

    async def _compare(self, shadows: Sequence[Shadow]) -> list[Rebuilt]:
        """Compare with the live views at one position, which goes on while they do."""
        async with held_still(self._writing, self._all_views) as checkpoints:
            await self._bring(shadows, await self._target(checkpoints))
            await self._reading.rollback()
            tables = [table for shadow in shadows for table in (shadow.live, shadow.made)]
            await pin(self._reading, tables)
        compared = [
            await self._compared(shadow, checkpoints[shadow.live.name]) for shadow in shadows
        ]
        await self._reading.rollback()
        return compared

    async def _compared(self, shadow: Shadow, live: Checkpoint) -> Rebuilt:
        if live.version != shadow.live.version:
            return _outcome(shadow, not_compared=f"the view was of version {live.version}")
        if live.position != shadow.position:
            return _outcome(shadow, not_compared=f"the view was at position {live.position}")
        with self._progress(f"comparing {shadow.live.name}", None) as moved:
            difference = await first_difference(self._reading, shadow.live, shadow.made, moved)
        return _outcome(shadow, difference=difference)

    async def _swap(self, tables: Sequence[Shadow], compared: Sequence[Rebuilt]) -> list[Rebuilt]:
        for _ in range(SWAP_ATTEMPTS):
            await self._catch_up(tables)
            async with held_still(self._writing, self._all_views) as checkpoints:
                await self._bring(tables, await self._target(checkpoints))
                await self._reading.rollback()
                swapped = await swap(self._writing, self._reading, tables, checkpoints)
            if swapped:
                return [
                    structs.replace(each, position=table.position, swapped=True)
                    for each, table in zip(compared, tables, strict=True)
                ]
            await asyncio.sleep(SWAP_PAUSE_S)
        names = ", ".join(table.live.name for table in tables)
        raise RebuildRefused(
            f"a long transaction goes on reading {names}: end it, then run this again; all that is"
            " done so far is kept"
        )


def _outcome(
    table: Shadow, *, not_compared: str | None = None, difference: Difference | None = None
) -> Rebuilt:
    return Rebuilt(
        table.live.name, table.position, table.live.version, False, not_compared, difference
    )


@asynccontextmanager
async def rebuilding(
    engine: AsyncEngine,
    all_views: Sequence[Projection[Any]],
    views: Sequence[Projection[Any]],
    progress: Progress,
) -> AsyncIterator[Rebuild]:
    """A rebuild of some of all views, with the account that migrates; one of a view at a time.

    The engine must be disposed of afterwards, whatever happens: it holds the locks. Raises
    RebuildRefused where another is at work on one of the views.
    """
    async with engine.connect() as writing, engine.connect() as reading:
        for connection in (writing, reading):
            await connection.exec_driver_sql(
                f"SET SESSION wait_timeout = {SESSION_S}, lock_wait_timeout = 1"
            )
            await connection.rollback()
        for view in views:
            await _lock(writing, view)
        if not await existing(writing, [REBUILDS.name]):
            await writing.execute(CreateTable(REBUILDS, if_not_exists=True))
        yield Rebuild(writing, reading, all_views, views, progress)


async def _lock(connection: AsyncConnection, view: Projection[Any]) -> None:
    found = await connection.exec_driver_sql(
        "SELECT GET_LOCK(CONCAT(DATABASE(), '.rebuild.', %s), %s)", (view.name, BUSY_S)
    )
    if not found.scalar_one():
        raise RebuildRefused(f"another rebuild of {view.name} is under way: let it end first")
    await connection.rollback()
