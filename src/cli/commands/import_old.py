"""`ledger import-old`: customers, products and orders of the database of the API before this one.

Balances and stock are brought over as they are, orders as history that moves nothing: the old
database does not say what was paid.
"""

import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, cast
from uuid import UUID, uuid5

import typer
from msgspec import UNSET, Struct, field
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncConnection

from cli import connections, console
from cli.export import ImportRefused
from cli.export.importer import fence_off_writers, refuse_writers
from cli.settings import Settings
from ledger.core.decider import Fold
from ledger.core.events import (
    MAX_AMOUNT_MINOR,
    MAX_DESCRIPTION,
    MAX_NAME,
    MAX_QUANTITY,
    MAX_STOCK,
    MAX_TIME_US,
    MAX_USERNAME,
    TYPE_OF,
    CustomerRegistered,
    OrderHistory,
    OrderPlaced,
    ProductListed,
)
from ledger.core.money import to_amount, to_minor
from ledger.core.names import BadText, clean_description, clean_name
from ledger.eventlog.codec import decode_submitted
from ledger.eventlog.reader import EventReader
from ledger.eventlog.records import ChainCheck, Submitted
from ledger.eventlog.snapshots import LedgerState, load
from ledger.eventlog.store import Fenced
from ledger.runtime.database import DATABASE_ERRORS, make_engine, refuse_unsafe
from ledger.runtime.timestamps import format_us, now_us, to_us
from ledger.writer import BATCH_EVENTS, Clock, ClockWrong, append_new

# The events have ids made of those of the rows, so that none is appended twice.
NAMESPACE: Final = UUID("5f0c0b0e-6a0d-5c39-8d1c-6c1f5b1f7a52")
META: Final = b'{"source":"/import-old"}'

# The old tables in the order in which they are read, each with its columns, the id first.
COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "products": ("product_id", "name", "description", "base_price", "stock", "initial_stock"),
    "customers": ("customer_id", "username", "wallet_balance"),
    "orders": (
        *("order_id", "product_id", "customer_id", "quantity"),
        *("status", "created_at", "updated_at"),
    ),
}
# Columns that may be missing or NULL, and what stands for them.
DEFAULTS: Final[Mapping[str, str]] = {"description": "", "quantity": "1"}

# One SELECT gives out a whole table, and meanwhile another connection reads or writes the ledger.
READ_TIMEOUT_S: Final = 6 * 3600
MAX_SHOWN: Final = 20
MAX_CHARACTERS: Final = 60

# Stricter than UUID(), so that `refuse_repeated_ids` has the database compare what this reads.
is_id: Final = re.compile(
    r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE
).fullmatch
Value = TypeVar("Value")


class BadOldData(Exception):
    """The old database can't be read, or has rows that can't be brought over: `rows` says which."""

    def __init__(self, message: str, rows: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.rows = rows


class BadRow(Exception):
    """A row can't be brought over; the message names table, id, column and remedy."""


class Findings(Struct):
    """What is wrong in one way: how often, and the first MAX_SHOWN in words."""

    count: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, sentence: str) -> None:
        """Count one more."""
        self.count += 1
        if self.count <= MAX_SHOWN:
            self.shown.append(sentence)

    def refuse(self, what: str, remedy: str) -> None:
        """Raise BadOldData if there was any: how many of what there are, and the remedy."""
        if self.count:
            more = f", of which the first {MAX_SHOWN} are shown" if self.count > MAX_SHOWN else ""
            raise BadOldData(f"{self.count} {what}{more}: {remedy}", tuple(self.shown))


class Totals(Struct, frozen=True):
    """The sums of the old database, or of the ledger; money in minor units."""

    customers: int
    money_minor: int
    products: int
    units: int
    initial_units: int
    orders: dict[str, int]


class OldImport(Struct, frozen=True):
    """The sums of both, the end of the ledger, and the number of events that were appended."""

    old: Totals
    ledger: Totals
    position: int
    appended: int


class Row:
    """A row of the old database, all its values as text."""

    def __init__(self, table: str, values: Mapping[str, str | None]) -> None:
        self.table = table
        self._values = values
        self.name = f"{table} {next(iter(values.values()))!r:.{MAX_CHARACTERS}}"

    def read(self, column: str, parse: Callable[[str], Value], remedy: str) -> Value:
        """The parsed value of a column; raises BadRow, with the remedy, if it can't be parsed."""
        value = self._values.get(column)
        given = DEFAULTS.get(column) if value is None else value
        if given is not None:
            try:
                return parse(given)
            except BadText as error:
                remedy = str(error)
            except (ValueError, ArithmeticError):
                pass
        shown = "NULL" if value is None else f"{value!r:.{MAX_CHARACTERS}}"
        raise BadRow(f"{self.name}, column {column}: {shown} {remedy}")

    def id(self, column: str) -> UUID:
        """An id."""
        return self.read(column, parse_id, "must be a UUID in text, of 32 or 36 characters")

    def number(self, column: str, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        remedy = f"must be a whole number from {low} to {high}"
        return self.read(column, lambda text: within(int(text), low, high), remedy)

    def minor(self, column: str, low: int) -> int:
        """Money in minor units, at least `low`."""
        high = MAX_AMOUNT_MINOR
        remedy = f"must be an amount from {to_amount(low)} to {to_amount(high)} of two decimals"
        return self.read(column, lambda text: within(to_minor(Decimal(text)), low, high), remedy)

    def time_us(self, column: str, low: int = 0, remedy: str = "") -> int:
        """A time in µs since the Unix epoch, at least `low`; without a zone it is in UTC."""
        remedy = f"must be a time from 1970 to 9999{remedy}"
        return self.read(column, lambda text: within(time_us(text), low, MAX_TIME_US), remedy)


def within(number: int, low: int, high: int) -> int:
    """The number; raises ValueError if it is not from `low` to `high`."""
    if not low <= number <= high:
        raise ValueError
    return number


def parse_id(text: str) -> UUID:
    """An id with or without dashes; raises ValueError."""
    if not is_id(text):
        raise ValueError
    return UUID(text)


def time_us(text: str) -> int:
    """A time in µs since the Unix epoch; without a zone it is in UTC. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    return to_us(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def final_status(text: str) -> Literal["COMPLETED", "FAILED", "CANCELLED"]:
    """The status of an order that is decided; raises ValueError for any other word."""
    if (status := text.upper()) not in ("COMPLETED", "FAILED", "CANCELLED"):
        raise ValueError
    return cast("Literal['COMPLETED', 'FAILED', 'CANCELLED']", status)


def event_of(row: Row, now_us: int) -> Submitted:
    """The event that brings a row over; raises BadRow."""
    payload: ProductListed | CustomerRegistered | OrderPlaced
    occurred_at_us = now_us
    match row.table:
        case "products":
            stream_id = row.id("product_id")
            stock = row.number("stock", 0, MAX_STOCK)
            initial_stock = row.number("initial_stock", 0, MAX_STOCK)
            payload = ProductListed(
                row.read("name", lambda text: clean_name(text, MAX_NAME), "must be a name"),
                row.read("description", lambda text: clean_description(text, MAX_DESCRIPTION), ""),
                row.minor("base_price", 1),
                initial_stock,
                UNSET if stock == initial_stock else stock,
            )
        case "customers":
            stream_id = row.id("customer_id")
            payload = CustomerRegistered(
                row.read("username", lambda text: clean_name(text, MAX_USERNAME), "must be a name"),
                row.minor("wallet_balance", 0),
            )
        case _:
            stream_id = row.id("order_id")
            occurred_at_us = row.time_us("created_at")
            remedy = (
                "must be COMPLETED, FAILED or CANCELLED: let the old workers decide PENDING ones"
            )
            updated_at_us = row.time_us("updated_at", occurred_at_us, ", and not before created_at")
            payload = OrderPlaced(
                row.id("customer_id"),
                row.id("product_id"),
                row.number("quantity", 1, MAX_QUANTITY),
                OrderHistory(row.read("status", final_status, remedy), updated_at_us),
            )
    event_id = uuid5(NAMESPACE, f"{row.table}/{stream_id}")
    return Submitted(event_id, stream_id, occurred_at_us, payload, META)


def columns_of(event: Submitted) -> dict[str, object]:
    """The columns of the row that an event brought over; of any other event none."""
    match event.payload:
        case ProductListed() as product:
            return {
                "name": product.name,
                "description": product.description,
                "base_price": to_amount(product.base_price_minor),
                "stock": product.opening_stock,
                "initial_stock": product.initial_stock,
            }
        case CustomerRegistered() as customer:
            return {
                "username": customer.username,
                "wallet_balance": to_amount(customer.opening_balance_minor),
            }
        case OrderPlaced(history=OrderHistory() as history) as order:
            return {
                "product_id": str(order.product_id),
                "customer_id": str(order.customer_id),
                "quantity": order.quantity,
                "status": history.status,
                "created_at": format_us(event.occurred_at_us),
                "updated_at": format_us(history.updated_at_us),
            }
        case _:
            return {}


def difference(row: Row, event: Submitted, position: int, recorded: Submitted) -> str:
    """Say how the event of a row differs from the one that is recorded; empty where it does not."""
    if recorded.event_id != event.event_id:
        return f"{row.name}: {described(recorded)} is at its position, {position}"
    old, new = columns_of(event), columns_of(recorded)
    changes = [
        f"column {name}: {value!r:.{MAX_CHARACTERS}}, but {new.get(name)!r:.{MAX_CHARACTERS}}"
        " in the ledger"
        for name, value in old.items()
        if value != new.get(name)
    ]
    return f"{row.name}, {'; '.join(changes)}" if changes else ""


def described(event: Submitted) -> str:
    """An event in words."""
    return f"{TYPE_OF[type(event.payload)]} of {event.stream_id}"


def import_old(
    *,
    host: Annotated[str, typer.Option(help="host of the server with the old data")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="its port", min=1, max=65535)] = 3306,
    user: Annotated[str, typer.Option(help="an account that may read the old data")],
    database: Annotated[str, typer.Option(help="the schema of the old data")],
    password_file: Annotated[
        Path | None, typer.Option(help="a file with the account's password; none: no password")
    ] = None,
    as_json: console.AsJson = False,
) -> None:
    """Bring the data of the old API over."""
    settings = console.read_settings()
    try:
        password = password_file.read_text().strip() if password_file else None
    except (OSError, UnicodeDecodeError) as error:
        console.usage_error(f"can't read {password_file}: {error}")
    url = URL.create("mysql+asyncmy", user, password, host, port, database, {"charset": "utf8mb4"})
    try:
        done = console.run(bring_over(settings, url), handled=(BadOldData,))
    except BadOldData as error:
        for row in error.rows:
            console.err.print(row)
        console.fail(str(error))
    if as_json:
        console.print_json(done)
    else:
        for name, old, new in compared(done):
            console.out.print(f"{name}: {old} in the old database, {new} in the ledger")
        console.out.print(f"appended {done.appended} events, up to position {done.position}")
    if done.old != done.ledger:
        console.fail("the ledger does not hold what the old database does: import into a new one")


def compared(done: OldImport) -> list[tuple[str, object, object]]:
    """Each sum by its name, of the old database and of the ledger."""
    old, new = done.old, done.ledger
    return [
        ("customers", old.customers, new.customers),
        ("money in wallets", to_amount(old.money_minor), to_amount(new.money_minor)),
        ("products", old.products, new.products),
        ("units in stock", old.units, new.units),
        ("units of initial stock", old.initial_units, new.initial_units),
        *(
            (f"orders {status}", old.orders.get(status, 0), new.orders.get(status, 0))
            for status in sorted(old.orders.keys() | new.orders.keys())
        ),
    ]


async def bring_over(settings: Settings, url: URL) -> OldImport:
    """Append the old data to a ledger that is empty, or that an import of them has begun to fill.

    Raises BadOldData and ImportRefused before anything is appended. Later it raises ImportRefused
    where a database fails, and BadOldData where what was appended is not what the rows are.
    Raises UnsafeDatabase, LedgerDamaged.
    """
    async with connections.connection(settings, "writer") as connection:
        # It is idle for as long as it takes to read the old tables.
        await connection.exec_driver_sql(f"SET SESSION wait_timeout = {READ_TIMEOUT_S}")
        await refuse_unsafe(connection)
        await refuse_writers(connection)
        ledger = await load(connection)
        before = ledger.head.position
        async with old_data(url) as old:
            rows = await check(old, connection, before, "nothing was appended")
            await refuse_repeated_ids(old)
            totals = await old_totals(old)
            await append_rows(old, connection, ledger, rows, settings.clock_limit_s)
            if appended := ledger.head.position - before:
                note = f"{appended} events were appended"
                await check(old, connection, ledger.head.position, note)
        position = ledger.head.position
        return OldImport(totals, await ledger_totals(connection), position, appended)


@asynccontextmanager
async def old_data(url: URL) -> AsyncIterator[AsyncConnection]:
    """A connection that sees one state of the old data; raises BadOldData where it fails."""
    # With autocommit a connection may be idle for longer; the transaction is begun by hand.
    engine = make_engine(url, read_timeout_s=READ_TIMEOUT_S, pool_size=1, autocommit=True)
    try:
        async with engine.connect() as old:
            await old.exec_driver_sql("SET SESSION time_zone = '+00:00'")
            await old.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            await old.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
            yield old
    except DATABASE_ERRORS as error:
        reason = getattr(error, "orig", None) or error
        # Not chained: the cause would be taken for an error of the ledger's own database.
        raise BadOldData(
            f"can't read the old database {url.database} at {url.host}:{url.port}: {reason}"
        ) from None
    finally:
        await engine.dispose()


async def rows_of(old: AsyncConnection) -> AsyncGenerator[Row, None]:
    """The rows of all tables: products, customers, then orders in the order they were placed in.

    Raises BadOldData where a table or a column is missing.
    """
    result = await old.exec_driver_sql(
        "SELECT table_name, LOWER(column_name) FROM information_schema.columns"
        " WHERE table_schema = DATABASE()"
    )
    present = {tuple(row) for row in result}
    tables = {table for table, _ in present}
    missing = [f"the table {table}" for table in COLUMNS if table not in tables] + [
        f"the column {name} of {table}"
        for table, names in COLUMNS.items()
        for name in names
        if table in tables and (table, name) not in present and name not in DEFAULTS
    ]
    if missing:
        raise BadOldData(f"the old database lacks {', '.join(missing)}")
    for table, columns in COLUMNS.items():
        names = [name for name in columns if (table, name) in present]
        casts = ", ".join(f"CAST(`{name}` AS CHAR)" for name in names)
        order = "created_at, order_id" if table == "orders" else names[0]
        # Streamed, as there may be more rows than the memory holds.
        rows = await old.stream(text(f"SELECT {casts} FROM `{table}` ORDER BY {order}"))
        async for row in rows:
            yield Row(table, dict(zip(names, row, strict=True)))


async def check(old: AsyncConnection, connection: AsyncConnection, position: int, note: str) -> int:
    """Check every row, and compare the first ones with the ledger's events up to a position.

    Returns how many rows there are. Raises BadOldData, which ends with the note, and ImportRefused
    where the ledger has events of something else.
    """
    rows, bad, changed = 0, Findings(), Findings()
    async with (
        aclosing(rows_of(old)) as reading,
        aclosing(imported_events(connection, position)) as recorded,
    ):
        async for row in reading:
            rows += 1
            there = await anext(recorded, None)
            try:
                event = event_of(row, 0)
            except BadRow as error:
                bad.add(str(error))
                continue
            if there and (differs := difference(row, event, *there)):
                changed.add(differs)
        async for at, event in recorded:
            changed.add(f"{described(event)} at position {at} has no row any more")
    bad.refuse(
        f"of {rows} rows can't be brought over",
        f"change them in the old database, and run it again; {note}",
    )
    changed.refuse(
        f"of {position} events are not those of their rows",
        f"the ledger does not hold what the old database does, import into a new one; {note}",
    )
    return rows


async def imported_events(
    connection: AsyncConnection, up_to: int
) -> AsyncGenerator[tuple[int, Submitted], None]:
    """The events of an import of old data, each with its position; raises ImportRefused at others.

    A row is an event, and nothing is decided of it.
    """
    try:
        async for page in EventReader(connection).pages(0, up_to, with_keys=True):
            for decision in page.decisions():
                position = decision.cause.position
                if decision.cause.meta != META or decision.decided:
                    raise ImportRefused(
                        "the ledger has other events than such an import, from position"
                        f" {position} on: import into an empty ledger"
                    )
                yield position, decode_submitted(decision.cause, page.keys)
    except DATABASE_ERRORS as error:
        # Here, as `old_data` would take it for an error of the old database.
        reason = getattr(error, "orig", None) or error
        raise ImportRefused(f"can't read the ledger: {reason}; run it again") from error


async def refuse_repeated_ids(old: AsyncConnection) -> None:
    """Raise BadOldData where rows of any tables have the same id, as each is a stream of its own.

    All ids must be in a writing that `is_id` takes.
    """
    # The old database sorts them, as there may be more than the memory holds.
    ids = " UNION ALL ".join(
        f"SELECT '{table}' AS name, CAST(`{columns[0]}` AS CHAR(36)) AS id FROM `{table}`"
        for table, columns in COLUMNS.items()
    )
    rows = await old.stream(
        text(
            "SELECT GROUP_CONCAT(name, ' ', id ORDER BY name, id SEPARATOR ' and ')"
            f" FROM ({ids}) ids GROUP BY UNHEX(REPLACE(id, '-', '')) HAVING COUNT(*) > 1"
        )
    )
    repeated = Findings()
    async for (names,) in rows:
        repeated.add(f"{names} have the same id")
    repeated.refuse(
        "ids stand more than once",
        "change them in the old database, and run it again; nothing was appended",
    )


async def append_rows(
    old: AsyncConnection,
    connection: AsyncConnection,
    ledger: LedgerState,
    rows: int,
    clock_limit_s: float,
) -> None:
    """Fence off writers, and append the rows that the ledger does not have.

    Raises ImportRefused.
    """
    clock = Clock(clock_limit_s)
    began_us, before, number = now_us(), ledger.head.position, 0
    batch: list[Submitted] = []
    with console.progress("importing", rows) as advance:
        try:
            await connection.rollback()  # what was read for the check
            await fence_off_writers(connection, ledger)
            async with aclosing(rows_of(old)) as reading:
                async for row in reading:
                    number += 1
                    if number > before:
                        batch.append(event_of(row, began_us))
                    if len(batch) == BATCH_EVENTS or number == rows:
                        at_us = await clock.read(connection, ledger.recorded_at_us)
                        await append_new(connection, ledger, batch, at_us)
                        batch = []
                    advance(1)
        except ClockWrong as error:
            raise ImportRefused(str(error)) from error
        except Fenced as error:
            raise ImportRefused(
                f"a writer took the ledger over at position {ledger.head.position}: stop it first"
            ) from error
        except DATABASE_ERRORS as error:
            reason = getattr(error, "orig", None) or error
            raise ImportRefused(
                f"a database failed after position {ledger.head.position}: {reason};"
                " run it again, and it goes on from there"
            ) from error


async def old_totals(old: AsyncConnection) -> Totals:
    """The sums of the old database, by its own arithmetic."""
    result = await old.exec_driver_sql(
        "SELECT (SELECT COUNT(*) FROM customers),"
        " (SELECT CAST(COALESCE(SUM(CAST(wallet_balance AS DECIMAL(30, 2))), 0) * 100 AS SIGNED)"
        " FROM customers),"
        " COUNT(*), COALESCE(SUM(stock), 0), COALESCE(SUM(initial_stock), 0) FROM products"
    )
    customers, money_minor, products, units, initial_units = map(int, tuple(result.one()))
    statuses: Any = await old.exec_driver_sql(
        "SELECT UPPER(CAST(status AS CHAR)), COUNT(*) FROM orders GROUP BY 1"
    )
    orders = {str(status): int(count) for status, count in statuses}
    return Totals(customers, money_minor, products, units, initial_units, orders)


async def ledger_totals(connection: AsyncConnection) -> Totals:
    """The sums of the ledger, read anew from its first event."""
    fold, orders = Fold(), Counter[str]()
    async for page in EventReader(connection).pages(0, chain=ChainCheck()):
        for event in page.effective_events():
            fold.apply(event)
        orders.update(order.status.value for order in fold.orders.values())
        fold.orders.clear()
    customers, products = fold.customers.values(), fold.products.values()
    return Totals(
        len(customers),
        sum(customer.balance_minor for customer in customers),
        len(products),
        sum(product.stock for product in products),
        sum(product.initial_stock for product in products),
        dict(orders),
    )
