"""Tables beside the views: shadows that a rebuild fills, and the RENAME that swaps them in.

A shadow has the view's columns and indexes and the name of the view with a suffix. The table
`rebuilds` says how far each one is; `checkpoints` names live views alone.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final

from sqlalchemy import VARBINARY, Column, Integer, MetaData, String, Table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import CreateIndex, CreateTable

from ledger.runtime.database import placeholders
from ledger.runtime.failpoints import failpoint, failpoint_after_send
from projections.tables import (
    CHECKPOINTS,
    Checkpoint,
    create_indexes,
    lock_swap,
    read_checkpoints,
    release_swap,
)
from projections.views.projection import Projection, position_column

# How long to wait for another rebuild, or for one that died a moment ago to be gone.
BUSY_S: Final = 5
# After so long without a statement the server ends a session that keeps projectors from writing.
SILENT_S: Final = 10
SESSION_S: Final = 3600
# How long readers wait behind a RENAME which itself waits for a long transaction.
RENAME_S: Final = 0.3

REBUILDS: Final = Table(
    "rebuilds",
    MetaData(),
    Column("name", String(64, "ascii_bin"), primary_key=True, comment="a table beside a view"),
    position_column("position", "the last position applied to it"),
    Column("view_version", Integer, nullable=False, comment="the code that made it"),
    Column("shape", VARBINARY(32), nullable=False, comment="hash of its definition, if known"),
)
SHADOW: Final = "_shadow"
OLD: Final = "_old"
_NEXT: Final = "_next"
_STATE_TABLES: Final = (CHECKPOINTS.name, REBUILDS.name)
# Lock wait timeout exceeded; query execution was interrupted.
_LOCK_TIMEOUT_ERRORS: Final = (1205, 1317)


class RebuildRefused(Exception):
    """A view can't be rebuilt, or an old table swapped back in, as things are."""


@dataclass
class Shadow:
    """A table beside the view `live`; `table` is the same projection under the table's name."""

    live: Projection[Any]
    table: Projection[Any]
    position: int


def side_table(live: Projection[Any], suffix: str) -> Projection[Any]:
    """Return the projection of a view with another table, such as orders_shadow."""
    name = live.name + suffix
    return replace(live, name=name, table=live.table.to_metadata(MetaData(), name=name))


async def open_shadow(connection: AsyncConnection, live: Projection[Any], up_to: int) -> Shadow:
    """The shadow of a view as the last rebuild left it, or an empty one.

    One that is beyond `up_to`, of another version, or with other columns or indexes is dropped.
    """
    table = side_table(live, SHADOW)
    state = await find_state(connection, table.name)
    same = state and (state.view_version, state.shape) == (live.version, _shape(table))
    if same and state.position <= up_to:
        return Shadow(live, table, state.position)
    await drop_tables(connection, table.name)
    # Secondary indexes come after the load (`add_indexes`): that takes less time than with them.
    await connection.execute(CreateTable(table.table))
    await failpoint("rebuild.after-create")
    await connection.exec_driver_sql(
        "INSERT INTO rebuilds (name, position, view_version, shape) VALUES (%s, 0, %s, %s)",
        (table.name, live.version, _shape(table)),
    )
    await connection.commit()
    return Shadow(live, table, 0)


def _shape(projection: Projection[Any]) -> bytes:
    table = projection.table
    indexes = sorted(str(CreateIndex(index)) for index in table.indexes)
    return sha256("\n".join([str(CreateTable(table)), *indexes]).encode()).digest()


async def find_state(connection: AsyncConnection, name: str) -> Any:
    """The row of `rebuilds` for a table beside a view; None if the table is missing."""
    # A crash between DROP TABLE and DELETE leaves a row without its table.
    if not await existing_tables(connection, [name]):
        return None
    found = await connection.exec_driver_sql(
        "SELECT name, position, view_version, shape FROM rebuilds WHERE name = %s", (name,)
    )
    return found.one_or_none()


async def existing_tables(connection: AsyncConnection, names: Collection[str]) -> set[str]:
    """The names that are tables of this database."""
    if not names:
        return set()
    found = await connection.exec_driver_sql(
        "SELECT table_name FROM information_schema.tables"
        f" WHERE table_schema = DATABASE() AND table_name IN ({placeholders(names)})",
        tuple(names),
    )
    return set(found.scalars())


async def drop_tables(connection: AsyncConnection, *names: str) -> set[str]:
    """Drop the tables that exist, with their rows of `rebuilds`; returns their names."""
    existing = await existing_tables(connection, names)
    for name in existing:
        await connection.exec_driver_sql(f"DROP TABLE {name}")
    await connection.exec_driver_sql(
        f"DELETE FROM rebuilds WHERE name IN ({placeholders(names)})", tuple(names)
    )
    await connection.commit()
    return existing


async def add_indexes(connection: AsyncConnection, shadow: Shadow) -> None:
    """Create the view's indexes that the shadow lacks, and take statistics."""
    await create_indexes(connection, shadow.table)
    # Without statistics the first queries after the swap would choose their indexes blindly.
    await connection.exec_driver_sql(f"ANALYZE TABLE {shadow.table.name}")
    await connection.commit()


@asynccontextmanager
async def projectors_paused(
    connection: AsyncConnection, views: Sequence[Projection[Any]]
) -> AsyncIterator[dict[str, Checkpoint]]:
    """Let no projector write meanwhile; gives the checkpoints of the views.

    If the block raises, the caller must end the session: that releases the lock.
    """
    if not await lock_swap(connection, BUSY_S):
        raise RebuildRefused("another rebuild holds the projectors back: run this again")
    await connection.exec_driver_sql(f"SET SESSION wait_timeout = {SILENT_S}")
    # Waits for the batch under way: a projector that locks them later sees that a swap may come.
    checkpoints = await read_checkpoints(connection, views, "FOR UPDATE")
    await connection.rollback()
    yield checkpoints
    await connection.exec_driver_sql(f"SET SESSION wait_timeout = {SESSION_S}")
    await release_swap(connection)


async def swap(
    connection: AsyncConnection,
    other: AsyncConnection,
    shadows: Sequence[Shadow],
    checkpoints: dict[str, Checkpoint],
) -> bool:
    """Put shadows in the place of their views, which stay as old tables; False if it gave way.

    The same RENAME replaces `checkpoints` and `rebuilds`. Servers with atomic DDL (MySQL 8.0,
    MariaDB 10.6) do all of it or nothing, even in a crash. It gives way, after RENAME_S, to a
    transaction that has read a view and goes on. Projectors must be paused.
    """
    # `checkpoints_next` and `rebuilds_next` hold what is true once the tables are swapped.
    await drop_tables(
        connection, *(name + suffix for name in _STATE_TABLES for suffix in (_NEXT, OLD))
    )
    for name in _STATE_TABLES:
        await connection.exec_driver_sql(f"CREATE TABLE {name}{_NEXT} LIKE {name}")
        await connection.exec_driver_sql(f"INSERT INTO {name}{_NEXT} SELECT * FROM {name}")
    renames: list[tuple[str, str]] = []
    for shadow in shadows:
        view, side, old = shadow.live.name, shadow.table.name, shadow.live.name + OLD
        before = checkpoints[view]
        await connection.exec_driver_sql(
            "UPDATE checkpoints_next SET position = %s, view_version = %s WHERE name = %s",
            (shadow.position, shadow.live.version, view),
        )
        await connection.exec_driver_sql(
            "DELETE FROM rebuilds_next WHERE name IN (%s, %s)", (side, old)
        )
        await connection.exec_driver_sql(
            "INSERT INTO rebuilds_next (name, position, view_version, shape)"
            " VALUES (%s, %s, %s, '')",
            (old, before.position, before.version),
        )
        if side == old:
            # Undo: the view and its old table change places, over a third name.
            renames += [(view, view + _NEXT), (old, view), (view + _NEXT, old)]
        else:
            renames += [(view, old), (side, view)]
    await connection.commit()
    await failpoint("rebuild.before-swap")
    for name in _STATE_TABLES:
        renames += [(name, name + OLD), (name + _NEXT, name)]
    if not await _rename(connection, other, renames):
        return False
    await failpoint("rebuild.after-swap")
    await drop_tables(connection, *(name + OLD for name in _STATE_TABLES))
    return True


async def _rename(
    connection: AsyncConnection, other: AsyncConnection, renames: Sequence[tuple[str, str]]
) -> bool:
    """Rename tables in one statement; False if a transaction that reads one of them goes on."""
    statement = "RENAME TABLE " + ", ".join(f"{old} TO {new}" for old, new in renames)
    session_id = (await connection.exec_driver_sql("SELECT CONNECTION_ID()")).scalar_one()
    await connection.rollback()
    renaming = asyncio.ensure_future(
        failpoint_after_send("rebuild.swap-sent", connection.exec_driver_sql(statement))
    )
    try:
        await asyncio.wait([renaming], timeout=RENAME_S)
        if not renaming.done():
            found = await other.exec_driver_sql(
                "SELECT state FROM information_schema.processlist WHERE id = %s", (session_id,)
            )
            # While a RENAME waits, every later reader of these tables waits behind it.
            if found.scalar_one_or_none() == "Waiting for table metadata lock":
                await other.exec_driver_sql(f"KILL QUERY {session_id}")
        await renaming
    except DBAPIError as error:
        if error.orig and error.orig.args[0] in _LOCK_TIMEOUT_ERRORS:
            return False
        raise
    finally:
        renaming.cancel()
    return True
