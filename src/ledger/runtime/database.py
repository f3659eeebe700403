"""MySQL or MariaDB: connections with deadlines, settings that COMMIT needs, and bulk INSERT.

A bulk INSERT has its rows as literals in the text of a statement. Making literals takes a third of
the client's time that placeholders take in the driver. Nothing has to be escaped: bytes and text
are hexadecimal literals, except words of letters, digits and underscores, which stand in quotes.

A session sets every mode and limit that the statements rely on, whatever the server's defaults are.
"""

import asyncio
import math
import ssl
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from asyncmy.connection import Connection
from asyncmy.constants.FIELD_TYPE import DATETIME
from asyncmy.converters import conversions
from asyncmy.errors import MySQLError, OperationalError
from msgspec import Struct
from msgspec.structs import astuple
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

CONNECT_TIMEOUT_S: Final = 2
LOCK_TIMEOUT_S: Final = 5
IDLE_TIMEOUT_S: Final = 30
AUTOCOMMIT_IDLE_TIMEOUT_S: Final = 3600

# What SQLAlchemy raises when the database or the way to it fails; TimeoutError is an OSError.
DATABASE_ERRORS: Final = (DBAPIError, PoolTimeout, OSError)

# Of the time that the client waits for an answer, the part after which the server gives up the
# statement: what nobody waits for any more must not go on, and a connection whose statement was
# ended by the server need not be closed.
STATEMENT_SHARE: Final = 0.9

# The same as in deploy/mysql.cnf. With others a backslash is no escape, double quotes are names,
# long values are cut, or a result ends early, and nothing would say so.
SQL_MODE: Final = (
    "ONLY_FULL_GROUP_BY,STRICT_TRANS_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,"
    "ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"
)
# The settings of each session, those of MySQL and MariaDB alone in comments which only they read.
SESSION_SETTINGS: Final = {
    "sql_mode": SQL_MODE,
    "time_zone": "+00:00",
    "character_set_client": "utf8mb4",
    "character_set_connection": "utf8mb4",
    "character_set_results": "utf8mb4",
    "default_storage_engine": "InnoDB",
    "completion_type": "NO_CHAIN",
    "sql_select_limit": 2**64 - 1,
    "sql_big_selects": 1,
    "sql_safe_updates": 0,
    "sql_auto_is_null": 0,
    "unique_checks": 1,
    "net_read_timeout": 30,
    "net_write_timeout": 60,
}
MYSQL_SETTINGS: Final = {
    "transaction_isolation": "READ-COMMITTED",
    "transaction_read_only": 0,
    # Else a list of more than 200 ids is costed by statistics, and while they lag behind a growing
    # ledger the server may scan the whole index instead of looking each id up.
    "eq_range_index_dive_limit": 0,
}
MARIADB_SETTINGS: Final = {
    "tx_isolation": "READ-COMMITTED",
    "tx_read_only": 0,
    # By default a list of a thousand ids becomes a temporary table, and the server may then scan
    # the whole ledger to look up each row in it.
    "in_predicate_conversion_threshold": 0,
    # A transaction of ours may rest as long as `wait_timeout` allows.
    "idle_transaction_timeout": 0,
    "idle_readonly_transaction_timeout": 0,
    "idle_write_transaction_timeout": 0,
}
# Unknown variable, a value or a privilege that the server does not grant, a read-only variable.
_SETTING_REFUSED: Final = (1193, 1227, 1231, 1238)

# The values with which a COMMIT is on the disk when it returns, the recommended one last
# (https://dev.mysql.com/doc/refman/8.4/en/innodb-parameters.html).
DURABLE_SETTINGS: Final = {
    "innodb_flush_log_at_trx_commit": ("1",),
    "innodb_doublewrite": ("1", "DETECT_AND_RECOVER", "ON"),
}

_SNAPSHOT_KEY: Final = "ledger_snapshot_key"

# Far below the `max_allowed_packet` of any server, and enough to make round trips cheap.
PACKET_CHARACTERS: Final = 250_000


class UnsafeDatabase(Exception):
    """The server could lose a COMMIT, or does not take the settings that sessions need."""


@lru_cache(maxsize=1024)  # most rows that are read together have the same times
def _utc(text: str) -> datetime | str:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError:
        return text  # such as 0000-00-00, which only a change by hand can leave


# Every DATETIME is in UTC, which the driver doesn't know.
_CONVERSIONS: Final = {**conversions, DATETIME: _utc}


def placeholders(values: Collection[object]) -> str:
    """Return one `%s` for each value, as an IN list has them."""
    return ", ".join(["%s"] * len(values))


def id_literals(ids: Iterable[bytes]) -> str:
    """Ids as an IN list has them: of thousands it takes a fifth of what placeholders take."""
    return ", ".join([f"x'{id_.hex()}'" for id_ in ids]) or "NULL"


async def select(
    connection: AsyncConnection, statement: str, parameters: Sequence[object] = ()
) -> Sequence[tuple[Any, ...]]:
    """Run a SELECT, and return its rows as the driver gives them, with times in UTC.

    SQLAlchemy's rows would take as long again, which counts where rows come by the thousand.
    """
    result = await connection.exec_driver_sql(statement, tuple(parameters))
    cursor: Any = result.cursor
    rows: Sequence[tuple[Any, ...]] = cursor.fetchall()
    result.close()
    return rows


def make_engine(
    url: URL,
    ca_file: Path | None = None,
    *,
    read_timeout_s: float = 15,
    pool_size: int = 2,
    autocommit: bool = False,
    snapshot_key: bytes | None = None,
) -> AsyncEngine:
    """A pool of connections with READ COMMITTED, or with `autocommit`; dispose of it at the end.

    Every wait has a deadline: for a connection, for an answer, for a lock. The server ends a
    statement after STATEMENT_SHARE of `read_timeout_s`. Who has the `snapshot_key` can tell true
    snapshots from forged ones, and make them.
    """
    # The server ends a connection that is idle within a transaction, as that of a stopped process
    # is: its locks must not hold up a successor. With autocommit there are no such locks.
    idle_timeout_s = AUTOCOMMIT_IDLE_TIMEOUT_S if autocommit else IDLE_TIMEOUT_S
    connect_args: dict[str, Any] = {
        "async_creator_fn": _connect,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "conv": _CONVERSIONS,
        "read_timeout": read_timeout_s,
        "init_command": _set_session(read_timeout_s, idle_timeout_s),
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
        hide_parameters=True,  # errors are logged, and customers' data must not be
        execution_options={_SNAPSHOT_KEY: snapshot_key},
    )


def _set_session(read_timeout_s: float, idle_timeout_s: int) -> str:
    statement_s = STATEMENT_SHARE * read_timeout_s
    limits = {
        "wait_timeout": idle_timeout_s,
        "innodb_lock_wait_timeout": LOCK_TIMEOUT_S,
        # That of a lock on a table; by default it is a day or a year.
        "lock_wait_timeout": math.ceil(read_timeout_s),
    }
    # MariaDB ends any statement, MySQL SELECTs (https://mariadb.com/kb/en/max_statement_time/,
    # https://dev.mysql.com/doc/refman/8.4/en/server-system-variables.html#sysvar_max_execution_time).
    mariadb = MARIADB_SETTINGS | {"max_statement_time": round(statement_s, 3)}
    mysql = MYSQL_SETTINGS | {"max_execution_time": round(statement_s * 1000)}
    return (
        f"SET {_assignments(SESSION_SETTINGS | limits)}"
        f" /*M! , {_assignments(mariadb)} */ /*!80000 , {_assignments(mysql)} */"
    )


def _assignments(settings: Mapping[str, object]) -> str:
    return ", ".join(f"SESSION {name} = {value!r}" for name, value in settings.items())


class _Connection(Connection):
    def literal(self, obj: object) -> str:
        # The driver would escape bytes with backslashes, which not every mode of a server reads so.
        if isinstance(obj, bytes | bytearray):
            return f"x'{obj.hex()}'"
        text: str = super().literal(obj)  # type: ignore[no-untyped-call]  # a compiled driver
        return text


def snapshot_key(connectable: AsyncConnection | AsyncEngine) -> bytes | None:
    """The key that the engine of a connection was made with, for the seals of snapshots."""
    if isinstance(connectable, AsyncConnection):
        connectable = connectable.engine
    key: bytes | None = connectable.get_execution_options().get(_SNAPSHOT_KEY)
    return key


async def _connect(**arguments: Any) -> Any:
    connection = _Connection(**arguments)  # type: ignore[no-untyped-call]
    try:
        await connection.connect()
    except RuntimeError as error:
        # asyncmy raises this for a proxy that accepts the connection and closes it at once.
        raise OperationalError(f"connecting: {error}") from error
    except MySQLError as error:
        if error.args and error.args[0] in _SETTING_REFUSED:
            raise UnsafeDatabase(
                f"the database does not take a setting that sessions need ({error.args[-1]}):"
                " use a supported server, without a proxy that answers in its place"
            ) from error
        raise
    return connection


async def refuse_unsafe(connection: AsyncConnection) -> None:
    """Raise UnsafeDatabase, with the setting and the remedy, if the server can't be relied on.

    That is one where a COMMIT would not be durable, or that has not set what a session asked for.
    """

    async def setting(name: str, scope: str = "GLOBAL") -> str:
        return str((await connection.exec_driver_sql(f"SELECT @@{scope}.{name}")).scalar_one())

    for name, wanted in SESSION_SETTINGS.items():
        if (value := await setting(name, "SESSION")) != str(wanted):
            raise UnsafeDatabase(
                f"{name} is {value!r} in a session that set it to {wanted!r}:"
                " let no proxy or init_connect change what a session sets"
            )
    for name, durable in DURABLE_SETTINGS.items():
        value = await setting(name)
        if value not in durable:
            raise UnsafeDatabase(
                f"{name} is {value}: set it to {durable[-1]}, or commits can be lost"
            )
    # With a binary log, recovery after a crash goes by what the log has on the disk.
    if await setting("log_bin") in ("1", "ON") and (value := await setting("sync_binlog")) != "1":
        raise UnsafeDatabase(f"sync_binlog is {value}: set it to 1, or turn the binlog off")


@lru_cache(maxsize=1024)  # most text in views and records is one of a few words
def _text(value: str) -> str:
    if value.isascii() and value.replace("_", "").isalnum():
        return f"'{value}'"
    return f"_utf8mb4 x'{value.encode().hex()}'"


# The driver sends times without a zone; views have them in UTC, with or without one.
_LITERALS: Final[dict[type, Callable[[Any], str]]] = {
    int: str,
    bytes: lambda value: f"x'{value.hex()}'",
    type(None): lambda _: "NULL",
    UUID: lambda value: f"x'{value.hex}'",
    str: _text,
    datetime: lru_cache(1024)(lambda value: f"'{value.isoformat(' ', 'microseconds')[:26]}'"),
}


def packets(rows: Iterable[Struct]) -> Iterator[str]:
    """Render rows as what follows VALUES, in pieces of about PACKET_CHARACTERS."""
    packet: list[str] = []
    characters = 0
    for row in rows:
        packet.append(f"({','.join([_LITERALS[type(value)](value) for value in astuple(row)])})")
        characters += len(packet[-1])
        if characters > PACKET_CHARACTERS:
            yield ",".join(packet)
            packet.clear()
            characters = 0
    if packet:
        yield ",".join(packet)


async def insert_rows(connection: AsyncConnection, insert: str, rows: Iterable[Struct]) -> None:
    """Run `insert`, the text of a statement before VALUES, for these rows."""
    await run_inserts(connection, ((insert, packet) for packet in packets(rows)))


async def run_inserts(connection: AsyncConnection, inserts: Iterable[tuple[str, str]]) -> None:
    """Run INSERT statements in order, each given as its text before VALUES and a packet.

    Errors, which are logged, contain the statement without its rows.
    """

    async def run(insert: str, packet: str) -> None:
        try:
            await connection.exec_driver_sql(f"{insert} VALUES {packet}")
        except DBAPIError as error:
            error.statement = insert
            raise

    remaining = iter(inserts)
    current = next(remaining, None)
    while current:
        running = asyncio.create_task(run(*current))
        try:
            # Let the statement leave, then make the next packet while the database works on it.
            await asyncio.sleep(0)
            current = next(remaining, None)
        finally:
            await running
