"""What a projection is: a pure fold from events to the rows of one view."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from operator import attrgetter
from typing import Any, ClassVar, Final, Generic, TypeVar
from uuid import UUID

from msgspec import Struct
from sqlalchemy import BINARY, BigInteger, Column, MetaData, String, Table
from sqlalchemy.dialects.mysql import BIGINT, DATETIME

from ledger.core.decider import CustomerState, ProductState
from ledger.core.events import AnyPayload, Recorded
from ledger.core.pricing import Rules
from ledger.eventlog.codec import uuid_of

METADATA: Final = MetaData()
# Stands in a view's personal column where the encryption key of the name is destroyed.
ERASED: Final = "erased"

Key = Hashable
Row = TypeVar("Row", bound=Struct)

KeyOf = Callable[[Recorded], UUID]
KeyedBy = Mapping[type[AnyPayload], KeyOf]
# Where an event has the key of the row that it changes: its stream, or a field of its payload.
STREAM: Final[KeyOf] = attrgetter("stream_id")
CUSTOMER: Final[KeyOf] = attrgetter("payload.customer_id")
PRODUCT: Final[KeyOf] = attrgetter("payload.product_id")


@dataclass(frozen=True, eq=False)
class Projection(ABC, Generic[Row]):
    """A view and the code that keeps it: a `KeyedProjection` or a `LineProjection`.

    The code never looks anything up. A change of it that changes rows must raise `version`.
    `personal` names the column that holds a customer's name, in a view keyed by customer: no
    message quotes it, and `ledger erase-customer` erases it from the tables beside the view.
    """

    name: str
    version: int
    table: Table
    row: type[Row]
    personal: str | None = field(default=None, kw_only=True)
    verb: ClassVar[str]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the view, which are the fields of a row, in order."""
        return self.row.__struct_fields__

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns of the primary key, which come first."""
        return tuple(column.name for column in self.table.primary_key)

    @cached_property
    def key_of(self) -> Callable[[Row], Key]:
        """Gives the key of a row: the value of its key column, or a tuple of several."""
        return attrgetter(*self.key_columns)

    def keys_needed(self, events: Sequence[Recorded]) -> set[UUID]:
        """Return the keys of the rows that must be loaded before these events are projected."""
        return set()

    def announced_keys(self, events: Sequence[Recorded]) -> set[UUID]:
        """The keys of changed rows that the projector names in its announcement."""
        return set()

    @abstractmethod
    def project(self, rows: dict[Key, Row], event: Recorded) -> None:
        """Apply one event to rows, each under its key; raises ViewDamaged."""

    @abstractmethod
    def changed_rows(self, rows: dict[Key, Row], events: Sequence[Recorded]) -> Iterable[Row]:
        """Apply events to the rows that they need, and return every row that changed.

        Raises ViewDamaged.
        """


@dataclass(frozen=True, eq=False)
class KeyedProjection(Projection[Row]):
    """A view with one row for each key, which every event of that key makes anew.

    `keyed_by` has, for each type of event that changes a row, where its key is: the id of its
    stream or an id in its payload. `apply` makes the row from the one before, which is None for an
    event of type `creates`; that comes once for each key, and first. With `announces_keys` the
    projector names the keys of changed rows after its commit.

    The last three say how a row is read as of a position. With `snapshot_entry` the read starts at
    the newest snapshot before the position: the fields of its customer or product replace those of
    the row. `by_rules` gives a row by the rules in force at the position. `as_of_row` is the type
    of the answer, with those fields of the row that are known then; by default it is the row
    itself. Its `position` is the position that was asked for.
    """

    creates: type[AnyPayload]
    keyed_by: KeyedBy
    apply: Callable[[Row | None, Recorded], Row]
    announces_keys: bool = False
    as_of_row: type[Struct] | None = None
    snapshot_entry: type[CustomerState] | type[ProductState] | None = None
    by_rules: Callable[[Row, Rules], Row] | None = None
    verb = "REPLACE"

    @property
    def key_column(self) -> str:
        """The only column of the primary key."""
        return self.key_columns[0]

    @cached_property
    def own_stream(self) -> bool:
        """True if only events of the stream with the key's id change a row."""
        return all(key_of is STREAM for key_of in self.keyed_by.values())

    def key(self, event: Recorded) -> UUID | None:
        """The key of the row that an event changes, if any."""
        key_of = self.keyed_by.get(type(event.payload))
        return key_of(event) if key_of else None

    def keys(self, events: Iterable[Recorded]) -> set[UUID]:
        """The keys of the rows that events change."""
        return {key for key, _ in self._keyed(events)}

    def announced_keys(self, events: Sequence[Recorded]) -> set[UUID]:
        """The keys of all changed rows, if the view is announced."""
        return self.keys(events) if self.announces_keys else set()

    def _keyed(self, events: Iterable[Recorded]) -> Iterator[tuple[UUID, Recorded]]:
        """The events that change rows, each with the key of its row."""
        for event in events:
            if key_of := self.keyed_by.get(type(event.payload)):
                yield key_of(event), event

    def keys_needed(self, events: Sequence[Recorded]) -> set[UUID]:
        """The rows that events change and do not create themselves."""
        changed, created = set[UUID](), set[UUID]()
        for key, event in self._keyed(events):
            (created if isinstance(event.payload, self.creates) else changed).add(key)
        return changed - created

    def project(self, rows: dict[Key, Row], event: Recorded) -> None:
        """Make the row that the event changes, if any, anew."""
        key = self.key(event)
        if key is not None:
            rows[key] = self.apply(rows.get(key), event)

    def changed_rows(self, rows: dict[Key, Row], events: Sequence[Recorded]) -> Iterable[Row]:
        """Each row once, however many events changed it."""
        for key, event in self._keyed(events):
            rows[key] = self.apply(rows.get(key), event)
        return rows.values()


@dataclass(frozen=True, eq=False)
class LineProjection(Projection[Row]):
    """A view to which each event adds its `lines`, and which is never changed otherwise."""

    lines: Callable[[Recorded], Sequence[Row]]
    verb = "INSERT"

    def project(self, rows: dict[Key, Row], event: Recorded) -> None:
        """Add the lines of the event."""
        for line in self.lines(event):
            rows[self.key_of(line)] = line

    def changed_rows(self, rows: dict[Key, Row], events: Sequence[Recorded]) -> Iterable[Row]:
        """The lines of the events, made as they are asked for."""
        return (line for event in events for line in self.lines(event))


class ViewDamaged(Exception):
    """A view is not that of this ledger: rebuild it."""


def require_row(row: Row | None, event: Recorded) -> Row:
    """Return the row that an event changes; raises ViewDamaged if there is none."""
    if row is None:
        raise ViewDamaged(f"the event at position {event.position} changes a row that is not there")
    return row


def from_columns(row: type[Row], columns: tuple[Any, ...]) -> Row:
    """The row of values as the database gives them: ids as bytes, times without a zone."""
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


def enum_column(name: str, comment: str, *, nullable: bool = False) -> Column[str]:
    """One of a fixed set of words."""
    return Column(name, String(40, "ascii_bin"), nullable=nullable, comment=comment)


def timestamp_column(name: str, comment: str) -> Column[datetime]:
    """A time in UTC, to the microsecond."""
    return Column(name, DATETIME(fsp=6), nullable=False, comment=comment)


def position_column(name: str, comment: str, *, primary_key: bool = False) -> Column[int]:
    """A position in the ledger."""
    kind = BIGINT(unsigned=True)
    return Column(name, kind, primary_key=primary_key, nullable=False, comment=comment)
