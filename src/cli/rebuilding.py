"""The work of `ledger rebuild`."""

import time
from collections.abc import Collection, Sequence

from msgspec import Struct

from cli.progress import progress
from cli.settings import Settings
from ledger.runtime.database import make_engine
from projections.rebuild import Rebuild, Rebuilt, open_rebuild
from projections.table_swap import SESSION_S
from projections.views.registry import PROJECTIONS


class Wish(Struct, frozen=True):
    """What is asked for: views, and what is to be done with them instead of rebuilding them."""

    views: Collection[str]
    undo: bool
    drop_old: bool
    repair: bool
    restart: bool


class Done(Struct, frozen=True):
    """What came of it, view by view; or the tables that were dropped."""

    views: Sequence[Rebuilt]
    dropped: Sequence[str]
    seconds: float


async def work(given: Settings, wish: Wish) -> Done:
    """Do what is asked for; raises RebuildRefused."""
    began = time.perf_counter()
    engine = make_engine(given.db_url("migrate"), given.db_ca_file, read_timeout_s=SESSION_S)
    views = [view for view in PROJECTIONS if view.name in wish.views]
    try:
        async with open_rebuild(engine, PROJECTIONS, views, progress) as rebuild:
            outcomes, dropped = await _do(rebuild, wish)
    finally:
        await engine.dispose()
    return Done(outcomes, dropped, round(time.perf_counter() - began, 3))


async def _do(rebuild: Rebuild, wish: Wish) -> tuple[Sequence[Rebuilt], Sequence[str]]:
    if wish.drop_old:
        return (), sorted(await rebuild.drop_old())
    if wish.undo:
        return await rebuild.undo(), ()
    return await rebuild.rebuild(restart=wish.restart, repair=wish.repair), ()
