"""Connections of the commands that only read."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cli.settings import Settings
from ledger.runtime.database import make_engine

READ_TIMEOUT_S: Final = 120


@asynccontextmanager
async def reading(settings: Settings) -> AsyncIterator[AsyncConnection]:
    """A connection that can't write."""
    engine = make_engine(
        settings.db_url("projector"), settings.db_ca_file, read_timeout_s=READ_TIMEOUT_S
    )
    try:
        async with engine.connect() as connection:
            await connection.exec_driver_sql("SET SESSION TRANSACTION READ ONLY")
            yield connection
    finally:
        await engine.dispose()


@asynccontextmanager
async def reading_engine(settings: Settings) -> AsyncIterator[AsyncEngine]:
    """Connections that can't write, with a transaction for each statement.

    For what is only ever added to: so nothing is held while whoever reads the output takes a break.
    """
    engine = make_engine(
        settings.db_url("projector"),
        settings.db_ca_file,
        read_timeout_s=READ_TIMEOUT_S,
        autocommit=True,
    )
    event.listen(engine.sync_engine, "connect", _read_only)
    try:
        yield engine
    finally:
        await engine.dispose()


def _read_only(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("SET SESSION TRANSACTION READ ONLY")
    cursor.close()
