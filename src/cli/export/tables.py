"""What can be exported: the events and every view, column by column."""

from enum import StrEnum
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import BINARY, Integer, String
from sqlalchemy.dialects.mysql import DATETIME

from ledger.eventlog.records import Record
from projections.views.projection import Projection
from projections.views.registry import PROJECTIONS

_WORDS: Final = "ascii_bin"


class Kind(StrEnum):
    """What a column holds, and how it comes from the database.

    A UUID and a hash are bytes, JSON and text are UTF-8, a timestamp is in microseconds.
    """

    UUID = "uuid"
    WORD = "word"
    TEXT = "text"
    JSON = "json"
    INTEGER = "integer"
    TIMESTAMP = "timestamp"
    SHA256 = "sha256"


class Column(Struct, frozen=True, omit_defaults=True, rename={"kind": "type"}):
    """One column of an export."""

    name: str
    kind: Kind
    nullable: bool = False


class Table(Struct, frozen=True):
    """The events, or the view of a projection; rows are ordered by `key`."""

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    projection: Projection[Any] | None = None

    @property
    def view_version(self) -> int | None:
        """The version of a view's code."""
        return self.projection.version if self.projection else None


_OF_EVENTS: Final = {
    "event_id": Kind.UUID,
    "stream_id": Kind.UUID,
    "type": Kind.WORD,
    "occurred_at_us": Kind.TIMESTAMP,
    "recorded_at_us": Kind.TIMESTAMP,
    "meta": Kind.JSON,
    "data": Kind.JSON,
    "hash": Kind.SHA256,
}

EVENTS: Final = Table(
    "events",
    tuple(
        Column(field.removesuffix("_us"), _OF_EVENTS.get(field, Kind.INTEGER))
        for field in Record.__struct_fields__
    ),
    ("position",),
)


def view(projection: Projection[Any]) -> Table:
    """The table of a view."""
    columns = tuple(
        Column(name, _kind(column.type), bool(column.nullable))
        for name, column in zip(projection.columns, projection.table.columns, strict=True)
    )
    key = tuple(map(str, projection.key_columns))
    return Table(projection.name, columns, key, projection)


def _kind(type_: object) -> Kind:
    match type_:
        case BINARY():
            return Kind.UUID
        case String(collation=collation):
            return Kind.WORD if collation == _WORDS else Kind.TEXT
        case Integer():
            return Kind.INTEGER
        case DATETIME():
            return Kind.TIMESTAMP
    raise TypeError(f"no export for columns of {type_!r}")


TABLES: Final = {table.name: table for table in (EVENTS, *map(view, PROJECTIONS))}
