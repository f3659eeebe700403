"""Every documented filter is served by an index: what a page costs does not grow with the table."""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from ledger.runtime.database import insert_rows, make_engine
from projections.queries import Views
from projections.views.orders import ORDERS, OrderRow
from tests.harness import make_ledger
from tests.ledger.pipeline import Ledger, running_ledger
from tests.private_servers import Servers

T = TypeVar("T")

ROWS = 6_000
LIMIT = 10
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
# Nearly all orders are of the first customer, of the first product and COMPLETED.
CUSTOMERS = [UUID(int=0xA0 + n) for n in range(3)]
PRODUCTS = [UUID(int=0xB0 + n) for n in range(3)]
RARE = {17: "FAILED", 29: "CANCELLED", 5_000: "PENDING"}


def skewed(position: int) -> OrderRow:
    """The order placed at a position; the rare ones are old, where a walk comes last."""
    customer = CUSTOMERS[1] if position % 1_900 == 3 else CUSTOMERS[0]
    product = PRODUCTS[1] if position % 1_700 in (3, 4) else PRODUCTS[0]
    status = RARE.get(position, "COMPLETED")
    key = UUID(int=position * 7919 % 1_000_003)
    return OrderRow(
        key, customer, product, 1, status, None, None, None, NOON, NOON, position, position
    )


ORDER_ROWS = [skewed(position) for position in range(1, ROWS + 1)]


@pytest.fixture(scope="module")
async def filled(servers: Servers) -> AsyncIterator[Ledger]:
    """A ledger whose view of orders has thousands of rows, most of them alike."""
    async with running_ledger(await make_ledger(servers)) as ledger:
        async with ledger.connection("migrate") as connection:
            insert = f"INSERT INTO orders ({', '.join(ORDERS.columns)})"
            await insert_rows(connection, insert, ORDER_ROWS)
            await connection.commit()
        yield ledger


@pytest.fixture
async def engine(filled: Ledger) -> AsyncIterator[AsyncEngine]:
    """One connection of the API's account, whose counters tell what a query read."""
    engine = make_engine(filled.settings.db_url("api"), pool_size=1, autocommit=True)
    yield engine
    await engine.dispose()


async def rows_read(
    engine: AsyncEngine, query: Callable[[], Awaitable[tuple[T, int]]]
) -> tuple[T, int]:
    """What a query finds, and how many rows and entries of indexes the server read for it."""

    async def count() -> int:
        async with engine.connect() as connection:
            found = await connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read%%'")
            return sum(int(value) for _, value in found)

    before = await count()
    # The counting itself reads as well.
    own = await count() - before
    before = await count()
    answer, _ = await query()
    return answer, await count() - before - own


@pytest.mark.parametrize("customer_id", [None, *CUSTOMERS])
async def test_orders_of_any_filters_are_read_by_an_index(
    engine: AsyncEngine, customer_id: UUID | None
) -> None:
    views = Views(engine)
    statuses = (None, "COMPLETED", "FAILED", "PENDING", "CANCELLED")
    for product_id, status, after in itertools.product(
        (None, *PRODUCTS), statuses, (None, ROWS // 2, 2)
    ):
        wanted = {"customer_id": customer_id, "product_id": product_id, "status": status}
        expected = [
            row
            for row in reversed(ORDER_ROWS)
            if all(value in (None, getattr(row, name)) for name, value in wanted.items())
            and (after is None or row.placed_position < after)
        ]
        orders, read = await rows_read(
            engine, partial(views.orders, **wanted, after=after, limit=LIMIT)
        )
        assert orders == expected[:LIMIT]
        # Of each of four statuses a page of entries is read, sorted and looked up.
        assert read <= 20 * LIMIT, (wanted, after)
