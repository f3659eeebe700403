"""What a projection is: a pure fold from events to the rows of one view."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

from msgspec import Struct
from sqlalchemy import BINARY, BigInteger, Column, MetaData, String, Table
from sqlalchemy.dialects.mysql import BIGINT, DATETIME

from ledger.core.events import AnyPayload, Recorded

METADATA: Final = MetaData()

Row = TypeVar("Row", bound=Struct)


@dataclass(frozen=True)
class Projection(Generic[Row]):
    """A view and the code that keeps it.

    `key` names the row that an event changes, if any; `apply` makes the row anew from the one
    before, which is None for an event of type `creates`. Neither looks anything up. A change of
    the code that changes rows must raise `version`.
    """

    name: str
    version: int
    table: Table
    row: type[Row]
    creates: type[AnyPayload]
    key: Callable[[Recorded], UUID | None]
    apply: Callable[[Row | None, Recorded], Row]

    @property
    def key_column(self) -> str:
        """The column of the primary key, which is the first of the row's fields."""
        return self.row.__struct_fields__[0]


class RowMissing(Exception):
    """An event changes a row that the view does not have: the view is not that of this ledger."""


def present(row: Row | None, event: Recorded) -> Row:
    """The row that an event changes; raises RowMissing."""
    if row is None:
        raise RowMissing(f"the event at position {event.position} changes a row that is not there")
    return row


def to_columns(row: Struct) -> tuple[Any, ...]:
    """A row as the database takes it: ids as bytes, times in UTC without a zone."""
    return tuple(
        value.bytes
        if isinstance(value, UUID)
        else value.replace(tzinfo=None)
        if isinstance(value, datetime)
        else value
        for value in (getattr(row, name) for name in row.__struct_fields__)
    )


def from_columns(row: type[Row], columns: tuple[Any, ...]) -> Row:
    """The row that `to_columns` took apart."""
    return row(
        *(
            UUID(bytes=value)
            if isinstance(value, bytes)
            else value.replace(tzinfo=UTC)
            if isinstance(value, datetime)
            else value
            for value in columns
        )
    )


def id_column(name: str, comment: str, *, primary_key: bool = False) -> Column[bytes]:
    """A UUID as 16 bytes."""
    return Column(name, BINARY(16), primary_key=primary_key, nullable=False, comment=comment)


def amount_column(name: str, comment: str, *, nullable: bool = False) -> Column[int]:
    """Money in minor units."""
    return Column(name, BigInteger, nullable=nullable, comment=comment)


def word_column(name: str, comment: str, *, nullable: bool = False) -> Column[str]:
    """One of a fixed set of words."""
    return Column(name, String(40, "ascii_bin"), nullable=nullable, comment=comment)


def moment_column(name: str, comment: str) -> Column[datetime]:
    """A time in UTC, to the microsecond."""
    return Column(name, DATETIME(fsp=6), nullable=False, comment=comment)


def position_column(name: str, comment: str) -> Column[int]:
    """A position in the ledger."""
    return Column(name, BIGINT(unsigned=True), nullable=False, comment=comment)
