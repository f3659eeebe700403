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


# What an earlier release had made: a stock view of version 1 with its own columns, an index less,
# and no identity of the ledger. The rows are those that it had made.
EARLIER_RELEASE: Final = (
    """CREATE TABLE earlier (
        product_id BINARY(16) NOT NULL PRIMARY KEY COMMENT 'the product',
        name VARCHAR(200) NOT NULL COMMENT 'name of the product',
        description VARCHAR(2000) NOT NULL COMMENT 'what it is',
        base_price_minor BIGINT NOT NULL,
        current_price_minor BIGINT NOT NULL,
        stock BIGINT NOT NULL COMMENT 'units left',
        initial_stock BIGINT NOT NULL COMMENT 'units after the last receipt',
        updated_at DATETIME(6) NOT NULL COMMENT 'recorded time of the last change',
        position BIGINT UNSIGNED NOT NULL COMMENT 'position of the event that last changed it'
    )""",
    "INSERT INTO earlier SELECT product_id, name, description, base_price_minor,"
    " current_price_minor, stock, initial_stock, updated_at, position FROM stock",
    "UPDATE checkpoints SET view_version = 1 WHERE name = 'stock'",
    "DROP TABLE stock",
    "RENAME TABLE earlier TO stock",
    "DROP INDEX orders_customer_product ON orders",
    "DROP TABLE ledger_identity",
    "UPDATE ledger_migrations SET version_num = '0004'",
)

NEXT: Final = tuple(_next_orders() if view is ORDERS else view for view in PROJECTIONS)
"""The registry of a next release, which changed the orders view."""
