"""The past: a customer, a product or an order as it was at a position, from the ledger alone.

Little is read for it: the event that made the thing, its entry in the nearest snapshot, and of what
came between that and the position only the events that concern it.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

from msgspec import Struct, structs
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.core.events import (
    TYPE_OF,
    OrderCancelled,
    OrderCompleted,
    OrderFailed,
    OrderPlaced,
    Recorded,
    SubmissionRefused,
)
from ledger.core.pricing import CURRENT_RULES, RULES, Rules, unit_price_minor
from ledger.core.state import Customer, Product
from ledger.eventlog import snapshots
from ledger.eventlog.codec import origin_of, recorded
from ledger.eventlog.encryption import REGISTERED
from ledger.eventlog.reader import MAX_POSITION
from ledger.eventlog.records import Record
from ledger.runtime.database import DATABASE_ERRORS
from ledger.runtime.timestamps import now_us
from projections.queries import ViewsUnavailable
from projections.views.orders import ORDERS, OrderRow
from projections.views.projection import KeyedProjection, Row
from projections.views.stock import STOCK, ProductAsOf, StockRow
from projections.views.wallets import WALLETS, WalletAsOf, WalletRow

WINDOW: Final = 5_000
"""Positions that one statement looks at: so none takes long, nor does what it finds."""
_COLUMNS: Final = Record.__struct_fields__
_OF_ORDERS: Final = tuple(
    TYPE_OF[payload] for payload in (OrderPlaced, OrderCompleted, OrderFailed, OrderCancelled)
)
_MOVES: Final = f"'{TYPE_OF[OrderCompleted]}', '{TYPE_OF[OrderCancelled]}'"


class PositionBeyondHead(Exception):
    """What is asked of the ledger lies after its end."""

    def __init__(self, what: str, head: int) -> None:
        super().__init__(f"{what} lies ahead: the ledger ends at position {head}")
        self.head = head


class AsOfPosition(Struct, frozen=True):
    """A place in the ledger; unless it is `final`, more may yet be recorded for the time asked."""

    position: int
    final: bool


@asynccontextmanager
async def open_as_of(engine: AsyncEngine, timeout_s: float) -> AsyncIterator["AsOfReader"]:
    """The history on a connection of its own; raises ViewsUnavailable, after `timeout_s` too."""
    try:
        async with asyncio.timeout(timeout_s), engine.connect() as connection:
            yield AsOfReader(connection)
    except DATABASE_ERRORS as error:
        raise ViewsUnavailable(f"the database did not answer: {error}") from error


class AsOfReader:
    """What was, as far as the ledger tells; every answer stays true for ever."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def at(self, position: int) -> AsOfPosition:
        """This very position; raises PositionBeyondHead."""
        head, _ = await self._before(MAX_POSITION)
        if position > head:
            raise PositionBeyondHead(f"position {position}", head)
        return AsOfPosition(position, final=True)

    async def at_time(self, time_us: int) -> AsOfPosition:
        """The last position that was recorded at a time or before it, 0 if there is none.

        Recorded times never fall, so the time of the head tells whether that can still change.
        Raises PositionBeyondHead for a time that has not come yet.
        """
        head, head_us = await self._before(MAX_POSITION)
        if time_us > max(head_us, now_us()):
            raise PositionBeyondHead("that time", head)
        if head_us <= time_us:
            return AsOfPosition(head, final=False)
        low, high = 0, head
        while high - low > 1:
            middle = (low + high) // 2
            _, recorded_at_us = await self._before(middle)
            low, high = (middle, high) if recorded_at_us <= time_us else (low, middle)
        return AsOfPosition(low, final=True)

    async def _before(self, position: int) -> tuple[int, int]:
        """The last position up to another one, with its recorded time."""
        rows = await self._rows(
            "SELECT position, recorded_at_us FROM events WHERE position <= %s"
            " ORDER BY position DESC LIMIT 1",
            position,
        )
        return rows[0] if rows else (0, 0)

    async def wallet(self, customer_id: UUID, position: int) -> WalletAsOf | None:
        """A customer, if there was one by then."""
        made = await self._made(WALLETS, customer_id, position)
        if made is None:
            return None
        row, after = WALLETS.apply(None, made), made.position
        saved = await snapshots.entry(self._connection, customer_id, after, position)
        if saved and isinstance(saved[1], Customer):
            row, after = structs.replace(row, balance_minor=saved[1].balance_minor), saved[0]
        row = await self._changed(WALLETS, row, customer_id, after, position)
        return wallet_then(row, position)

    async def product(self, product_id: UUID, position: int) -> ProductAsOf | None:
        """A product with its price, if it was listed by then."""
        made = await self._made(STOCK, product_id, position)
        if made is None:
            return None
        row, after = STOCK.apply(None, made), made.position
        saved = await snapshots.entry(self._connection, product_id, after, position)
        if saved and isinstance(saved[1], Product):
            row, after = structs.replace(row, **structs.asdict(saved[1])), saved[0]
        row = await self._changed(STOCK, row, product_id, after, position)
        return product_then(row, position, await self.rules(position))

    async def order(self, order_id: UUID, position: int) -> OrderRow | None:
        """An order, if it was placed by then; PENDING if that was not decided yet."""
        marks = ", ".join(["%s"] * len(_OF_ORDERS))
        events = await self._effective(
            "events e",
            f"e.stream_id = %s AND e.position <= %s AND e.type IN ({marks}) ORDER BY e.version",
            order_id.bytes,
            position,
            *_OF_ORDERS,
        )
        row: OrderRow | None = None
        for event in events:
            row = ORDERS.apply(row, event)
        return row and structs.replace(row, position=position)

    async def rules(self, position: int) -> Rules:
        """The rules in force at a position: those that the last decision up to it was made by."""
        rows = await self._rows(
            f"SELECT {', '.join(_COLUMNS)} FROM events WHERE position <= %s AND position > %s"
            " AND cause_position > 0 ORDER BY position DESC LIMIT 1",
            position,
            position - WINDOW,
        )
        return RULES[origin_of(Record(*rows[0])).rules] if rows else CURRENT_RULES

    async def _made(self, view: KeyedProjection[Row], key: UUID, position: int) -> Recorded | None:
        """The event that made a row of a view, if it was there by then."""
        events = await self._effective(
            "events e",
            "e.stream_id = %s AND e.position <= %s AND e.type = %s ORDER BY e.version LIMIT 1",
            key.bytes,
            position,
            TYPE_OF[view.creates],
        )
        return events[0] if events else None

    async def _changed(
        self, view: KeyedProjection[Row], row: Row, key: UUID, after: int, position: int
    ) -> Row:
        """The row after what happened to it between two positions."""
        for start in range(after, position, WINDOW):
            events = await self._effective(
                "events e FORCE INDEX (PRIMARY)",
                "e.position > %s AND e.position <= %s AND (e.stream_id = %s"
                f" OR (e.type IN ({_MOVES}) AND INSTR(e.data, %s) > 0)) ORDER BY e.position",
                start,
                min(start + WINDOW, position),
                key.bytes,
                str(key).encode(),
            )
            for event in events:
                if view.key(event) == key:
                    row = view.apply(row, event)
        return row

    async def _effective(self, table: str, where: str, *parameters: object) -> list[Recorded]:
        """The events of a condition, but for submissions that were refused right after it."""
        return events_of(await self._rows(effective_events(table, where), *parameters))

    async def _rows(self, statement: str, *parameters: object) -> Sequence[Any]:
        return (await self._connection.exec_driver_sql(statement, parameters)).all()


def effective_events(table: str, where: str) -> str:
    """The query of events, of a table that is called `e`, which no refusal follows."""
    columns = ", ".join(f"e.{name}" for name in _COLUMNS)
    return (
        f"SELECT k.sealing_key, {columns} FROM {table} LEFT JOIN events r"
        " ON r.position = e.position + 1 AND r.cause_position = e.position"
        f" AND r.type = '{TYPE_OF[SubmissionRefused]}'"
        f" LEFT JOIN customer_keys k ON k.customer_id = e.stream_id AND e.type = '{REGISTERED}'"
        f" WHERE r.position IS NULL AND {where}"
    )


def events_of(rows: Sequence[Any]) -> list[Recorded]:
    """The events of the rows of such a query; a name that was erased since is not in them."""
    records = [(key, Record(*columns)) for key, *columns in rows]
    return [recorded(record, {record.stream_id: key}) for key, record in records]


def wallet_then(row: WalletRow, position: int) -> WalletAsOf:
    """The row without what is known of now only."""
    return WalletAsOf(row.customer_id, row.username, row.balance_minor, row.created_at, position)


def product_then(row: StockRow, position: int, rules: Rules) -> ProductAsOf:
    """The row without what is known of now only, and with the price of then."""
    price_minor = unit_price_minor(row.base_price_minor, row.stock, row.initial_stock, rules)
    return ProductAsOf(
        row.product_id,
        row.name,
        row.description,
        row.base_price_minor,
        price_minor,
        row.stock,
        row.initial_stock,
        position,
    )
