"""What the API reads: rows of the views, each as of a position, and the ledger as CloudEvents."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.core.decider import CustomerState, ProductState, Status
from ledger.eventlog.codec import encode_recorded, source_of
from ledger.eventlog.reader import EventReader, IdentifiedHead, NoIdentity, RecordWithCause
from ledger.runtime.database import DATABASE_ERRORS, placeholders
from projections.views.orders import ORDERS, OrderRow
from projections.views.projection import KeyedProjection, Projection, Row, from_columns
from projections.views.stock import STOCK, StockRow
from projections.views.wallets import WALLETS

QUERY_TIMEOUT_S: Final = 1.5
# The index of `orders` for a filter by customer, and by product; without either, by status. It is
# named in the query: by its statistics alone the optimiser may walk along another one.
_ORDER_INDEXES: Final = {
    (False, False): "orders_status",
    (True, False): "orders_customer",
    (False, True): "orders_product",
    (True, True): "orders_customer_product",
}
# Positions that one page looks at, however few of them its filter lets through.
MAX_SCAN: Final = 10_000


class ViewsUnavailable(Exception):
    """The database did not answer in time."""


class Views:
    """The views, through the account of the API. Every method raises ViewsUnavailable."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def row(self, view: KeyedProjection[Row], key: UUID) -> tuple[Row | None, int]:
        """The row with a key, if any, and the view's checkpoint, by one statement."""
        columns = ", ".join(f"v.{name}" for name in view.columns)
        rows = await self._rows_with_position(
            f"SELECT c.position, {columns} FROM checkpoints c"
            f" LEFT JOIN {view.name} v ON v.{view.key_column} = %s WHERE c.name = %s",
            (key.bytes, view.name),
        )
        position, first, *_ = rows[0]
        return (None if first is None else from_columns(view.row, rows[0][1:])), position

    async def existing_orders(self, order_ids: Sequence[UUID]) -> set[UUID]:
        """The ids that are orders of the view."""
        if not order_ids:
            return set()
        rows = await fetch(
            self._engine,
            f"SELECT order_id FROM orders WHERE order_id IN ({placeholders(order_ids)})",
            tuple(order_id.bytes for order_id in order_ids),
        )
        return {UUID(bytes=order_id) for (order_id,) in rows}

    async def orders_by_id(self, order_ids: Sequence[UUID]) -> tuple[dict[UUID, OrderRow], int]:
        """The orders of the view with these ids, by id."""
        ids = tuple(order_id.bytes for order_id in order_ids)
        rows, position = await self._page(
            ORDERS, f"order_id IN ({placeholders(order_ids)})", "order_id", (*ids, len(ids))
        )
        return {row.order_id: row for row in rows}, position

    async def customer_and_product(
        self, customer_id: UUID, product_id: UUID
    ) -> tuple[tuple[CustomerState | None, ProductState | None], int]:
        """A customer and a product as `decide` takes them, as of one position."""
        rows = await fetch(
            self._engine,
            "SELECT c.position, w.balance_minor, s.base_price_minor, s.stock, s.initial_stock"
            " FROM checkpoints c JOIN checkpoints d ON d.position = c.position"
            " LEFT JOIN wallets w ON w.customer_id = %s LEFT JOIN stock s ON s.product_id = %s"
            " WHERE c.name = %s AND d.name = %s",
            (customer_id.bytes, product_id.bytes, WALLETS.name, STOCK.name),
        )
        if not rows:
            raise ViewsUnavailable("wallets and stock are at different positions")
        position, balance, price, stock, initial_stock = rows[0]
        customer = None if balance is None else CustomerState(balance)
        product = None if price is None else ProductState(price, stock, initial_stock)
        return (customer, product), position

    async def position(self) -> int:
        """The position that all views have reached."""
        rows = await self._rows_with_position("SELECT MIN(position) FROM checkpoints", ())
        return int(rows[0][0])

    async def products(self, after: UUID | None, limit: int) -> tuple[list[StockRow] | None, int]:
        """A page of products as they were listed, after one of them; None if there is none such."""
        after_position = 0
        if after:
            row, position = await self.row(STOCK, after)
            if row is None:
                return None, position
            after_position = row.listed_position
        rows, position = await self._page(
            STOCK, "listed_position > %s", "listed_position", (after_position, limit)
        )
        return sorted(rows, key=lambda row: row.listed_position), position

    async def orders(
        self,
        *,
        customer_id: UUID | None = None,
        product_id: UUID | None = None,
        status: str | None = None,
        after: int | None = None,
        limit: int,
    ) -> tuple[list[OrderRow], int]:
        """A page of orders, newest first, before the `placed_position` given as `after`."""
        conditions: dict[str, object] = {}
        if customer_id:
            conditions["customer_id = %s"] = customer_id.bytes
        if product_id:
            conditions["product_id = %s"] = product_id.bytes
        # The indexes have the status before the position. Where any status will do, the newest of
        # each are looked up, rather than to have two more indexes that each order is written to.
        statuses: list[str | None] = [status] if status else [*Status.__members__]
        hint = f"FORCE INDEX ({_ORDER_INDEXES[customer_id is not None, product_id is not None]})"
        if not conditions and not status:
            statuses, hint = [None], ""  # in the order of orders_placed
        looks: list[str] = []
        parameters: list[object] = []
        for status_ in statuses:
            given = {**conditions, "status = %s": status_, "placed_position < %s": after}
            given = {clause: value for clause, value in given.items() if value is not None}
            looks.append(
                f"(SELECT order_id, placed_position FROM orders {hint}"
                f" WHERE {' AND '.join(given) or 'TRUE'} ORDER BY placed_position DESC LIMIT %s)"
            )
            parameters += (*given.values(), limit)
        found, position = await self._found(
            ORDERS,
            f"SELECT {', '.join(f'o.{name}' for name in ORDERS.columns)}"
            f" FROM ({' UNION ALL '.join(looks)} ORDER BY placed_position DESC LIMIT %s) k"
            " STRAIGHT_JOIN orders o ON o.order_id = k.order_id",
            (*parameters, limit),
        )
        return sorted(found, key=lambda row: -row.placed_position), position

    async def _page(
        self, view: Projection[Row], where: str, order: str, parameters: tuple[Any, ...]
    ) -> tuple[list[Row], int]:
        """The rows of a condition, in some order, and the view's checkpoint."""
        return await self._found(
            view,
            f"SELECT {', '.join(view.columns)} FROM {view.name}"
            f" WHERE {where} ORDER BY {order} LIMIT %s",
            parameters,
        )

    async def _found(
        self, view: Projection[Row], select: str, parameters: tuple[Any, ...]
    ) -> tuple[list[Row], int]:
        """The rows that a SELECT of the view's columns finds, and the view's checkpoint."""
        columns = ", ".join(f"v.{name}" for name in view.columns)
        rows = await self._rows_with_position(
            f"SELECT c.position, {columns} FROM checkpoints c"
            f" LEFT JOIN ({select}) v ON TRUE WHERE c.name = %s",
            (*parameters, view.name),
        )
        # Without any row the LEFT JOIN gives one of NULLs, for the sake of the position.
        present = [from_columns(view.row, row[1:]) for row in rows if row[1] is not None]
        return present, rows[0][0]

    async def _rows_with_position(
        self, statement: str, parameters: tuple[Any, ...]
    ) -> list[tuple[Any, ...]]:
        rows = await fetch(self._engine, statement, parameters)
        if not rows or rows[0][0] is None:
            raise ViewsUnavailable("the views have no checkpoint: run `ledger migrate`")
        return rows


class FeedEvent(Struct, frozen=True, gc=False):
    """One event: its position, its type, and itself as a CloudEvent in JSON."""

    position: int
    type: str
    body: bytes


class FeedFilter(Struct, frozen=True):
    """Which events are given out: of these types, if any are named, and of one stream, if given."""

    types: tuple[str, ...] = ()
    subject: UUID | None = None


class FeedPage(Struct, frozen=True):
    """Events in ledger order; all up to `scanned_to` were looked at, `head` is the ledger's end."""

    events: list[FeedEvent]
    scanned_to: int
    head: int
    ledger_id: UUID

    @property
    def is_last(self) -> bool:
        """True if the ledger has nothing after it yet."""
        return self.scanned_to >= self.head


EVERYTHING: Final = FeedFilter()


class Feed:
    """The ledger, through the account of the API. Every method raises ViewsUnavailable."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def page(self, after: int, limit: int, only: FeedFilter = EVERYTHING) -> FeedPage:
        """At most `limit` events after a position, of those that a filter lets through."""
        async with connected(self._engine) as connection:
            scan = await EventReader(connection).scan(
                after, MAX_SCAN, limit, stream_id=only.subject, types=only.types
            )
        head = scan.head
        events = _feed_events(scan.records, head.ledger_id)
        return FeedPage(events, scan.scanned_to, head.position, head.ledger_id)

    async def head(self) -> IdentifiedHead:
        """Which ledger this is, and where it ends."""
        async with connected(self._engine) as connection:
            return await EventReader(connection).identified_head()

    async def history(self, stream_id: UUID, after: int, up_to: int, limit: int) -> list[FeedEvent]:
        """At most `limit` events of one stream, after a position and up to another."""
        async with connected(self._engine) as connection:
            reader = EventReader(connection)
            found = await reader.with_causes(after, up_to, limit, stream_id=stream_id)
            head = await reader.identified_head()
        return _feed_events(found, head.ledger_id)


def _feed_events(found: Iterable[RecordWithCause], ledger_id: UUID) -> list[FeedEvent]:
    source = source_of(ledger_id)
    return [
        FeedEvent(
            each.record.position,
            each.record.type,
            encode_recorded(each.record, each.cause_id, source),
        )
        for each in found
    ]


async def fetch(
    engine: AsyncEngine,
    statement: str,
    parameters: tuple[Any, ...],
    timeout_s: float = QUERY_TIMEOUT_S,
) -> list[tuple[Any, ...]]:
    """The rows of one statement; raises ViewsUnavailable within about `timeout_s`."""
    async with connected(engine, timeout_s) as connection:
        found = await connection.exec_driver_sql(statement, parameters)
        return [tuple(row) for row in found]


@asynccontextmanager
async def connected(
    engine: AsyncEngine, timeout_s: float = QUERY_TIMEOUT_S
) -> AsyncIterator[AsyncConnection]:
    """A connection; raises ViewsUnavailable if the database fails or the block takes longer."""
    try:
        async with asyncio.timeout(timeout_s), engine.connect() as connection:
            yield connection
    except DATABASE_ERRORS as error:
        raise ViewsUnavailable(f"the database did not answer: {error}") from error
    except NoIdentity as error:
        raise ViewsUnavailable(str(error)) from error
