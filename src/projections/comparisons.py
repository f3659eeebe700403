"""How a view of each kind is compared with the ledger, stretch after stretch of it."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.audit import Wrong
from ledger.core.events import TYPE_OF, CustomerErased, Recorded
from ledger.store import PAGE
from projections.history import effective_events, events_of
from projections.projection import (
    Key,
    KeyedProjection,
    LineProjection,
    Projection,
    from_columns,
)
from projections.views import fetch_rows, marks

AT_ONCE: Final = 500
"""Rows that one statement names by key; of 1,000 and more MariaDB makes a temporary table."""
MAX_WORD: Final = 40
"""Longer text may be personal: of that it is only told that it is wrong."""

Rows = Mapping[Key, Any]


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
    """A view that is being compared; `take` and `finish` raise Wrong.

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
        expected = [line for event in stretch.events for line in self._lines(event)]
        columns, keys = ", ".join(self.view.columns), ", ".join(self.view.key_columns)
        # One more than there may be is enough to see that there are too many.
        found = await connection.exec_driver_sql(
            f"SELECT {columns} FROM {self.view.name} WHERE position > %s AND position <= %s"
            f" ORDER BY {keys} LIMIT {len(expected) + 1}",
            (stretch.after, stretch.up_to),
        )
        lines = _made(self.view, found)
        if lines != expected:  # both are in order
            _compare(self.view, _by_key(self.view, expected), _by_key(self.view, lines))
        self._rows += len(expected)

    async def finish(self, connection: AsyncConnection, checkpoint: int) -> int:
        found = await connection.exec_driver_sql(
            f"SELECT MIN(position) FROM {self.view.name} WHERE position > %s", (checkpoint,)
        )
        if position := found.scalar():
            raise Wrong(position, f"{self.view.name} has lines beyond its checkpoint {checkpoint}")
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
        expected: dict[Key, Any] = {}
        for event in stretch.events:
            if self._view.key(event) in begun:
                self._view.project(expected, event)
        later = f"e.position > {stretch.up_to} AND e.position <= {stretch.checkpoint}"
        keys = iter(begun)
        while some := list(islice(keys, AT_ONCE)):
            for event in await _events(connection, some, later):
                self._view.project(expected, event)
            rows = await fetch_rows(connection, self._view, some)
            _compare(self._view, {key: expected[key] for key in some}, rows)
        self._rows += len(begun)

    async def finish(self, connection: AsyncConnection, checkpoint: int) -> int:
        found = await connection.exec_driver_sql(f"SELECT COUNT(*) FROM {self.view.name}")
        count = found.scalar_one()
        if count != self._rows:
            await self._refuse_others(connection, checkpoint)
            what = f"{self.view.name} has {count} rows, and the ledger makes {self._rows}"
            raise Wrong(checkpoint, what)
        return self._rows

    async def _refuse_others(self, connection: AsyncConnection, checkpoint: int) -> None:
        """Raises Wrong for the first of the rows that no event began."""
        begins = f"e.type = '{TYPE_OF[self._view.creates]}' AND e.position <= {checkpoint}"
        others: dict[Key, Any] = {}
        async for rows in _pages(connection, self._view, AT_ONCE):
            begun = await _events(connection, [UUID(str(key)) for key in rows], begins)
            others |= {key: rows[key] for key in rows.keys() - self._view.keys(begun)}
        _compare(self._view, {}, others)


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
        count, wrong = len(self._rows), []
        async for found in _pages(connection, self.view, PAGE):
            expected = {key: self._rows.pop(key) for key in found if key in self._rows}
            for key in self._nameless & found.keys() & expected.keys():
                # Erased, and the view is not there yet: nobody knows what name it should show.
                expected[key] = replace(expected[key], username=found[key].username)
            wrong += _differences(self.view, expected, found)
        wrong += _differences(self.view, self._rows, {})
        _refuse(wrong)
        return count


async def _pages(
    connection: AsyncConnection, view: Projection[Any], limit: int
) -> AsyncIterator[dict[Key, Any]]:
    """All rows of a view with one key column, by key."""
    (key,) = view.key_columns
    columns = ", ".join(view.columns)
    after = b""
    while True:
        found = await connection.exec_driver_sql(
            f"SELECT {columns} FROM {view.name} WHERE {key} > %s ORDER BY {key} LIMIT {limit}",
            (after,),
        )
        rows = found.all()
        if not rows:
            return
        yield _by_key(view, _made(view, rows))
        after = rows[-1][0]


async def _events(
    connection: AsyncConnection, streams: Sequence[UUID], where: str
) -> list[Recorded]:
    """The events of some streams that took effect, in order."""
    statement = effective_events("events e", f"e.stream_id IN ({marks(streams)}) AND {where}")
    found = await connection.exec_driver_sql(statement, tuple(each.bytes for each in streams))
    return sorted(events_of(found.all()), key=attrgetter("position"))


def _made(view: Projection[Any], rows: Iterable[Any]) -> list[Any]:
    return [from_columns(view.row, tuple(row)) for row in rows]


def _by_key(view: Projection[Any], rows: Iterable[Any]) -> dict[Key, Any]:
    return {view.key_of(row): row for row in rows}


def _compare(view: Projection[Any], expected: Rows, found: Rows) -> None:
    """Raises Wrong, at the first position where something is, unless all rows are as expected."""
    if expected != found:
        _refuse(_differences(view, expected, found))


def _refuse(wrong: Sequence[Wrong]) -> None:
    if wrong:
        raise min(wrong, key=attrgetter("position"))


def _differences(view: Projection[Any], expected: Rows, found: Rows) -> list[Wrong]:
    return [
        _difference(view, key, expected.get(key), found.get(key))
        for key in expected.keys() | found.keys()
        if expected.get(key) != found.get(key)
    ]


def _difference(view: Projection[Any], key: Key, expected: Any, found: Any) -> Wrong:
    row = f"row {_shown(key)} of {view.name}"
    if found is None:
        return Wrong(expected.position, f"{row} is missing")
    if expected is None:
        return Wrong(found.position, f"{row} is one that the ledger does not make")
    apart = [
        _apart(view, name, getattr(found, name), getattr(expected, name))
        for name in view.columns
        if getattr(found, name) != getattr(expected, name)
    ]
    return Wrong(expected.position, f"{row} has {', '.join(apart)}")


def _apart(view: Projection[Any], name: str, found: object, expected: object) -> str:
    length = getattr(view.table.columns[name].type, "length", None) or 0
    return f"another {name}" if length > MAX_WORD else f"{name} {found} instead of {expected}"


def _shown(key: Key) -> str:
    return ".".join(map(str, key)) if isinstance(key, tuple) else str(key)
