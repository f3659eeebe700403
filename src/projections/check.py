"""Views compared with what they must be, row by row.

`verify` compares them with rows made from the ledger up to their checkpoints, `rebuild` with the
rebuilt tables. Either names the first difference in the same words.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, Literal
from uuid import UUID

from msgspec import Struct, msgpack
from msgspec.structs import astuple
from sqlalchemy import Column, String
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.core.events import TYPE_OF, CustomerErased, Recorded
from ledger.eventlog.reader import PAGE, EventPage, EventReader
from ledger.eventlog.records import VerificationFailed
from ledger.runtime.database import id_literals, select
from ledger.runtime.timestamps import format_rfc3339
from projections.tables import Checkpoint, OnProgress, begin_consistent_read
from projections.views.projection import KeyedProjection, LineProjection, Projection

# Rows of two tables that one statement compares.
RANGE_ROWS: Final = 20_000
# Longer texts are not quoted: one sentence should stay one.
MAX_QUOTED: Final = 40

# A row as the database gives it, with ids as bytes.
Values = Sequence[Any]

_encode_rows: Final = msgpack.Encoder(uuid_format="bytes").encode
_decode_rows: Final = msgpack.Decoder(list[list[Any]]).decode


class Difference(Struct, frozen=True):
    """A row that the view lacks, should not have, or has with other values.

    `columns` has what the view shows and what it must show, in each column that differs; for a row
    that is missing or extra these are all columns, with None on the side without the row. Personal
    and long values are not told: None on both sides. `position` is that of the event that last
    changed the row.
    """

    view: str
    key: dict[str, str]
    columns: dict[str, tuple[str | None, str | None]]
    kind: Literal["missing", "extra", "changed"]
    position: int

    def __str__(self) -> str:
        key = ", ".join(f"{name} {value}" for name, value in self.key.items())
        if self.kind == "missing":
            return f"{self.view} lacks the row of {key}"
        if self.kind == "extra":
            return f"{self.view} should not have the row of {key}"
        columns = "; ".join(
            f"another {name}" if shown is expected else f"{name} is {shown}, must be {expected}"
            for name, (shown, expected) in self.columns.items()
        )
        return f"{self.view} differs in the row of {key}: {columns}"


class CheckedView(Struct, frozen=True):
    """A view that is right: its checkpoint, and how many rows it has there."""

    name: str
    position: int
    rows: int


class EventRange(Struct, frozen=True):
    """The events after a position and up to another that took effect.

    `nameless` are the customers registered in it whose encryption key is destroyed.
    """

    after: int
    up_to: int
    events: Sequence[Recorded]
    nameless: Collection[UUID] = ()

    def before(self, checkpoint: int) -> "EventRange":
        """The part of it that a view at a checkpoint shows."""
        if self.up_to <= checkpoint:
            return self
        events = [event for event in self.events if event.position <= checkpoint]
        return EventRange(self.after, max(self.after, checkpoint), events, self.nameless)


def event_range(page: EventPage, events: Sequence[Recorded]) -> EventRange:
    """The range of a page that was read with keys, and whose events that took effect are these."""
    nameless = {UUID(bytes=customer) for customer, key in page.keys.items() if key is None}
    return EventRange(page.records[0].position - 1, page.position, events, nameless)


async def read_range(connection: AsyncConnection, after: int) -> EventRange | None:
    """The next page of the ledger, which may end after the checkpoint; None at its end."""
    page = await EventReader(connection).page(after, with_keys=True)
    return event_range(page, page.effective_events()) if page.records else None


ReadRange = Callable[[AsyncConnection, int], Awaitable[EventRange | None]]


async def check_views(
    connection: AsyncConnection,
    projections: Sequence[Projection[Any]],
    on_progress: OnProgress,
    read_range: ReadRange = read_range,
) -> list[CheckedView]:
    """Compare views with the ledger at their checkpoints, while they and the ledger go on.

    The ledger must be right. It is read once, a page in each transaction, and only read; who reads
    it anyway gives its pages with `read_range`. `on_progress` is called with numbers of positions.
    Raises VerificationFailed, for the first position where one of the views differs.
    """
    checks = [_check_for(projection) for projection in projections]
    checked: dict[str, CheckedView] = {}
    failures: list[VerificationFailed] = []
    position = 0
    await connection.rollback()
    while checks:
        checkpoints = await begin_consistent_read(connection, [check.view for check in checks])
        for check in checks:
            _refuse_checkpoint(check.view, checkpoints.get(check.view.name))
        furthest = max(checkpoint.position for checkpoint in checkpoints.values())
        events: EventRange | None = EventRange(position, position, ())
        if furthest > position:
            events = await read_range(connection, position)
        if events is None:
            raise VerificationFailed(
                position + 1, f"a view shows the ledger up to {furthest}, but it ends here"
            )
        unfinished = []
        for check in checks:
            name, checkpoint = check.view.name, checkpoints[check.view.name].position
            try:
                await check.compare(connection, events.before(checkpoint), checkpoint)
                if events.up_to < checkpoint:
                    unfinished.append(check)
                else:
                    rows = await check.finish(connection, checkpoint)
                    checked[name] = CheckedView(name, checkpoint, rows)
            except VerificationFailed as failure:
                # Another view may differ at an earlier position.
                failures.append(failure)
        await connection.rollback()
        on_progress(events.up_to - position)
        position, checks = events.up_to, unfinished
    if failures:
        raise min(failures, key=attrgetter("position"))
    return [checked[projection.name] for projection in projections]


def _refuse_checkpoint(view: Projection[Any], checkpoint: Checkpoint | None) -> None:
    if checkpoint is None:
        raise VerificationFailed(1, f"view {view.name} has no checkpoint")
    if checkpoint.version != view.version:
        raise VerificationFailed(
            1,
            f"view {view.name} was made by version {checkpoint.version} of its code, which is now"
            f" {view.version}: run `ledger rebuild {view.name}`",
        )


class ViewCheck(ABC):
    """Compares one view with the ledger, range after range; raises VerificationFailed.

    Each call reads the view in the caller's transaction, at the checkpoint that it is given.
    """

    view: Projection[Any]

    @abstractmethod
    async def compare(
        self, connection: AsyncConnection, events: EventRange, checkpoint: int
    ) -> None:
        """Take in the next range of events, and compare the rows that are final already."""

    @abstractmethod
    async def finish(self, connection: AsyncConnection, checkpoint: int) -> int:
        """Compare the rest, after all ranges up to the checkpoint; returns the number of rows."""


def _check_for(view: Projection[Any]) -> ViewCheck:
    match view:
        case LineProjection():
            return LineCheck(view)
        case KeyedProjection(own_stream=True):
            return OwnStreamCheck(view)
        case KeyedProjection():
            return KeyedCheck(view)
    raise TypeError(f"{type(view).__name__} can't be compared")


class LineCheck(ViewCheck):
    """Each event has its lines and no others."""

    def __init__(self, view: LineProjection[Any]) -> None:
        self.view = view
        self._lines = view.lines
        self._rows = 0

    async def compare(
        self, connection: AsyncConnection, events: EventRange, checkpoint: int
    ) -> None:
        """Compare the lines of the events."""
        expected = [line for event in events.events for line in self._lines(event)]
        # One more than there may be is enough to see that there are too many.
        shown = await _select(
            connection,
            self.view,
            f"position > %s AND position <= %s ORDER BY {', '.join(self.view.key_columns)}"
            f" LIMIT {len(expected) + 1}",
            (events.after, events.up_to),
        )
        _refuse(differences(self.view, shown, expected))  # both are in the order of the key
        self._rows += len(expected)

    async def finish(self, connection: AsyncConnection, checkpoint: int) -> int:
        """Refuse lines after the checkpoint."""
        found = await connection.exec_driver_sql(
            f"SELECT MIN(position) FROM {self.view.name} WHERE position > %s", (checkpoint,)
        )
        if position := found.scalar():
            raise VerificationFailed(
                position, f"{self.view.name} has lines beyond its checkpoint {checkpoint}"
            )
        return self._rows


class OwnStreamCheck(ViewCheck):
    """Rows that only events of their own stream change, so that memory is bounded by a page.

    Each row is compared with the range that creates it: its later events are looked up.
    """

    def __init__(self, view: KeyedProjection[Any]) -> None:
        self.view = self._view = view
        self._rows = 0

    async def compare(
        self, connection: AsyncConnection, events: EventRange, checkpoint: int
    ) -> None:
        """Compare the rows that the events create."""
        view = self._view
        rows: dict[Any, Any] = {}
        for event in events.events:
            key = view.key(event)
            if key is not None:
                row = rows.get(key)
                # The later events of a row that an earlier range creates were looked up there.
                if row is not None or isinstance(event.payload, view.creates):
                    rows[key] = view.apply(row, event)
        if not rows:
            return
        later = await EventReader(connection).effective_events_of(
            list(rows), after=events.up_to, up_to=checkpoint
        )
        view.changed_rows(rows, later)
        expected = {key.bytes: row for key, row in rows.items()}
        shown = await _select(
            connection, view, f"{view.key_column} IN ({id_literals(expected)})", ()
        )
        nameless: set[UUID] = set()
        if view.personal:
            nameless = set(events.nameless) - _erased(events.events) - _erased(later)
        in_order = _pop_shown(expected, shown) + list(expected.values())
        _refuse(differences(view, shown, in_order, nameless))
        self._rows += len(rows)

    async def finish(self, connection: AsyncConnection, checkpoint: int) -> int:
        """Refuse rows that no event created."""
        view = self._view
        count = (await connection.exec_driver_sql(f"SELECT COUNT(*) FROM {view.name}")).scalar_one()
        if count == self._rows:
            return self._rows
        extra: list[Values] = []
        async for shown in _key_pages(connection, view):
            keys = [UUID(bytes=row[0]) for row in shown]
            created = view.keys(
                await EventReader(connection).effective_events_of(
                    keys, [TYPE_OF[view.creates]], up_to=checkpoint
                )
            )
            extra += [row for key, row in zip(keys, shown, strict=True) if key not in created]
        _refuse(differences(view, extra, []))
        raise VerificationFailed(
            checkpoint, f"{view.name} has {count} rows, and the ledger makes {self._rows}"
        )


class KeyedCheck(ViewCheck):
    """Checks a view whose rows other streams change, too; keeps all rows until the checkpoint."""

    def __init__(self, view: KeyedProjection[Any]) -> None:
        self.view = view
        self._rows: dict[Any, Any] = {}
        self._nameless: set[UUID] = set()

    async def compare(
        self, connection: AsyncConnection, events: EventRange, checkpoint: int
    ) -> None:
        """Project the events."""
        self.view.changed_rows(self._rows, events.events)
        if self.view.personal:
            self._nameless |= set(events.nameless)
            self._nameless -= _erased(events.events)

    async def finish(self, connection: AsyncConnection, checkpoint: int) -> int:
        """Compare all rows."""
        expected = {key.bytes: row for key, row in self._rows.items()}
        found: list[Difference] = []
        async for shown in _key_pages(connection, self.view):
            in_order = _pop_shown(expected, shown)
            found += differences(self.view, shown, in_order, self._nameless)
        found += differences(self.view, [], list(expected.values()))
        _refuse(found)
        return len(self._rows)


def _erased(events: Iterable[Recorded]) -> set[UUID]:
    return {event.stream_id for event in events if isinstance(event.payload, CustomerErased)}


def _pop_shown(expected: dict[bytes, Struct], shown: Sequence[Values]) -> list[Struct]:
    """Remove from `expected` the rows that the view shows, and return them in its order."""
    return [expected.pop(row[0]) for row in shown if row[0] in expected]


async def _select(
    connection: AsyncConnection, view: Projection[Any], where: str, parameters: Values
) -> Sequence[Values]:
    statement = f"SELECT {', '.join(view.columns)} FROM {view.name} WHERE {where}"
    return await select(connection, statement, parameters)


async def _key_pages(
    connection: AsyncConnection, view: Projection[Any]
) -> AsyncIterator[Sequence[Values]]:
    """All rows of a view with one key column, in the order of the key."""
    (key,) = view.key_columns
    after = b""
    while rows := await _select(
        connection, view, f"{key} > %s ORDER BY {key} LIMIT {PAGE}", (after,)
    ):
        yield rows
        after = rows[-1][0]


def differences(
    view: Projection[Any],
    shown: Sequence[Values],
    expected: Sequence[Struct],
    nameless: Collection[UUID] = (),
) -> list[Difference]:
    """The differences between the rows that a view shows and those it must show.

    Rows that are in both must come in the same order.
    """
    # As bytes: a tenth of the time that it takes to make the values of each row comparable.
    shown_bytes = _encode_rows(shown)
    expected_bytes = _encode_rows([astuple(row) for row in expected])
    if shown_bytes == expected_bytes:
        return []
    width = len(view.key_columns)
    shown_rows, expected_rows = (
        {tuple(row[:width]): row for row in _decode_rows(rows)}
        for rows in (shown_bytes, expected_bytes)
    )
    if view.personal:
        # A name was erased from the ledger, and the view is not there yet: nobody can tell any more
        # what it must show, so what it shows counts as right.
        place = view.columns.index(view.personal)
        for key in {(customer.bytes,) for customer in nameless} & shown_rows.keys():
            if key in expected_rows:
                expected_rows[key][place] = shown_rows[key][place]
    return [
        _difference(view, shown_rows.get(key), expected_rows.get(key))
        for key in shown_rows.keys() | expected_rows.keys()
        if shown_rows.get(key) != expected_rows.get(key)
    ]


def _difference(view: Projection[Any], shown: Values | None, expected: Values | None) -> Difference:
    row = expected or shown or ()
    without_row = (None,) * len(view.columns)
    columns: dict[str, tuple[str | None, str | None]] = {}
    for name, is_, must_be in zip(
        view.columns, shown or without_row, expected or without_row, strict=True
    ):
        if is_ != must_be:
            texts = _text(is_), _text(must_be)
            too_long = max(len(text or "") for text in texts) > MAX_QUOTED
            columns[name] = (None, None) if too_long or name == view.personal else texts
    return Difference(
        view.name,
        {name: str(_text(value)) for name, value in zip(view.key_columns, row, strict=False)},
        columns,
        "missing" if shown is None else "extra" if expected is None else "changed",
        row[view.columns.index("position")],
    )


def _text(value: Any) -> str | None:
    match value:
        case None:
            return None
        case bytes():
            return str(UUID(bytes=value))
        case datetime():
            return format_rfc3339(value)
        case _:
            return str(value)


def _refuse(found: Sequence[Difference]) -> None:
    if found:
        first = min(found, key=attrgetter("position"))
        raise VerificationFailed(first.position, str(first))


async def first_difference(
    connection: AsyncConnection,
    live: Projection[Any],
    rebuilt: Projection[Any],
    on_progress: OnProgress,
) -> Difference | None:
    """The first difference between a live view and its rebuilt table, in the order of the key.

    The server looks for it, in ranges of the key: so no row that is right has to be fetched.
    Neither table may change meanwhile. `on_progress` is called with numbers of rows.
    """
    first_key, keys = live.key_columns[0], ", ".join(f"t.{name}" for name in live.key_columns)
    same_key = " AND ".join(f"o.{name} = t.{name}" for name in live.key_columns)
    same = " AND ".join(_same(column) for column in live.table.columns)
    after: Any = None
    while True:
        from_after, parameters = (
            ("TRUE", ()) if after is None else (f"t.{first_key} > %s", (after,))
        )
        found = await connection.exec_driver_sql(
            f"SELECT t.{first_key} FROM {live.name} t WHERE {from_after}"
            f" ORDER BY t.{first_key} LIMIT 1 OFFSET {RANGE_ROWS}",
            parameters,
        )
        up_to = found.scalar_one_or_none()
        where = from_after
        if up_to is not None:
            where, parameters = f"{from_after} AND t.{first_key} <= %s", (*parameters, up_to)
        differing: list[tuple[Any, ...]] = []
        # The second statement finds the rows that the view lacks.
        for table, other, differs in (
            (live.name, rebuilt.name, f"NOT ({same})"),
            (rebuilt.name, live.name, f"o.{first_key} IS NULL"),
        ):
            differing += await select(
                connection,
                f"SELECT {keys} FROM {table} t LEFT JOIN {other} o ON {same_key}"
                f" WHERE {where} AND {differs} ORDER BY {keys} LIMIT 1",
                parameters,
            )
        if differing:
            key = min(differing)
            this_row = " AND ".join(f"{name} = %s" for name in live.key_columns)
            shown, expected = [
                next(iter(await _select(connection, table, this_row, key)), None)
                for table in (live, rebuilt)
            ]
            return _difference(live, shown, expected)
        on_progress(RANGE_ROWS)
        if up_to is None:
            return None
        after = up_to


def _same(column: Column[Any]) -> str:
    """Compares a column of both tables, to the byte: `=` would ignore spaces at the end."""
    one, other = f"t.{column.name}", f"o.{column.name}"
    if isinstance(column.type, String):
        one, other = f"CAST({one} AS BINARY)", f"CAST({other} AS BINARY)"
    return f"{one} <=> {other}"
