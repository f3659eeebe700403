"""Connections to MySQL or MariaDB, their deadlines, and the settings that COMMIT relies on."""

import ssl
from pathlib import Path
from typing import Any, Final

import asyncmy
from asyncmy.errors import OperationalError
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

CONNECT_TIMEOUT_S: Final = 2
LOCK_TIMEOUT_S: Final = 5
IDLE_TIMEOUT_S: Final = 30
KEPT_S: Final = 3600

DATABASE_ERRORS: Final = (DBAPIError, PoolTimeout, OSError)
"""What SQLAlchemy raises when the database or the way to it fails; TimeoutError is among them."""

_NO_WALK: Final = " /*M! , in_predicate_conversion_threshold = 0 */"
"""MariaDB, which alone reads this, makes a table of a list of a thousand ids otherwise, and may
walk through the whole ledger to look each row up in it."""

SAFE_SETTINGS: Final = {
    "innodb_flush_log_at_trx_commit": ("1",),
    "innodb_doublewrite": ("1", "DETECT_AND_RECOVER", "ON"),
}


class UnsafeDatabase(Exception):
    """The server is set up so that a COMMIT could be lost."""


def make_engine(
    url: URL,
    ca_file: Path | None = None,
    *,
    read_timeout_s: float = 15,
    pool_size: int = 2,
    autocommit: bool = False,
) -> AsyncEngine:
    """A pool of connections, READ COMMITTED, every wait of which has a deadline.

    A transaction that its owner forgets (a stopped process) is ended by the server after
    IDLE_TIMEOUT_S, so that its locks can't hold up a successor for longer; with `autocommit` there
    are none, and idle connections are kept.
    """
    idle_timeout_s = KEPT_S if autocommit else IDLE_TIMEOUT_S
    connect_args: dict[str, Any] = {
        "async_creator_fn": _connect,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": read_timeout_s,
        "init_command": (
            f"SET SESSION wait_timeout = {idle_timeout_s}, "
            f"innodb_lock_wait_timeout = {LOCK_TIMEOUT_S}{_NO_WALK}"
        ),
    }
    if ca_file:
        connect_args["ssl"] = ssl.create_default_context(cafile=ca_file)
    return create_async_engine(
        url,
        isolation_level="AUTOCOMMIT" if autocommit else "READ COMMITTED",
        skip_autocommit_rollback=autocommit,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT_S,
        pool_recycle=idle_timeout_s // 2,
        connect_args=connect_args,
        hide_parameters=True,  # an error is logged with its message, and customers' data stay out
    )


async def _connect(**arguments: Any) -> Any:
    try:
        return await asyncmy.connect(**arguments)
    except RuntimeError as error:
        # What asyncmy says of a proxy that accepts and hangs up at once.
        raise OperationalError(f"connecting: {error}") from error


async def refuse_unsafe(connection: AsyncConnection) -> None:
    """Raises UnsafeDatabase, naming setting and remedy, where COMMIT would not be durable."""
    for name, safe in SAFE_SETTINGS.items():
        value = str(await _setting(connection, name))
        if value not in safe:
            raise UnsafeDatabase(f"{name} is {value}: set it to {safe[-1]}, or commits can be lost")
    if str(await _setting(connection, "log_bin")) in ("1", "ON"):
        value = str(await _setting(connection, "sync_binlog"))
        if value != "1":
            raise UnsafeDatabase(f"sync_binlog is {value}: set it to 1, or turn the binlog off")


async def _setting(connection: AsyncConnection, name: str) -> object:
    return (await connection.exec_driver_sql(f"SELECT @@GLOBAL.{name}")).scalar_one()
