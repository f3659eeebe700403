"""Connections of the commands to the database, each with one role's account."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cli.settings import Settings
from ledger.runtime import versions
from ledger.runtime.database import make_engine

# A statement over a whole ledger takes its time; what the processes ask is answered in seconds.
READ_TIMEOUT_S: Final = 120


@asynccontextmanager
async def engine(
    settings: Settings,
    role: str,
    *,
    read_only: bool = False,
    autocommit: bool = False,
    read_timeout_s: float = READ_TIMEOUT_S,
    pool_size: int = 2,
) -> AsyncIterator[AsyncEngine]:
    """A pool of connections with a role's account, closed at the end.

    With `autocommit` each statement is a transaction of its own, so that nothing is held while the
    reader of the output takes a break. With `read_only` the database refuses every change.
    Connecting raises Unsupported where the server is too old.
    """
    pool = make_engine(
        settings.db_url(role),
        settings.db_ca_file,
        read_timeout_s=read_timeout_s,
        pool_size=pool_size,
        autocommit=autocommit,
        snapshot_key=settings.snapshot_key(),
    )

    @event.listens_for(pool.sync_engine, "connect")
    def check_version(_: Any, __: object) -> None:
        # SQLAlchemy has asked the server itself: what a proxy greets with says nothing.
        dialect = pool.dialect
        product = "MariaDB" if getattr(dialect, "is_mariadb", False) else "MySQL"
        told = ".".join(map(str, dialect.server_version_info or ()))
        versions.check(product, versions.version_of(told))

    if read_only:

        @event.listens_for(pool.sync_engine, "connect")
        def set_read_only(dbapi_connection: Any, _: object) -> None:
            cursor = dbapi_connection.cursor()
            cursor.execute("SET SESSION TRANSACTION READ ONLY")
            cursor.close()

    try:
        yield pool
    finally:
        await pool.dispose()


@asynccontextmanager
async def connection(
    settings: Settings,
    role: str,
    *,
    read_only: bool = False,
    read_timeout_s: float = READ_TIMEOUT_S,
) -> AsyncIterator[AsyncConnection]:
    """One connection with a role's account; for a transaction use its `begin()`."""
    async with (
        engine(
            settings, role, read_only=read_only, read_timeout_s=read_timeout_s, pool_size=1
        ) as pool,
        pool.connect() as opened,
    ):
        yield opened
