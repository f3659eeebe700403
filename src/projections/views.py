"""The views in the database: their checkpoints, and their rows as the projector writes them."""

from collections.abc import Iterable, Sequence
from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from sqlalchemy import Column, Integer, String, Table
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from projections.projection import (
    METADATA,
    Key,
    Projection,
    Row,
    ViewDamaged,
    from_columns,
    position_column,
    to_columns,
)

CHECKPOINTS: Final = Table(
    "checkpoints",
    METADATA,
    Column("name", String(40, "ascii_bin"), primary_key=True, comment="the view"),
    position_column("position", "the last position applied"),
    Column("view_version", Integer, nullable=False, comment="the code that made the view"),
)


class CheckpointLost(Exception):
    """A view has no checkpoint, or another projector moved it: run `ledger migrate`."""


async def register(connection: AsyncConnection, projections: Sequence[Projection[Any]]) -> None:
    """Give each new view its checkpoint at position 0, where it begins."""
    await connection.exec_driver_sql(
        "INSERT IGNORE INTO checkpoints (name, position, view_version) VALUES (%s, 0, %s)",
        [(projection.name, projection.version) for projection in projections],
    )


async def lock_checkpoints(
    connection: AsyncConnection, projections: Sequence[Projection[Any]]
) -> dict[str, int]:
    """The checkpoint of each view; until the transaction ends nobody else can move one."""
    names = [projection.name for projection in projections]
    found = await connection.exec_driver_sql(
        f"SELECT name, position FROM checkpoints WHERE name IN ({_marks(names)})"
        " ORDER BY name FOR UPDATE",
        tuple(names),
    )
    rows: Any = found.all()
    checkpoints = dict(rows)
    if len(checkpoints) != len(names):
        raise CheckpointLost(f"no checkpoint of {set(names) - set(checkpoints)}: `ledger migrate`")
    return checkpoints


async def move_checkpoints(
    connection: AsyncConnection, projections: Sequence[Projection[Any]], position: int
) -> None:
    """Set the checkpoint of views, in the transaction that wrote their rows."""
    names = [projection.name for projection in projections]
    await connection.exec_driver_sql(
        f"UPDATE checkpoints SET position = %s WHERE name IN ({_marks(names)})",
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
        f" WHERE {projection.key_columns[0]} IN ({_marks(ids)})",
        tuple(ids),
    )
    rows = [from_columns(projection.row, tuple(row)) for row in found]
    return {projection.key_of(row): row for row in rows}


async def write_rows(
    connection: AsyncConnection, projection: Projection[Any], rows: Iterable[Struct]
) -> None:
    """Write whole rows: new or not in a view with keys, new ones in a view of lines.

    Raises ViewDamaged where a line is there already.
    """
    values = [to_columns(row) for row in rows]
    if not values:
        return
    columns = projection.columns
    try:
        await connection.exec_driver_sql(
            f"{projection.verb} INTO {projection.name} ({', '.join(columns)})"
            f" VALUES ({_marks(columns)})",
            values,
        )
    except IntegrityError as error:
        raise ViewDamaged(f"{projection.name} has rows it should not have yet: {error}") from error


def _marks(values: Sequence[object]) -> str:
    return ", ".join(["%s"] * len(values))
