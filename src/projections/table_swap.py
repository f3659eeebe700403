"""Swapping: rebuilt tables take the place of views by one RENAME, at a position where all stand."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.runtime.failpoints import failpoint, meanwhile
from projections.shadow_tables import OLD, REBUILDS, Shadow, drop
from projections.tables import CHECKPOINTS, Checkpoint, lock_swap, read_checkpoints, release_swap
from projections.views.projection import Projection

BUSY_S: Final = 5
"""How long to wait for another rebuild, or for one that died a moment ago to be gone."""
SILENT_S: Final = 10
"""After so long without a word the server ends a session that holds the views still."""
SESSION_S: Final = 3600
RENAME_S: Final = 0.3
"""How long readers wait behind a RENAME which itself waits for a long transaction."""

_NEXT: Final = "_next"
_STATE: Final = (CHECKPOINTS.name, REBUILDS.name)
_GAVE_WAY: Final = (1205, 1317)
"""Lock wait timeout exceeded; the query was interrupted."""


class RebuildRefused(Exception):
    """A view can't be rebuilt, or an old one brought back, as things are."""


@asynccontextmanager
async def held_still(
    connection: AsyncConnection, views: Sequence[Projection[Any]]
) -> AsyncIterator[dict[str, Checkpoint]]:
    """Let no projector write meanwhile; the checkpoints at which the views stand.

    Whatever ends the block early must end the session too, which lets them write again.
    """
    if not await lock_swap(connection, BUSY_S):
        raise RebuildRefused("another rebuild holds the views still: run this again")
    await connection.exec_driver_sql(f"SET SESSION wait_timeout = {SILENT_S}")
    # Waits for the batch under way: whoever locks them after that sees that views may be swapped.
    checkpoints = await read_checkpoints(connection, views, "FOR UPDATE")
    await connection.rollback()
    yield checkpoints
    await connection.exec_driver_sql(f"SET SESSION wait_timeout = {SESSION_S}")
    await release_swap(connection)


async def swap(
    connection: AsyncConnection,
    other: AsyncConnection,
    tables: Sequence[Shadow],
    checkpoints: dict[str, Checkpoint],
) -> bool:
    """Put tables in the place of their views, which are kept as old ones; whether it could be done.

    Checkpoints and what is known of the tables change by the same RENAME, which servers with atomic
    DDL (MySQL 8.0, MariaDB 10.6) do as a whole or not at all, even if they crash. It gives way to a
    transaction that has read a view and goes on, after RENAME_S. Views must be held still.
    """
    await _stage(connection, tables, checkpoints)
    await failpoint("rebuild.before-swap")
    if not await _renamed(connection, other, _renames(tables)):
        return False
    await failpoint("rebuild.after-swap")
    await drop(connection, *(name + OLD for name in _STATE))
    return True


async def _stage(
    connection: AsyncConnection, tables: Sequence[Shadow], checkpoints: dict[str, Checkpoint]
) -> None:
    """Make checkpoints and rebuilds as they are to be once the tables are swapped."""
    await drop(connection, *(name + suffix for name in _STATE for suffix in (_NEXT, OLD)))
    for name in _STATE:
        await connection.exec_driver_sql(f"CREATE TABLE {name}{_NEXT} LIKE {name}")
        await connection.exec_driver_sql(f"INSERT INTO {name}{_NEXT} SELECT * FROM {name}")
    for table in tables:
        view, before = table.live, checkpoints[table.live.name]
        await connection.exec_driver_sql(
            "UPDATE checkpoints_next SET position = %s, view_version = %s WHERE name = %s",
            (table.position, view.version, view.name),
        )
        await connection.exec_driver_sql(
            "DELETE FROM rebuilds_next WHERE name IN (%s, %s)", (table.made.name, view.name + OLD)
        )
        await connection.exec_driver_sql(
            "INSERT INTO rebuilds_next (name, position, view_version, shape)"
            " VALUES (%s, %s, %s, '')",
            (view.name + OLD, before.position, before.version),
        )
    await connection.commit()


def _renames(tables: Sequence[Shadow]) -> str:
    pairs: list[tuple[str, str]] = []
    for table in tables:
        view, old = table.live.name, table.live.name + OLD
        if table.made.name == old:
            pairs += [(view, f"{view}{_NEXT}"), (old, view), (f"{view}{_NEXT}", old)]
        else:
            pairs += [(view, old), (table.made.name, view)]
    for name in _STATE:
        pairs += [(name, name + OLD), (name + _NEXT, name)]
    return "RENAME TABLE " + ", ".join(f"{before} TO {after}" for before, after in pairs)


async def _renamed(connection: AsyncConnection, other: AsyncConnection, renames: str) -> bool:
    """Whether it was done; it is ended where it has to wait for others, and readers behind it."""
    number = (await connection.exec_driver_sql("SELECT CONNECTION_ID()")).scalar_one()
    await connection.rollback()
    renaming = asyncio.ensure_future(
        meanwhile("rebuild.swap-sent", connection.exec_driver_sql(renames))
    )
    try:
        await asyncio.wait([renaming], timeout=RENAME_S)
        if not renaming.done() and await _waits(other, number):
            await other.exec_driver_sql(f"KILL QUERY {number}")
        await renaming
    except DBAPIError as error:
        if error.orig and error.orig.args[0] in _GAVE_WAY:
            return False
        raise
    finally:
        renaming.cancel()
    return True


async def _waits(connection: AsyncConnection, number: int) -> bool:
    found = await connection.exec_driver_sql(
        "SELECT state FROM information_schema.processlist WHERE id = %s", (number,)
    )
    return found.scalar_one_or_none() == "Waiting for table metadata lock"
