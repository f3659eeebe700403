"""The views in the database: their checkpoints, and their rows as the projector writes them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, TypeVar
from uuid import UUID

from msgspec import Struct
from sqlalchemy import Column, Integer, String, Table, inspect
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.runtime.database import packets, placeholders, run_inserts
from projections.views.projection import (
    METADATA,
    Key,
    Projection,
    Row,
    ViewDamaged,
    from_columns,
    position_column,
)

T = TypeVar("T")

CHECKPOINTS: Final = Table(
    "checkpoints",
    METADATA,
    Column("name", String(40, "ascii_bin"), primary_key=True, comment="the view"),
    position_column("position", "the last position applied"),
    Column("view_version", Integer, nullable=False, comment="the code that made the view"),
)

# The server's lock that a session holds while it may rename views; see `lock_checkpoints`.
SWAP_LOCK: Final = "CONCAT(DATABASE(), '.swap')"
SWAP_TIMEOUT_S: Final = 2

# Is called with how many more positions, rows or tables are done.
OnProgress = Callable[[int], None]


class CheckpointLost(Exception):
    """A view has no checkpoint, or another projector moved it: run `ledger migrate`."""


class ViewOutdated(Exception):
    """A view was made by another version of its code than this one."""


class Checkpoint(Struct, frozen=True):
    """The last position that a view applied, and the version of the code that made it."""

    position: int
    version: int


async def register(connection: AsyncConnection, projections: Sequence[Projection[Any]]) -> None:
    """Give each new view its checkpoint at position 0, where it begins."""
    await connection.exec_driver_sql(
        "INSERT IGNORE INTO checkpoints (name, position, view_version) VALUES (%s, 0, %s)",
        # In the order in which projectors lock the rows: in another one the two may deadlock.
        sorted((projection.name, projection.version) for projection in projections),
    )


async def create_indexes(connection: AsyncConnection, projection: Projection[Any]) -> None:
    """Create the indexes that a view's table lacks, or has with other columns.

    Others go on writing it meanwhile.
    """
    table = projection.table
    found = await connection.run_sync(lambda sync: inspect(sync).get_indexes(table.name))
    columns = {index["name"]: index["column_names"] for index in found}
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        if columns.get(index.name) != index.columns.keys():
            if index.name in columns:
                await connection.run_sync(index.drop)
            await connection.run_sync(index.create)


async def lock_checkpoints(
    connection: AsyncConnection, projections: Sequence[Projection[Any]]
) -> dict[str, int]:
    """The checkpoint of each view; until the transaction ends nobody else can move one.

    Waits while views are swapped. That is not left to the row locks alone: a rebuild that was
    killed loses them at once, while the server may still be at work on its RENAME. Raises
    ViewOutdated where a view is not one that this code may write, and CheckpointLost.
    """
    # The server evaluates IS_FREE_LOCK for each row once it has locked it: so every row has to say
    # that the lock is free.
    is_free = f"IS_FREE_LOCK({SWAP_LOCK})"
    rows = await _checkpoint_rows(connection, projections, is_free, "FOR UPDATE")
    while not all(free for *_, free in rows):
        await connection.rollback()
        if await lock_swap(connection, SWAP_TIMEOUT_S):
            await release_swap(connection)
        rows = await _checkpoint_rows(connection, projections, is_free, "FOR UPDATE")
    by_name = {projection.name: projection for projection in projections}
    for name, _, version, _ in rows:
        refuse_other_version(by_name[name], version)
    return {name: position for name, position, *_ in rows}


async def lock_swap(connection: AsyncConnection, timeout_s: int) -> bool:
    """Let no projector write until `release_swap` or the session's end; False if it timed out."""
    locked = await connection.exec_driver_sql(f"SELECT GET_LOCK({SWAP_LOCK}, {timeout_s})")
    return bool(locked.scalar_one())


async def release_swap(connection: AsyncConnection) -> None:
    """Let the projectors go on."""
    await connection.exec_driver_sql(f"DO RELEASE_LOCK({SWAP_LOCK})")
    await connection.rollback()


async def read_checkpoints(
    connection: AsyncConnection, projections: Sequence[Projection[Any]], lock: str = ""
) -> dict[str, Checkpoint]:
    """The checkpoint of each view; raises CheckpointLost."""
    return _by_name(row[:3] for row in await _checkpoint_rows(connection, projections, "1", lock))


async def _checkpoint_rows(
    connection: AsyncConnection, projections: Sequence[Projection[Any]], more: str, lock: str
) -> Sequence[Any]:
    names = [projection.name for projection in projections]
    found = await connection.exec_driver_sql(
        f"SELECT name, position, view_version, {more} FROM checkpoints"
        f" WHERE name IN ({placeholders(names)}) ORDER BY name {lock}",
        tuple(names),
    )
    rows = found.all()
    if len(rows) != len(names):
        lost = set(names) - {name for name, *_ in rows}
        raise CheckpointLost(f"no checkpoint of {lost}: `ledger migrate`")
    return rows


def refuse_other_version(projection: Projection[Any], version: int) -> None:
    """Raises ViewOutdated unless the view was made by the version of this code."""
    if version != projection.version:
        is_newer = version > projection.version
        remedy = "run the newer code" if is_newer else f"run `ledger rebuild {projection.name}`"
        raise ViewOutdated(
            f"view {projection.name} was made by version {version}, this code makes version"
            f" {projection.version}: {remedy}"
        )


async def begin_consistent_read(
    connection: AsyncConnection, projections: Sequence[Projection[Any]]
) -> dict[str, Checkpoint]:
    """Begin a transaction that reads all of these views as of this moment, and nothing later.

    One statement names checkpoints and views: so they are seen at one moment, and no view can be
    swapped until the transaction ends. (One begun WITH CONSISTENT SNAPSHOT would hold the moment
    and not the tables.)
    """
    await connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    await connection.exec_driver_sql("START TRANSACTION")
    names = [projection.name for projection in projections]
    touched = ", ".join(f"(SELECT 1 FROM {name} LIMIT 1)" for name in names)
    found = await connection.exec_driver_sql(
        f"SELECT name, position, view_version, {touched} FROM checkpoints"
        f" WHERE name IN ({placeholders(names)})",
        tuple(names),
    )
    return _by_name(row[:3] for row in found)


def _by_name(rows: Iterable[Any]) -> dict[str, Checkpoint]:
    return {name: Checkpoint(position, version) for name, position, version in rows}


async def move_checkpoints(
    connection: AsyncConnection, projections: Sequence[Projection[Any]], position: int
) -> None:
    """Set the checkpoint of views, in the transaction that wrote their rows."""
    names = [projection.name for projection in projections]
    await connection.exec_driver_sql(
        f"UPDATE checkpoints SET position = %s WHERE name IN ({placeholders(names)})",
        (position, *names),
    )


async def fetch_rows(
    connection: AsyncConnection, projection: Projection[Row], keys: Iterable[UUID]
) -> dict[Key, Row]:
    """The rows of a view that have these keys."""
    ids = [key.bytes for key in keys]
    if not ids:
        return {}
    found = await connection.exec_driver_sql(
        f"SELECT {', '.join(projection.columns)} FROM {projection.name}"
        f" WHERE {projection.key_columns[0]} IN ({placeholders(ids)})",
        tuple(ids),
    )
    rows = [from_columns(projection.row, tuple(row)) for row in found]
    return {projection.key_of(row): row for row in rows}


async def write_rows(
    connection: AsyncConnection, changed: Iterable[tuple[Projection[Any], Iterable[Struct]]]
) -> None:
    """Write whole rows: keyed ones replace those that are there, lines must be new.

    The rows of a view are made while the database still works on those of the one before. Raises
    ViewDamaged where a line is there already.
    """
    inserts = (
        (f"{view.verb} INTO {view.name} ({', '.join(view.columns)})", packet)
        for view, rows in changed
        for packet in packets(rows)
    )
    try:
        await run_inserts(connection, inserts)
    except IntegrityError as error:
        raise ViewDamaged(f"a line is there already: {error.orig}, {error.statement}") from error


def chunks(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """The values in lists of at most `size`."""
    left = iter(values)
    return iter(lambda: list(islice(left, size)), [])
