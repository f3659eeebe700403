"""How a view of each kind is compared with the ledger, stretch after stretch of it."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.core.events import TYPE_OF, CustomerErased, Recorded
from ledger.eventlog.chain import VerificationFailed
from ledger.eventlog.store import PAGE
from projections.as_of import effective_events, events_of
from projections.check_rows import Columns, Rows, by_key, columns, differences, refuse
from projections.tables import marks
from projections.views.projection import Key, KeyedProjection, LineProjection, Projection

AT_ONCE: Final = 500
"""Rows that one statement names by key; of 1,000 and more MariaDB makes a temporary table."""


class Stretch(Struct, frozen=True):
    """The ledger after a position and up to another, as a view at `checkpoint` must show it.

    Of its events those that took effect, and of the customers registered there those whose names
    nobody can read any more.
    """

    after: int
    up_to: int
    checkpoint: int
    events: Sequence[Recorded]
    nameless: Sequence[UUID]

    def until(self, checkpoint: int) -> "Stretch":
        """As much of it as a view at this checkpoint shows."""
        events = [event for event in self.events if event.position <= checkpoint]
        return Stretch(self.after, min(self.up_to, checkpoint), checkpoint, events, self.nameless)


class Comparison(ABC):
    """A view that is being compared; `take` and `finish` raise VerificationFailed.

    Each call reads the view in a transaction of the caller's, at the checkpoint that it is given.
    """

    view: Projection[Any]

    @abstractmethod
    async def take(self, connection: AsyncConnection, stretch: Stretch) -> None:
        """Compare what can be compared of the next stretch."""

    @abstractmethod
    async def finish(self, connection: AsyncConnection, checkpoint: int) -> int:
        """Compare the rest, all up to the checkpoint being taken; how many rows there are."""


def comparison(view: Projection[Any]) -> Comparison:
    """The comparison for a view of its kind."""
    match view:
        case LineProjection():
            return _Lines(view)
        case KeyedProjection(own_stream=True):
            return _OwnRows(view)
        case KeyedProjection():
            return _HeldRows(view)
    raise TypeError(f"{type(view).__name__} can't be compared")


class _Lines(Comparison):
    """Each event has its lines and no others."""

    def __init__(self, view: LineProjection[Any]) -> None:
        self.view = view
        self._lines = view.lines
        self._rows = 0

    async def take(self, connection: AsyncConnection, stretch: Stretch) -> None:
        expected = [columns(line) for event in stretch.events for line in self._lines(event)]
        # One more than there may be is enough to see that there are too many.
        found = await connection.exec_driver_sql(
            f"{_select(self.view)} WHERE position > %s AND position <= %s"
            f" ORDER BY {', '.join(self.view.key_columns)} LIMIT {len(expected) + 1}",
            (stretch.after, stretch.up_to),
        )
        lines = [tuple(row) for row in found]
        if lines != expected:  # both are in order
            expected_by_key, lines_by_key = by_key(self.view, expected), by_key(self.view, lines)
            refuse(differences(self.view, expected_by_key, lines_by_key))
        self._rows += len(expected)

    async def finish(self, connection: AsyncConnection, checkpoint: int) -> int:
        found = await connection.exec_driver_sql(
            f"SELECT MIN(position) FROM {self.view.name} WHERE position > %s", (checkpoint,)
        )
        if position := found.scalar():
            raise VerificationFailed(
                position, f"{self.view.name} has lines beyond its checkpoint {checkpoint}"
            )
        return self._rows


class _OwnRows(Comparison):
    """Rows that only events of their own stream change: made where they begin, and to the end."""

    def __init__(self, view: KeyedProjection[Any]) -> None:
        self.view = view
        self._view = view
        self._rows = 0

    async def take(self, connection: AsyncConnection, stretch: Stretch) -> None:
        begun = self._view.keys(
            e for e in stretch.events if isinstance(e.payload, self._view.creates)
        )
        made: dict[Key, Any] = {}
        for event in stretch.events:
            if self._view.key(event) in begun:
                self._view.project(made, event)
        later = f"e.position > {stretch.up_to} AND e.position <= {stretch.checkpoint}"
        wrong, keys = [], iter(begun)
        while some := list(islice(keys, AT_ONCE)):
            for event in await _events(connection, some, later):
                self._view.project(made, event)
            expected = by_key(self._view, (columns(made[key]) for key in some))
            wrong += differences(self._view, expected, await self._fetch(connection, some))
        refuse(wrong)
        self._rows += len(begun)

    async def _fetch(self, connection: AsyncConnection, keys: Sequence[UUID]) -> Rows:
        found = await connection.exec_driver_sql(
            f"{_select(self.view)} WHERE {self._view.key_column} IN ({marks(keys)})",
            tuple(key.bytes for key in keys),
        )
        return by_key(self.view, map(tuple, found))

    async def finish(self, connection: AsyncConnection, checkpoint: int) -> int:
        found = await connection.exec_driver_sql(f"SELECT COUNT(*) FROM {self.view.name}")
        count = found.scalar_one()
        if count != self._rows:
            await self._refuse_others(connection, checkpoint)
            what = f"{self.view.name} has {count} rows, and the ledger makes {self._rows}"
            raise VerificationFailed(checkpoint, what)
        return self._rows

    async def _refuse_others(self, connection: AsyncConnection, checkpoint: int) -> None:
        """Raises VerificationFailed for the first of the rows that no event began."""
        begins = f"e.type = '{TYPE_OF[self._view.creates]}' AND e.position <= {checkpoint}"
        others: dict[Key, Columns] = {}
        async for rows in _pages(connection, self._view, AT_ONCE):
            keys = [UUID(bytes=values[0]) for values in rows.values()]
            begun = {key.bytes for key in self._view.keys(await _events(connection, keys, begins))}
            others |= {key: values for key, values in rows.items() if key not in begun}
        refuse(differences(self._view, {}, others))


class _HeldRows(Comparison):
    """Rows that events of other streams change, too: all are held until the checkpoint."""

    def __init__(self, view: KeyedProjection[Any]) -> None:
        self.view = view
        self._rows: dict[Key, Any] = {}
        self._nameless: set[Key] = set()

    async def take(self, connection: AsyncConnection, stretch: Stretch) -> None:
        self._nameless.update(stretch.nameless)
        for event in stretch.events:
            self.view.project(self._rows, event)
            if isinstance(event.payload, CustomerErased):
                self._nameless.discard(event.stream_id)

    async def finish(self, connection: AsyncConnection, checkpoint: int) -> int:
        expected: dict[Key, Any] = {
            key.bytes: row for key, row in self._rows.items() if isinstance(key, UUID)
        }
        wrong: list[VerificationFailed] = []
        async for found in _pages(connection, self.view, PAGE):
            held = {
                key: self._row(expected.pop(key), found[key]) for key in found if key in expected
            }
            wrong += differences(self.view, held, found)
        missing: Rows = {key: columns(row) for key, row in expected.items()}
        refuse([*wrong, *differences(self.view, missing, {})])
        return len(self._rows)

    def _row(self, row: Any, found: Columns) -> Columns:
        """The row as it must be found.

        Of a name that is erased, when the view is not there yet, nobody knows what it must be.
        """
        if getattr(row, self.view.key_columns[0]) in self._nameless:
            row = replace(row, username=found[self.view.columns.index("username")])
        return columns(row)


def _select(view: Projection[Any]) -> str:
    return f"SELECT {', '.join(view.columns)} FROM {view.name}"


async def _pages(
    connection: AsyncConnection, view: Projection[Any], limit: int
) -> AsyncIterator[dict[Key, Columns]]:
    """All rows of a view with one key column, by key."""
    (key,) = view.key_columns
    after = b""
    while True:
        found = await connection.exec_driver_sql(
            f"{_select(view)} WHERE {key} > %s ORDER BY {key} LIMIT {limit}", (after,)
        )
        rows = [tuple(row) for row in found]
        if not rows:
            return
        yield by_key(view, rows)
        after = rows[-1][0]


async def _events(
    connection: AsyncConnection, streams: Sequence[UUID], where: str
) -> list[Recorded]:
    """The events of some streams that took effect, in order."""
    statement = effective_events("events e", f"e.stream_id IN ({marks(streams)}) AND {where}")
    found = await connection.exec_driver_sql(statement, tuple(each.bytes for each in streams))
    return sorted(events_of(found.all()), key=attrgetter("position"))
