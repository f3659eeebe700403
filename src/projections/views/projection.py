"""What a projection is: a pure fold from events to the rows of one view."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from operator import attrgetter
from typing import Any, ClassVar, Final, Generic, TypeVar
from uuid import UUID

from msgspec import Struct
from sqlalchemy import BINARY, BigInteger, Column, MetaData, String, Table
from sqlalchemy.dialects.mysql import BIGINT, DATETIME

from ledger.core.events import AnyPayload, Recorded
from ledger.eventlog.codec import uuid_of

METADATA: Final = MetaData()

Key = Hashable
Row = TypeVar("Row", bound=Struct)

KeyOf = Callable[[Recorded], UUID]
KeyedBy = Mapping[type[AnyPayload], KeyOf]
STREAM: Final[KeyOf] = attrgetter("stream_id")
"""The key of a row that has an event's own stream."""
CUSTOMER: Final[KeyOf] = attrgetter("payload.customer_id")
"""The key of a row of the customer that an event names."""
PRODUCT: Final[KeyOf] = attrgetter("payload.product_id")
"""The key of a row of the product that an event names."""


@dataclass(frozen=True, eq=False)
class Projection(ABC, Generic[Row]):
    """A view and the code that keeps it: a `KeyedProjection` or a `LineProjection`.

    The code never looks anything up. A change of it that changes rows must raise `version`.
    """

    name: str
    version: int
    table: Table
    row: type[Row]
    verb: ClassVar[str]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the view, which are the fields of a row, in order."""
        return self.row.__struct_fields__

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns of the primary key, which come first."""
        return tuple(column.name for column in self.table.primary_key)

    @abstractmethod
    def needs(self, events: Sequence[Recorded]) -> set[UUID]:
        """The keys of the rows that must be at hand before these events are projected."""

    @abstractmethod
    def project(self, rows: dict[Key, Row], event: Recorded) -> None:
        """Bring rows, each under its key, one event further; raises ViewDamaged."""

    @abstractmethod
    def changed(self, rows: dict[Key, Row], events: Sequence[Recorded]) -> Iterable[Row]:
        """The rows that events change, with those that they need at hand; raises ViewDamaged."""

    @cached_property
    def key_of(self) -> Callable[[Row], Key]:
        """Gives the key of a row: the value of its key column, or a tuple of several."""
        return attrgetter(*self.key_columns)


@dataclass(frozen=True, eq=False)
class KeyedProjection(Projection[Row]):
    """A view with one row for each key, which events make anew.

    `keyed_by` tells for each type of event that changes a row where its key is; `apply` makes the
    row from the one before, which is None for an event of type `creates`. With `own_stream` only
    events of the stream that has the key's id change a row.
    """

    creates: type[AnyPayload]
    keyed_by: KeyedBy
    apply: Callable[[Row | None, Recorded], Row]
    own_stream: bool = False
    verb = "REPLACE"

    @property
    def key_column(self) -> str:
        """The only column of the primary key."""
        return self.key_columns[0]

    def key(self, event: Recorded) -> UUID | None:
        """The key of the row that an event changes, if any."""
        key_of = self.keyed_by.get(type(event.payload))
        return key_of(event) if key_of else None

    def keys(self, events: Iterable[Recorded]) -> set[UUID]:
        """The keys of the rows that events change."""
        return {key for key, _ in self._keyed(events)}

    def _keyed(self, events: Iterable[Recorded]) -> Iterator[tuple[UUID, Recorded]]:
        """The events that change rows, each with the key of its row."""
        for event in events:
            if key_of := self.keyed_by.get(type(event.payload)):
                yield key_of(event), event

    def needs(self, events: Sequence[Recorded]) -> set[UUID]:
        """The rows that events change and do not make themselves."""
        changed, made = set[UUID](), set[UUID]()
        for key, event in self._keyed(events):
            (made if isinstance(event.payload, self.creates) else changed).add(key)
        return changed - made

    def project(self, rows: dict[Key, Row], event: Recorded) -> None:
        """Make the row that the event changes, if any, anew."""
        key = self.key(event)
        if key is not None:
            rows[key] = self.apply(rows.get(key), event)

    def changed(self, rows: dict[Key, Row], events: Sequence[Recorded]) -> Iterable[Row]:
        """Each row once, however many events changed it."""
        for key, event in self._keyed(events):
            rows[key] = self.apply(rows.get(key), event)
        return rows.values()


@dataclass(frozen=True, eq=False)
class LineProjection(Projection[Row]):
    """A view to which each event adds its `lines`, and which is never changed otherwise."""

    lines: Callable[[Recorded], Sequence[Row]]
    verb = "INSERT"

    def needs(self, events: Sequence[Recorded]) -> set[UUID]:
        """Nothing: a line says what one event did."""
        return set()

    def project(self, rows: dict[Key, Row], event: Recorded) -> None:
        """Add the lines of the event."""
        for line in self.lines(event):
            rows[self.key_of(line)] = line

    def changed(self, rows: dict[Key, Row], events: Sequence[Recorded]) -> Iterable[Row]:
        """The lines of the events, made as they are asked for."""
        return (line for event in events for line in self.lines(event))


class ViewDamaged(Exception):
    """A view is not that of this ledger: rebuild it."""


def present(row: Row | None, event: Recorded) -> Row:
    """The row that an event changes; raises ViewDamaged."""
    if row is None:
        raise ViewDamaged(f"the event at position {event.position} changes a row that is not there")
    return row


def from_columns(row: type[Row], columns: tuple[Any, ...]) -> Row:
    """The row of columns as the database gives them: ids as bytes, times without a zone."""
    return row(
        *(
            uuid_of(value)
            if isinstance(value, bytes)
            else value.replace(tzinfo=UTC)
            if isinstance(value, datetime)
            else value
            for value in columns
        )
    )


def id_column(
    name: str, comment: str, *, primary_key: bool = False, nullable: bool = False
) -> Column[bytes]:
    """A UUID as 16 bytes."""
    return Column(name, BINARY(16), primary_key=primary_key, nullable=nullable, comment=comment)


def amount_column(name: str, comment: str, *, nullable: bool = False) -> Column[int]:
    """Money in minor units."""
    return Column(name, BigInteger, nullable=nullable, comment=comment)


def word_column(name: str, comment: str, *, nullable: bool = False) -> Column[str]:
    """One of a fixed set of words."""
    return Column(name, String(40, "ascii_bin"), nullable=nullable, comment=comment)


def moment_column(name: str, comment: str) -> Column[datetime]:
    """A time in UTC, to the microsecond."""
    return Column(name, DATETIME(fsp=6), nullable=False, comment=comment)


def position_column(name: str, comment: str, *, primary_key: bool = False) -> Column[int]:
    """A position in the ledger."""
    kind = BIGINT(unsigned=True)
    return Column(name, kind, primary_key=primary_key, nullable=False, comment=comment)
