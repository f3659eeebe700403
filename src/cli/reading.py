"""Connections of the commands that only read."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from cli.settings import Settings
from ledger.database import make_engine

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
