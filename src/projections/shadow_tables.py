"""Shadows: tables beside the views, made like them, and how far each of them is."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final

from sqlalchemy import VARBINARY, Column, Integer, MetaData, String, Table
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import CreateIndex, CreateTable

from ledger.runtime.failpoints import failpoint
from projections.tables import marks
from projections.views.projection import Projection, position_column

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


@dataclass
class Shadow:
    """A table beside the view `live`, which `made` writes: the same projection by another name."""

    live: Projection[Any]
    made: Projection[Any]
    position: int


def beside(live: Projection[Any], suffix: str) -> Projection[Any]:
    """A view's projection that writes the table beside it."""
    name = live.name + suffix
    return replace(live, name=name, table=live.table.to_metadata(MetaData(), name=name))


async def open_shadow(
    connection: AsyncConnection, live: Projection[Any], *, restart: bool
) -> Shadow:
    """The shadow of a view as the last rebuild left it, or an empty one.

    One that was made by other code, or in another shape, is dropped; with `restart`, any.
    """
    made = beside(live, SHADOW)
    found = None if restart else await known(connection, made.name)
    if found and (found.view_version, found.shape) == (live.version, _shape(made)):
        return Shadow(live, made, found.position)
    await drop(connection, made.name)
    await connection.execute(CreateTable(made.table))
    await failpoint("rebuild.after-create")
    await connection.exec_driver_sql(
        "INSERT INTO rebuilds (name, position, view_version, shape) VALUES (%s, 0, %s, %s)",
        (made.name, live.version, _shape(made)),
    )
    await connection.commit()
    return Shadow(live, made, 0)


async def known(connection: AsyncConnection, name: str) -> Any:
    """What is known of a table beside a view: name, position, view_version, shape; None if it's
    not there. What is known of a table that isn't there counts for nothing."""
    if not await existing(connection, [name]):
        return None
    found = await connection.exec_driver_sql(
        "SELECT name, position, view_version, shape FROM rebuilds WHERE name = %s", (name,)
    )
    return found.one_or_none()


async def existing(connection: AsyncConnection, names: Collection[str]) -> set[str]:
    """Those of the tables that are there."""
    found = await connection.exec_driver_sql(
        "SELECT table_name FROM information_schema.tables"
        f" WHERE table_schema = DATABASE() AND table_name IN ({marks(names)})",
        tuple(names),
    )
    return set(found.scalars())


async def drop(connection: AsyncConnection, *names: str) -> set[str]:
    """Drop those of the tables that are there, and what is known of them; their names."""
    there = await existing(connection, names)
    for name in there:
        await connection.exec_driver_sql(f"DROP TABLE {name}")
    await connection.exec_driver_sql(
        f"DELETE FROM rebuilds WHERE name IN ({marks(names)})", tuple(names)
    )
    await connection.commit()
    return there


async def move(connection: AsyncConnection, shadow: Shadow, position: int) -> None:
    """Say, in the transaction that wrote the rows, how far a shadow is."""
    await connection.exec_driver_sql(
        "UPDATE rebuilds SET position = %s WHERE name = %s", (position, shadow.made.name)
    )


async def add_indexes(connection: AsyncConnection, shadow: Shadow) -> None:
    """Make those indexes of the view that the shadow does not have yet, and take statistics."""
    found = await connection.exec_driver_sql(
        "SELECT DISTINCT index_name FROM information_schema.statistics"
        " WHERE table_schema = DATABASE() AND table_name = %s",
        (shadow.made.name,),
    )
    there = set(found.scalars())
    for index in sorted(shadow.made.table.indexes, key=lambda index: str(index.name)):
        if index.name not in there:
            await connection.execute(CreateIndex(index))
    await connection.exec_driver_sql(f"ANALYZE TABLE {shadow.made.name}")
    await connection.commit()


def _shape(projection: Projection[Any]) -> bytes:
    table = projection.table
    indexes = sorted(str(CreateIndex(index)) for index in table.indexes)
    return sha256("\n".join([str(CreateTable(table)), *indexes]).encode()).digest()
