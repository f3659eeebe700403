"""The tables of an export, which are the events and every registered view, and rows of views."""

from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import BINARY, Integer, String
from sqlalchemy.dialects.mysql import DATETIME
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.export import ExportRefused
from ledger.eventlog.reader import PAGE
from ledger.runtime.database import select
from projections.tables import CheckpointLost, begin_consistent_read, refuse_other_version
from projections.views import registry
from projections.views.projection import Projection

Rows = Sequence[Sequence[Any]]


class ColumnType(StrEnum):
    """The type of an exported column.

    Rows have UUIDs and hashes as bytes, JSON and text in UTF-8, and timestamps in microseconds
    since 1970.
    """

    UUID = "uuid"
    WORD = "word"
    TEXT = "text"
    JSON = "json"
    INTEGER = "integer"
    TIMESTAMP = "timestamp"
    SHA256 = "sha256"


class Column(Struct, frozen=True, omit_defaults=True):
    """One column of an export."""

    name: str
    type: ColumnType
    nullable: bool = False


class Table(Struct, frozen=True):
    """The events, or the view of a projection; rows are exported in the order of `key`."""

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    projection: Projection[Any] | None = None


# In the order of the fields of a `Record`.
EVENTS: Final = Table(
    "events",
    (
        Column("position", ColumnType.INTEGER),
        Column("event_id", ColumnType.UUID),
        Column("stream_id", ColumnType.UUID),
        Column("version", ColumnType.INTEGER),
        Column("type", ColumnType.WORD),
        Column("schema_version", ColumnType.INTEGER),
        Column("cause_position", ColumnType.INTEGER),
        Column("occurred_at", ColumnType.TIMESTAMP),
        Column("recorded_at", ColumnType.TIMESTAMP),
        Column("meta", ColumnType.JSON),
        Column("data", ColumnType.JSON),
        Column("hash", ColumnType.SHA256),
    ),
    ("position",),
)


def view_table(projection: Projection[Any]) -> Table:
    """The table of a projection's view, with the columns of its table in the database."""
    columns = tuple(
        Column(name, _column_type(column.type), bool(column.nullable))
        for name, column in zip(projection.columns, projection.table.columns, strict=True)
    )
    return Table(projection.name, columns, projection.key_columns, projection)


def _column_type(sql_type: object) -> ColumnType:
    match sql_type:
        case BINARY():
            return ColumnType.UUID
        case String(collation=collation):
            return ColumnType.WORD if collation == "ascii_bin" else ColumnType.TEXT
        case Integer():
            return ColumnType.INTEGER
        case DATETIME():
            return ColumnType.TIMESTAMP
    raise TypeError(f"no export for columns of {sql_type!r}")


def tables_by_name() -> dict[str, Table]:
    """Everything that can be exported: the events and the view of every registered projection."""
    return {table.name: table for table in (EVENTS, *map(view_table, registry.PROJECTIONS))}


async def pin_views(connection: AsyncConnection, views: Sequence[Table]) -> int:
    """Begin a transaction that reads these views as of now; the position that they are all at.

    Raises CheckpointLost, ViewOutdated, and ExportRefused where they are at several positions.
    """
    projections = [view.projection for view in views if view.projection]
    checkpoints = await begin_consistent_read(connection, projections)
    for projection in projections:
        if projection.name not in checkpoints:
            raise CheckpointLost(f"{projection.name} has no checkpoint: run `ledger migrate`")
        refuse_other_version(projection, checkpoints[projection.name].version)
    positions = {checkpoints[view.name].position for view in views}
    if len(positions) > 1:
        raise ExportRefused(
            f"the views are at different positions ({', '.join(map(str, sorted(positions)))}):"
            " wait until the projector has brought them together, or export them one by one"
        )
    return positions.pop()


async def count_rows(connection: AsyncConnection, view: Table) -> int:
    """The number of rows of a view."""
    return int((await connection.exec_driver_sql(f"SELECT COUNT(*) FROM {view.name}")).scalar_one())


async def view_pages(connection: AsyncConnection, view: Table) -> AsyncIterator[Rows]:
    """The rows of a view in the order of its key, page by page."""
    expressions = ", ".join(
        f"TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {column.name})"
        if column.type is ColumnType.TIMESTAMP
        else column.name
        for column in view.columns
    )
    order = f"ORDER BY {', '.join(view.key)} LIMIT {PAGE}"
    key_indexes = [[column.name for column in view.columns].index(name) for name in view.key]
    where = "TRUE"
    values: list[Any] = []
    while True:
        rows = await select(
            connection, f"SELECT {expressions} FROM {view.name} WHERE {where} {order}", values
        )
        if not rows:
            return
        yield rows
        last = [rows[-1][index] for index in key_indexes]
        # Written out, as neither server uses an index range for a comparison of row values.
        clauses: list[str] = []
        values = []
        for length, name in enumerate(view.key):
            equal = [f"{earlier} = %s" for earlier in view.key[:length]]
            clauses.append(f"({' AND '.join([*equal, f'{name} > %s'])})")
            values += last[: length + 1]
        where = " OR ".join(clauses)
