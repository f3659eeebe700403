"""Rebuilds inside the test's own process, and a next version of a view."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any, Final

from msgspec.structs import astuple
from sqlalchemy import Column, Integer, MetaData

from ledger.core.events import Recorded
from ledger.runtime.database import make_engine
from projections.rebuild import Rebuild, Rebuilt, open_rebuild
from projections.views.orders import ORDERS, OrderRow
from projections.views.projection import Projection
from projections.views.registry import PROJECTIONS
from tests.ledger.pipeline import Ledger


@contextmanager
def quietly(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show no progress."""
    yield lambda more: None


@asynccontextmanager
async def opened(
    ledger: Ledger, *names: str, all_views: Sequence[Projection[Any]] = PROJECTIONS
) -> AsyncIterator[Rebuild]:
    """A rebuild of the views with these names, or of all."""
    engine = make_engine(ledger.settings.db_url("migrate"))
    views = [view for view in all_views if not names or view.name in names]
    try:
        async with open_rebuild(engine, all_views, views, quietly) as rebuild:
            yield rebuild
    finally:
        await engine.dispose()


async def rebuilt(ledger: Ledger, *names: str, **options: bool) -> list[Rebuilt]:
    """What came of rebuilding the views with these names, or all."""
    async with opened(ledger, *names) as rebuild:
        return await rebuild.rebuild(**options)


async def tables(ledger: Ledger) -> set[str]:
    """The tables that rebuilds left beside the views."""
    found = await ledger.rows("SHOW TABLES")
    names = {name for (name,) in found}
    return {name for name in names if name.endswith(("_shadow", "_old", "_next"))}


class NextOrderRow(OrderRow, frozen=True, gc=False):
    """An order as the next version of the view has it."""

    doubled: int


def _apply(row: NextOrderRow | None, event: Recorded) -> NextOrderRow:
    before = None if row is None else OrderRow(*astuple(row)[:-1])
    after = ORDERS.apply(before, event)
    return NextOrderRow(*astuple(after), 2 * after.quantity)


def _next_orders() -> Projection[Any]:
    table = ORDERS.table.to_metadata(MetaData())
    table.append_column(Column("doubled", Integer, nullable=False))
    return replace(ORDERS, version=2, table=table, row=NextOrderRow, apply=_apply)  # type: ignore[arg-type]


NEXT: Final = tuple(_next_orders() if view is ORDERS else view for view in PROJECTIONS)
"""The registry of a next release, which changed the orders view."""
