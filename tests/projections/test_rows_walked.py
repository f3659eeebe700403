"""Every documented filter is served by an index: what a page costs does not grow with the table."""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from ledger.eventlog.records import Record
from ledger.runtime.database import insert_rows
from projections.queries import Feed, FeedFilter, Views
from projections.views.orders import ORDERS, OrderRow
from projections.views.stock import STOCK, StockRow
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


def shelf(position: int) -> StockRow:
    """The product listed at a position."""
    key = UUID(int=position * 7919 % 1_000_003)
    return StockRow(key, "pen", "", 1, 1, 1, 1, NOON, position, ROWS)


def recorded(position: int) -> Record:
    """The event at a position: all but each third are of the first customer."""
    other, turns = position % 3 == 0, (position - 1) // 3
    stream_id = UUID(int=10**6 + position).bytes if other else CUSTOMERS[0].bytes
    version = 1 if other else turns * 2 + position % 3
    type_ = "order.failed" if position in RARE else "wallet.credited"
    event_id = UUID(int=2 * 10**6 + position).bytes
    return Record(
        position, event_id, stream_id, version, type_, 1, 0, 5, 6, b"{}", b"{}", bytes(32)
    )


RECORDS = [recorded(position) for position in range(1, ROWS + 1)]


@pytest.fixture(scope="module")
async def filled(servers: Servers) -> AsyncIterator[Ledger]:
    """A ledger with thousands of rows in its views and in `events`, most of them alike."""
    tables = (
        ("orders", ORDERS.columns, ORDER_ROWS),
        ("stock", STOCK.columns, [shelf(position) for position in range(1, ROWS + 1)]),
        ("events", Record.__struct_fields__, RECORDS),
    )
    async with running_ledger(await make_ledger(servers)) as ledger:
        async with ledger.connection("migrate") as connection:
            for name, columns, rows in tables:
                await insert_rows(connection, f"INSERT INTO {name} ({', '.join(columns)})", rows)
            await connection.commit()
        yield ledger


@pytest.fixture
async def engine(filled: Ledger) -> AsyncIterator[AsyncEngine]:
    """One connection of the API's account, whose counters tell what a query read."""
    engine = filled.make_engine("api", pool_size=1, autocommit=True)
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


async def test_a_page_of_the_catalogue_is_read_by_an_index(engine: AsyncEngine) -> None:
    views = Views(engine)
    for start in (0, ROWS // 2, ROWS - 5):
        after = shelf(start).product_id if start else None
        products, read = await rows_read(engine, partial(views.products, after, LIMIT))
        end = min(start + LIMIT, ROWS)
        assert products == [shelf(position) for position in range(start + 1, end + 1)]
        assert read <= 5 * LIMIT


async def test_events_of_a_stream_are_read_by_an_index(engine: AsyncEngine) -> None:
    feed = Feed(engine)
    for subject, after in itertools.product(
        (CUSTOMERS[0], CUSTOMERS[1], UUID(int=10**6 + 300)), (0, 299, ROWS // 2, ROWS - 5, ROWS)
    ):
        of_stream = [r.position for r in RECORDS if r.stream_id == subject.bytes]
        events, read = await events_read(engine, feed, after, FeedFilter(subject=subject))
        assert events == [position for position in of_stream if position > after][:LIMIT]
        # The version at the position is found by halving.
        assert read <= 5 * LIMIT


async def test_events_of_types_are_looked_for_in_so_many_positions_of_a_page(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projections.queries.MAX_SCAN", 100)
    feed = Feed(engine)
    for subject, after in itertools.product((None, CUSTOMERS[0]), (0, 17, 4_950)):
        only = FeedFilter(("order.completed", "order.failed"), subject)
        events, read = await events_read(engine, feed, after, only)
        assert events in ([], [17], [29], [17, 29], [5_000])
        assert read <= 100 + 5 * LIMIT


async def events_read(
    engine: AsyncEngine, feed: Feed, after: int, only: FeedFilter
) -> tuple[list[int], int]:
    """The positions of a page of the feed, and how many rows were read for it."""

    async def query() -> tuple[list[int], int]:
        page = await feed.page(after, LIMIT, only)
        return [event.position for event in page.events], page.head

    return await rows_read(engine, query)
