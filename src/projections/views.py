"""The views in the database: their checkpoints, and their rows as the projector writes them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from sqlalchemy import Column, Integer, String, Table
from sqlalchemy.ext.asyncio import AsyncConnection

from projections.projection import (
    METADATA,
    Projection,
    Row,
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
) -> dict[UUID, Row]:
    """The rows of a view that have these keys."""
    ids = [key.bytes for key in keys]
    if not ids:
        return {}
    columns = ", ".join(projection.row.__struct_fields__)
    found = await connection.exec_driver_sql(
        f"SELECT {columns} FROM {projection.name} WHERE {projection.key_column} IN ({_marks(ids)})",
        tuple(ids),
    )
    return {UUID(bytes=row[0]): from_columns(projection.row, tuple(row)) for row in found}


async def replace_rows(
    connection: AsyncConnection, projection: Projection[Any], rows: Mapping[UUID, Struct]
) -> None:
    """Write whole rows, new or not."""
    if not rows:
        return
    fields = projection.row.__struct_fields__
    await connection.exec_driver_sql(
        f"REPLACE INTO {projection.name} ({', '.join(fields)}) VALUES ({_marks(fields)})",
        [to_columns(row) for row in rows.values()],
    )


def _marks(values: Sequence[object]) -> str:
    return ", ".join(["%s"] * len(values))
