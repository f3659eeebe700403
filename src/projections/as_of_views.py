"""Whole views as they were at a position, row after row, from the ledger alone.

Wallets and stock take the memory that the writer takes for them, orders that of a page.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from itertools import islice
from typing import Final
from uuid import UUID

from msgspec import structs
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.core.events import TYPE_OF, OrderCancelled, OrderPlaced, Recorded
from ledger.core.fold import Fold, effective
from ledger.eventlog import snapshots
from ledger.eventlog.codec import recorded
from ledger.eventlog.store import Store
from projections.as_of import (
    AsOfReader,
    effective_events,
    events_of,
    product_then,
    wallet_then,
)
from projections.tables import marks
from projections.views.orders import ORDERS, OrderRow
from projections.views.projection import KeyedProjection, Row
from projections.views.stock import STOCK, ProductAsOf
from projections.views.wallets import WALLETS, WalletAsOf

Moved = Callable[[int], None]
"""Is called with how many more positions were looked at."""

AT_ONCE: Final = 500
DECIDED: Final = 2
"""A placed order and what was decided of it are the first two events of its stream, or later."""


async def wallets(
    connection: AsyncConnection, position: int, moved: Moved
) -> AsyncIterator[WalletAsOf]:
    """Every customer by id."""
    customers = (await fold_at(connection, position, moved)).customers
    async for key, row in _made(connection, WALLETS, customers, position):
        held = structs.replace(row, balance_minor=customers[key].balance_minor)
        yield wallet_then(held, position)


async def stock(
    connection: AsyncConnection, position: int, moved: Moved
) -> AsyncIterator[ProductAsOf]:
    """Every product by id."""
    products = (await fold_at(connection, position, moved)).products
    rules = await AsOfReader(connection).rules(position)
    async for key, row in _made(connection, STOCK, products, position):
        shelf = structs.replace(row, **structs.asdict(products[key]))
        yield product_then(shelf, position, rules)


async def orders(
    connection: AsyncConnection, position: int, moved: Moved
) -> AsyncIterator[OrderRow]:
    """Every order, the first placed first: each page of the ledger tells all but later cancels."""
    after = 0
    async for events in _pages(connection, after, position, moved):
        rows: dict[UUID, OrderRow] = {}
        for event in events:
            if isinstance(event.payload, OrderPlaced) or ORDERS.key(event) in rows:
                rows[event.stream_id] = ORDERS.apply(rows.get(event.stream_id), event)
        after = events[-1].position
        for cancelled in await _cancelled(connection, list(rows), after, position):
            rows[cancelled.stream_id] = ORDERS.apply(rows[cancelled.stream_id], cancelled)
        for row in rows.values():
            yield structs.replace(row, position=position)


async def fold_at(connection: AsyncConnection, position: int, moved: Moved) -> Fold:
    """The fold at a position, without orders."""
    snapshot = await snapshots.nearest(connection, position)
    fold = Fold(snapshot.customers, snapshot.products) if snapshot else Fold()
    after = snapshot.position if snapshot else 0
    moved(after)
    async for events in _pages(connection, after, position, moved):
        for event in events:
            fold.apply(event.stream_id, event.payload)
        fold.orders.clear()
    return fold


async def _pages(
    connection: AsyncConnection, after: int, position: int, moved: Moved
) -> AsyncIterator[list[Recorded]]:
    """The events that took effect after a position and up to another.

    One more is read, which may be the refusal of the last.
    """
    store = Store(connection)
    head = await store.head()
    async for page in store.pages(after, min(position + 1, head.position)):
        events = effective([recorded(record) for record in page])
        if within := [event for event in events if event.position <= position]:
            yield within
        moved(len(page))


async def _cancelled(
    connection: AsyncConnection, order_ids: Sequence[UUID], after: int, position: int
) -> list[Recorded]:
    """Those events after a position and up to another that cancelled one of these orders.

    Most orders have no event but their first two, and then the index alone says so.
    """
    found: list[Recorded] = []
    for some in _some(order_ids):
        found += await _events(
            connection,
            f"e.stream_id IN ({marks(some)}) AND e.version > {DECIDED} AND e.type = %s"
            " AND e.position > %s AND e.position <= %s",
            *(order_id.bytes for order_id in some),
            TYPE_OF[OrderCancelled],
            after,
            position,
        )
    return found


async def _made(
    connection: AsyncConnection, view: KeyedProjection[Row], keys: Iterable[UUID], position: int
) -> AsyncIterator[tuple[UUID, Row]]:
    """The rows of these keys by key, as they were when they were made."""
    for some in _some(sorted(keys, key=lambda key: key.bytes)):
        made = await _events(
            connection,
            f"e.stream_id IN ({marks(some)}) AND e.type = %s AND e.position <= %s",
            *(key.bytes for key in some),
            TYPE_OF[view.creates],
            position,
        )
        events = {event.stream_id: event for event in made}
        for key in some:
            yield key, view.apply(None, events[key])


async def _events(connection: AsyncConnection, where: str, *parameters: object) -> list[Recorded]:
    statement = effective_events("events e", where)
    return events_of((await connection.exec_driver_sql(statement, parameters)).all())


def _some(keys: Iterable[UUID]) -> Iterable[list[UUID]]:
    left = iter(keys)
    return iter(lambda: list(islice(left, AT_ONCE)), [])
