"""Connections to the database: what fails is a database error, and everything has an end."""

import asyncio
import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
import uvloop
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from ledger.runtime.database import DATABASE_ERRORS, make_engine
from tests.harness import eventually
from tests.ledger.pipeline import Ledger

RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@pytest.fixture
def port_that_hangs_up() -> Iterator[int]:
    """A server that accepts a connection and resets it, as a proxy does that has no backend."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_a_proxy_that_closes_at_once_is_a_database_error(
    port_that_hangs_up: int,
) -> None:
    url = URL.create("mysql+asyncmy", "ledger", "x", "127.0.0.1", port_that_hangs_up, "ledger")

    async def connect_often() -> None:
        engine = make_engine(url)
        for _ in range(50):
            with pytest.raises(DATABASE_ERRORS):
                await engine.connect()
        await engine.dispose()

    # On the loop of the real processes, where asyncmy raises another error for it.
    uvloop.run(connect_often())


# It counts to a number that nobody lives to see.
ENDLESS = "SELECT STRAIGHT_JOIN COUNT(*) FROM " + ", ".join(
    f"(SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3) endless{number}" for number in range(40)
)


@pytest.fixture(params=["writer", "projector", "api"])
async def impatient(ledger: Ledger, request: pytest.FixtureRequest) -> AsyncIterator[AsyncEngine]:
    """Connections of a role that wait half a second for an answer."""
    url = ledger.settings.db_url(request.param)
    engine = make_engine(url, read_timeout_s=0.5, autocommit=True)
    yield engine
    await engine.dispose()


async def test_the_server_ends_a_statement_before_its_client_stops_waiting(ledger: Ledger) -> None:
    # A tenth of it is what the answer may take on a busy machine.
    engine = make_engine(ledger.settings.db_url("api"), read_timeout_s=4, autocommit=True)
    async with engine.connect() as connection:
        number = (await connection.exec_driver_sql("SELECT CONNECTION_ID()")).scalar_one()
        with pytest.raises(DBAPIError, match="interrupted"):
            await connection.exec_driver_sql(ENDLESS)
    # So the connection is as good as before, and the next query need not open another.
    async with engine.connect() as connection:
        again = await connection.exec_driver_sql("SELECT CONNECTION_ID()")
        assert again.scalar_one() == number
    await engine.dispose()


async def test_a_statement_whose_client_went_away_does_not_go_on(impatient: AsyncEngine) -> None:
    running = (
        "SELECT COUNT(*) FROM information_schema.processlist"
        " WHERE info LIKE '%%endless39' AND id <> CONNECTION_ID()"
    )

    async def count() -> int:
        async with impatient.connect() as connection:
            found: int = (await connection.exec_driver_sql(running)).scalar_one()
            return found

    async def ask() -> None:
        async with impatient.connect() as connection:
            await connection.exec_driver_sql(ENDLESS)

    async def has_ended() -> bool:
        return await count() == 0

    asking = asyncio.create_task(ask())
    await eventually(count, "the statement is running")
    asking.cancel()
    await eventually(has_ended, "the statement has ended")
    with pytest.raises((asyncio.CancelledError, DBAPIError)):
        await asking


async def test_no_account_can_take_all_connections(ledger: Ledger) -> None:
    ((max_connections,),) = await ledger.rows("SELECT @@GLOBAL.max_connections")
    engine = make_engine(ledger.settings.db_url("analyst"), pool_size=max_connections)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        for _ in range(max_connections // 8):
            await stack.enter_async_context(engine.connect())
        with pytest.raises(DBAPIError, match="max_user_connections"):
            await engine.connect()
        for role in ("writer", "projector", "api"):
            async with ledger.connection(role):
                pass
