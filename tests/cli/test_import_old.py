"""`ledger import-old`: the old API's data end in a verified ledger that holds the same."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from cli.settings import Settings
from tests.harness import free_port
from tests.ledger.naive_audit import audit
from tests.ledger.pipeline import running_ledger
from tests.submissions import opening

from .conftest import Run
from .exports import project

# What the old API had; `current_price` is not read.
SCHEMA = (
    "CREATE TABLE customers (customer_id CHAR(36) PRIMARY KEY, username VARCHAR(255) NOT NULL,"
    " wallet_balance DECIMAL(15, 2) NOT NULL)",
    "CREATE TABLE products (product_id CHAR(36) PRIMARY KEY, name VARCHAR(255) NOT NULL,"
    " description TEXT, base_price DECIMAL(15, 2) NOT NULL, current_price DECIMAL(15, 2),"
    " stock INT, initial_stock INT NOT NULL)",
    "CREATE TABLE orders (order_id CHAR(36) PRIMARY KEY, product_id CHAR(36) NOT NULL,"
    " customer_id CHAR(36) NOT NULL, status VARCHAR(20) NOT NULL,"
    " created_at DATETIME(6) NOT NULL, updated_at DATETIME(6) NOT NULL)",
)
PRODUCTS = [UUID(int=0xB0 << 64 | n) for n in range(5)]
CUSTOMERS = [UUID(int=0xA0 << 64 | n) for n in range(60)]
ORDERS = [UUID(int=0xC0 << 64 | n) for n in range(2_000)]
STATUSES = ("COMPLETED", "FAILED", "CANCELLED")
ALL = len(PRODUCTS) + len(CUSTOMERS) + len(ORDERS)


@pytest.fixture
async def old(settings: Settings) -> AsyncIterator[AsyncEngine]:
    """The old database, beside the ledger's own."""
    name = f"{settings.db_name}_old"
    url = settings.db_url("migrate")
    engine = create_async_engine(url._replace(database=None))
    async with engine.begin() as connection:
        await connection.exec_driver_sql(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    await engine.dispose()
    engine = create_async_engine(url._replace(database=name))
    async with engine.begin() as connection:
        for statement in SCHEMA:
            await connection.exec_driver_sql(statement)
        await connection.exec_driver_sql(
            "INSERT INTO products VALUES (%s, %s, %s, %s, %s, %s, %s)",
            [
                (str(id_), f"Füller {n}", None, f"{n + 1}.05", None, n, 3 * n)
                for n, id_ in enumerate(PRODUCTS)
            ],
        )
        await connection.exec_driver_sql(
            "INSERT INTO customers VALUES (%s, %s, %s)",
            [(str(id_), f"c{n}", f"{n * 7}.{n % 100:02}") for n, id_ in enumerate(CUSTOMERS)],
        )
        await connection.exec_driver_sql(
            "INSERT INTO orders VALUES (%s, %s, %s, %s, %s, %s)",
            [
                (
                    str(id_),
                    str(PRODUCTS[n % len(PRODUCTS)]),
                    str(CUSTOMERS[n % len(CUSTOMERS)]),
                    STATUSES[n % 3],
                    # Later orders have smaller numbers.
                    f"2025-01-01 23:{59 - n // 60:02}:{59 - n % 60:02}.000001",
                    "2025-02-01 00:00:00",
                )
                for n, id_ in enumerate(ORDERS)
            ],
        )
    yield engine
    await engine.dispose()


@pytest.fixture
def command(old: AsyncEngine, settings: Settings) -> list[str]:
    """The command that brings the old data over."""
    secret = (settings.secrets_dir or settings.home / "secrets") / "db_migrate"
    return [
        *("import-old", "--port", str(old.url.port), "--user", str(old.url.username)),
        *("--database", str(old.url.database), "--password-file", str(secret)),
    ]


async def change(old: AsyncEngine, *statements: str) -> None:
    """Change the old data."""
    async with old.begin() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def test_the_ledger_holds_what_the_old_database_does_and_verifies(
    run: Run, settings: Settings, old: AsyncEngine, command: list[str]
) -> None:
    done = await run(*command, "--json")
    assert done.status == 0, done.err
    assert (done.json["appended"], done.json["position"]) == (ALL, ALL)
    assert done.json["old"] == done.json["ledger"]
    async with running_ledger(settings) as ledger:
        await project(ledger)
        async with old.connect() as connection:
            for sql, view in (
                (
                    "SELECT customer_id, username, CAST(wallet_balance * 100 AS SIGNED)"
                    " FROM customers",
                    "SELECT customer_id, username, balance_minor FROM wallets",
                ),
                (
                    "SELECT product_id, name, stock, initial_stock FROM products",
                    "SELECT product_id, name, stock, initial_stock FROM stock",
                ),
                (
                    "SELECT order_id, customer_id, product_id, 1, status,"
                    " CAST(created_at AS CHAR), CAST(updated_at AS CHAR) FROM orders",
                    "SELECT order_id, customer_id, product_id, quantity, status,"
                    " CAST(created_at AS CHAR), CAST(updated_at AS CHAR) FROM orders",
                ),
            ):
                expected = sorted(
                    tuple(map(plain, row)) for row in await connection.exec_driver_sql(sql)
                )
                assert sorted(tuple(map(plain, row)) for row in await ledger.rows(view)) == expected
        newest_first = await ledger.rows(
            "SELECT order_id FROM orders ORDER BY placed_position DESC"
        )
        assert [UUID(bytes=row[0]) for row in newest_first] == ORDERS
    verified = await run("verify")
    assert verified.status == 0, verified.err


def plain(value: object) -> object:
    """A value, ids of either database as UUIDs."""
    if isinstance(value, bytes):
        return str(UUID(bytes=value)) if len(value) == 16 else value.decode()
    return value


async def test_a_second_run_appends_nothing_and_prints_the_same_sums(
    run: Run, command: list[str]
) -> None:
    first = await run(*command)
    assert first.status == 0, first.err
    assert "money in wallets: 12407.70 in the old database, 12407.70 in the ledger" in first.out
    assert "orders FAILED: 667 in the old database, 667 in the ledger" in first.out
    assert f"appended {ALL} events, up to position {ALL}" in first.out
    again = await run(*command)
    assert (again.status, again.err) == (0, "")
    assert again.out.splitlines()[:-1] == first.out.splitlines()[:-1]
    assert f"appended 0 events, up to position {ALL}" in again.out


@pytest.mark.parametrize("moment", ["before-commit", "commit-sent"])
async def test_a_killed_import_is_continued_without_an_event_twice(
    run: Run, settings: Settings, command: list[str], moment: str
) -> None:
    killed = await run(*command, LEDGER_FAILPOINTS=f"writer.{moment}=die@2")
    assert killed.status == -signal.SIGKILL
    done = await run(*command, "--json")
    assert done.status == 0, done.err
    assert 0 < done.json["appended"] < done.json["position"] == ALL
    async with running_ledger(settings) as ledger:
        fold = audit(await ledger.records())
    assert (set(fold.customers), set(fold.products)) == (set(CUSTOMERS), set(PRODUCTS))
    assert set(fold.orders) == set(ORDERS)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            f"UPDATE customers SET wallet_balance = 0.01 WHERE customer_id = '{CUSTOMERS[7]}'",
            f"customers '{CUSTOMERS[7]}', column wallet_balance: '0.01', but '49.07' in the ledger",
        ),
        ("UPDATE products SET stock = 9 LIMIT 1", "column stock: 9, but 0 in the ledger"),
        (
            "UPDATE products SET initial_stock = 9, base_price = 3 LIMIT 1",
            "column base_price: '3.00', but '1.05' in the ledger; column initial_stock: 9, but 0",
        ),
        (
            "UPDATE orders SET status = 'FAILED' WHERE status = 'COMPLETED' LIMIT 1",
            "column status: 'FAILED', but 'COMPLETED' in the ledger",
        ),
    ],
)
async def test_a_row_that_was_changed_after_the_import_is_named(
    run: Run, old: AsyncEngine, command: list[str], statement: str, said: str
) -> None:
    await change(old, f"DELETE FROM orders WHERE order_id > '{ORDERS[9]}'")
    assert (await run(*command)).status == 0
    await change(old, statement)
    done = await run(*command)
    assert (done.status, done.out) == (1, "")
    row, last = done.err.splitlines()
    assert said in row
    assert "1 of 75 events are not those of their rows: the ledger does not hold what" in last
    assert "nothing was appended" in last


async def test_an_import_does_not_go_on_after_rows_that_were_changed_meanwhile(
    run: Run, settings: Settings, old: AsyncEngine, command: list[str]
) -> None:
    await change(old, "ALTER TABLE orders ADD COLUMN quantity INT")
    killed = await run(*command, LEDGER_FAILPOINTS="writer.before-commit=die@2")
    assert killed.status == -signal.SIGKILL
    async with running_ledger(settings) as ledger:
        before = await ledger.records()
    assert 0 < len(before) < ALL
    first = ORDERS[::-1]
    await change(
        old,
        f"UPDATE products SET name = 'Pen', description = 'new' WHERE product_id = '{PRODUCTS[4]}'",
        f"UPDATE customers SET username = 'Zoë' WHERE customer_id = '{CUSTOMERS[59]}'",
        f"UPDATE orders SET quantity = 2 WHERE order_id = '{first[0]}'",
        f"UPDATE orders SET customer_id = '{CUSTOMERS[0]}' WHERE order_id = '{first[1]}'",
        f"UPDATE orders SET product_id = '{PRODUCTS[0]}' WHERE order_id = '{first[2]}'",
        f"UPDATE orders SET updated_at = '2025-02-01 00:00:01' WHERE order_id = '{first[3]}'",
        "UPDATE orders SET created_at = created_at + INTERVAL 1 MICROSECOND"
        f" WHERE order_id = '{first[4]}'",
        f"UPDATE orders SET order_id = '{UUID(int=1)}' WHERE order_id = '{first[5]}'",
        # Not brought over yet.
        f"UPDATE orders SET quantity = 7 WHERE order_id = '{ORDERS[0]}'",
    )
    done = await run(*command)
    assert (done.status, done.out) == (1, "")
    *rows, last = done.err.splitlines()
    for row, said in zip(
        rows,
        [
            f"products '{PRODUCTS[4]}', column name: 'Pen', but 'Füller 4' in the ledger;"
            " column description: 'new', but '' in the ledger",
            f"customers '{CUSTOMERS[59]}', column username: 'Zoë', but 'c59' in the ledger",
            f"orders '{first[0]}', column quantity: 2, but 1 in the ledger",
            f"orders '{first[1]}', column customer_id: '{CUSTOMERS[0]}', but '",
            f"orders '{first[2]}', column product_id: '{PRODUCTS[0]}', but '",
            f"orders '{first[3]}', column updated_at: '2025-02-01T00:00:01.000000Z', but '2025-0",
            f"orders '{first[4]}', column created_at: '2025-01-01T23:26:44.000002Z', but '2025-0",
            f"orders '{UUID(int=1)}': order.placed of {first[5]} is at its position, 71",
        ],
        strict=True,
    ):
        assert said in row
    assert f"8 of {len(before)} events" in last
    await change(old, "UPDATE orders SET updated_at = '2025-03-01'")
    done = await run(*command)
    assert len(done.err.splitlines()) == 21
    assert "of which the first 20 are shown" in done.err
    await change(old, "DELETE FROM orders")
    done = await run(*command)
    assert f"order.placed of {first[0]} at position 66 has no row any more" in done.err
    async with running_ledger(settings) as ledger:
        assert await ledger.records() == before


async def test_what_the_sums_do_not_show_is_found_after_a_first_import_too(
    run: Run, settings: Settings, command: list[str]
) -> None:
    async with running_ledger(settings) as ledger:
        # The key of a customer's name is lost after it was stored, while orders are appended.
        await ledger.execute(
            "CREATE TRIGGER lose_a_key AFTER INSERT ON events FOR EACH ROW"
            " DELETE FROM customer_keys"
            f" WHERE NEW.position = 1500 AND customer_id = UNHEX('{CUSTOMERS[3].hex}')"
        )
    done = await run(*command)
    assert done.status == 1
    row, last = done.err.splitlines()
    assert f"customers '{CUSTOMERS[3]}', column username: 'c3', but" in row
    assert f"{ALL} events were appended" in last


async def test_an_id_that_stands_twice_is_named_before_anything_is_appended(
    run: Run, settings: Settings, old: AsyncEngine, command: list[str]
) -> None:
    twins = [
        (f"customers {CUSTOMERS[1].hex}", f"customers {CUSTOMERS[1]}"),
        (f"customers {PRODUCTS[0].hex.upper()}", f"products {PRODUCTS[0]}"),
        (f"customers {CUSTOMERS[0]}", f"orders {CUSTOMERS[0]}"),
        (f"orders {PRODUCTS[1].hex}", f"products {PRODUCTS[1]}"),
        (f"orders {ORDERS[2]}", f"orders {ORDERS[2].hex}"),
    ]
    await change(
        old,
        f"INSERT INTO customers VALUES ('{CUSTOMERS[1].hex}', 'twin', 1)",
        f"INSERT INTO customers VALUES ('{PRODUCTS[0].hex.upper()}', 'product', 1)",
        f"UPDATE orders SET order_id = '{CUSTOMERS[0]}' WHERE order_id = '{ORDERS[0]}'",
        f"UPDATE orders SET order_id = '{PRODUCTS[1].hex}' WHERE order_id = '{ORDERS[1]}'",
        f"UPDATE orders SET order_id = '{ORDERS[2].hex}' WHERE order_id = '{ORDERS[3]}'",
    )
    done = await run(*command)
    assert (done.status, done.out) == (1, "")
    *rows, last = done.err.splitlines()
    for twin in twins:
        assert any(all(one in row for one in twin) for row in rows), (twin, rows)
    assert len(rows) == len(twins)
    assert "5 ids stand more than once" in last
    await change(
        old,
        "INSERT INTO customers SELECT REPLACE(order_id, '-', ''), 'order', 0 FROM orders"
        " WHERE order_id LIKE '%%-%%' LIMIT 30",
    )
    done = await run(*command)
    assert len(done.err.splitlines()) == 21
    assert "of which the first 20 are shown" in done.err
    async with running_ledger(settings) as ledger:
        assert await ledger.records() == []


async def test_a_ledger_with_other_events_is_left_as_it_is(
    run: Run, settings: Settings, old: AsyncEngine, command: list[str]
) -> None:
    async with running_ledger(settings) as ledger:
        before = await ledger.write(opening())
    done = await run(*command)
    assert done.status == 1
    assert "import into an empty ledger" in done.said_one_sentence()
    async with running_ledger(settings) as ledger:
        assert await ledger.records() == before


async def test_a_ledger_that_went_on_after_the_import_takes_no_second_one(
    run: Run, settings: Settings, command: list[str]
) -> None:
    assert (await run(*command)).status == 0
    async with running_ledger(settings) as ledger:
        before = await ledger.write(opening())
    done = await run(*command)
    assert done.status == 1
    assert f"from position {ALL + 1} on: import into an empty ledger" in done.said_one_sentence()
    async with running_ledger(settings) as ledger:
        assert await ledger.records() == before


async def test_a_ledger_whose_writer_runs_takes_no_import(
    run: Run, settings: Settings, command: list[str]
) -> None:
    async with running_ledger(settings) as ledger, ledger.connection("writer"):
        done = await run(*command)
    assert done.status == 1
    assert "a writer, or another import, is connected" in done.said_one_sentence()


LONG = "x" * 300
ODD_ROWS = [
    (
        "UPDATE customers SET wallet_balance = -1",
        "column wallet_balance: '-1' must be an amount",
    ),
    (
        "UPDATE customers SET wallet_balance = 0.125",
        "column wallet_balance: '0.125' must be an amount from 0.00 to 10000000000.00 of two",
    ),
    ("UPDATE customers SET username = ' '", "column username: ' ' must have at least 1 visible"),
    ("UPDATE customers SET username = 'a\u202eb'", "'a\\u202eb' must not have an invisible"),
    (f"UPDATE customers SET username = '{LONG[:101]}'", "must have at most 100 characters"),
    ("UPDATE products SET base_price = 0", "column base_price: '0.00' must be an amount from 0.01"),
    ("UPDATE products SET stock = -1", "column stock: '-1' must be a whole number from 0 to"),
    ("UPDATE products SET stock = NULL", "column stock: NULL must be a whole number"),
    (f"UPDATE products SET name = '{LONG[:201]}'", "must have at most 200 characters"),
    (
        "UPDATE orders SET status = 'PENDING'",
        "column status: 'PENDING' must be COMPLETED, FAILED or CANCELLED: let the old workers",
    ),
    ("UPDATE orders SET customer_id = 'x'", "column customer_id: 'x' must be a UUID in text"),
    ("UPDATE orders SET customer_id = x'ff00'", "' must be a UUID in text"),
    ("UPDATE orders SET created_at = '1969-01-01'", "'1969-01-01 00:00:00.000000' must be a time"),
    (
        "UPDATE orders SET updated_at = '0000-00-00'",
        "column updated_at: '0000-00-00' must be a time",
    ),
    (
        "UPDATE orders SET updated_at = '2025-01-01 23:59:00'",
        "column updated_at: '2025-01-01 23:59:00' must be a time from 1970 to 9999, and not before"
        " created_at",
    ),
    ("UPDATE orders SET order_id = '{c0000000-0000-0000-0000-000000000000}'", "must be a UUID"),
]


async def test_rows_that_cant_be_brought_over_are_all_named_and_nothing_is_appended(
    run: Run, settings: Settings, old: AsyncEngine, command: list[str]
) -> None:
    await change(
        old,
        f"DELETE FROM orders WHERE order_id > '{ORDERS[99]}'",
        "ALTER TABLE customers MODIFY wallet_balance DOUBLE",
        "ALTER TABLE orders MODIFY customer_id VARBINARY(40), MODIFY updated_at VARCHAR(40),"
        " MODIFY order_id VARCHAR(40)",
    )
    tables = {"customers": "customer_id", "products": "product_id", "orders": "order_id"}
    counts = dict.fromkeys(tables, 0)
    for update, _ in ODD_ROWS:
        table = update.split()[1]
        row = f"SELECT {tables[table]} FROM {table} ORDER BY 1 LIMIT 1 OFFSET {counts[table]}"
        counts[table] += 1
        where = f" WHERE {tables[table]} = (SELECT * FROM ({row}) one)"
        await change(old, update + where)
    done = await run(*command)
    assert (done.status, done.out) == (1, "")
    *rows, last = done.err.splitlines()
    for _, said in ODD_ROWS:
        assert any(said in row for row in rows), (said, rows[-4:])
    assert len(rows) == len(ODD_ROWS)
    assert f"{len(ODD_ROWS)} of 165 rows can't be brought over" in last
    await change(old, "UPDATE customers SET username = ''")
    done = await run(*command)
    assert len(done.err.splitlines()) == 21
    assert "of which the first 20 are shown" in done.err
    async with running_ledger(settings) as ledger:
        assert await ledger.records() == []


async def test_ids_times_and_quantities_are_read_in_the_writings_that_databases_have(
    run: Run, settings: Settings, old: AsyncEngine, command: list[str]
) -> None:
    await change(
        old,
        f"DELETE FROM orders WHERE order_id > '{ORDERS[1]}'",
        "ALTER TABLE orders MODIFY updated_at VARCHAR(40), MODIFY created_at TIMESTAMP NULL,"
        " ADD COLUMN quantity INT",
        "UPDATE orders SET order_id = UPPER(REPLACE(order_id, '-', '')), status = 'Completed',"
        " updated_at = '2025-02-01T02:00:00+02:00'",
        f"UPDATE orders SET quantity = 3 WHERE RIGHT(order_id, 9) = '{ORDERS[1].hex[-9:]}'",
        "UPDATE customers SET username = ' Rémi '",
        "ALTER TABLE products MODIFY base_price DOUBLE",
    )
    done = await run(*command)
    assert done.status == 0, done.err
    async with running_ledger(settings) as ledger:
        await project(ledger)
        orders = await ledger.rows(
            "SELECT order_id, quantity, CAST(updated_at AS CHAR) FROM orders ORDER BY order_id"
        )
        assert orders == [
            (ORDERS[0].bytes, 1, "2025-02-01 00:00:00.000000"),
            (ORDERS[1].bytes, 3, "2025-02-01 00:00:00.000000"),
        ]
        assert await ledger.rows("SELECT DISTINCT username FROM wallets") == [("Rémi",)]
        prices = await ledger.rows("SELECT base_price_minor FROM stock ORDER BY 1")
        assert prices == [(105,), (205,), (305,), (405,), (505,)]


async def test_what_the_old_database_lacks_is_named(
    run: Run, old: AsyncEngine, command: list[str]
) -> None:
    await change(old, "DROP TABLE orders", "ALTER TABLE products DROP COLUMN initial_stock")
    done = await run(*command)
    assert done.status == 1
    said = done.said_one_sentence()
    assert "lacks the table orders, the column initial_stock of products" in said


async def test_an_old_database_that_cant_be_read_is_not_taken_for_the_ledgers(
    run: Run, old: AsyncEngine, command: list[str], tmp_path: Path
) -> None:
    wrong = tmp_path / "password"
    wrong.write_text("wrong")
    port = free_port()
    for changes, said in (
        (("--port", str(port)), f"at 127.0.0.1:{port}: "),
        (("--password-file", str(wrong)), "Access denied"),
        (("--database", "no_such_schema"), "no_such_schema"),
    ):
        done = await run(*command, *changes)
        sentence = done.said_one_sentence()
        assert (done.status, "can't read the old database" in sentence) == (1, True), sentence
        assert said in sentence
        assert "make run" not in sentence
    done = await run(*command, "--password-file", str(tmp_path / "none"))
    assert (done.status, "can't read" in done.said_one_sentence()) == (2, True)
