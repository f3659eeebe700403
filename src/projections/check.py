"""Views compared with the ledger: each row must be what the events up to the checkpoint make.

Memory is bounded: lines, and rows that only events of their own stream change, are compared page
by page of the ledger. The rows of other views, of customers and products, are held to the end.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any
from uuid import UUID

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.core.events import Recorded
from ledger.core.fold import effective
from ledger.eventlog.chain import VerificationFailed
from ledger.eventlog.codec import recorded
from ledger.eventlog.encryption import WrongKey, is_sealed, sealed_customers
from ledger.eventlog.records import Record
from ledger.eventlog.store import Store
from projections.check_views import Comparison, Stretch, comparison
from projections.tables import Checkpoint, pin
from projections.views.projection import Projection

Moved = Callable[[int], None]


class Compared(Struct, frozen=True):
    """A view that is right: its checkpoint, and how many rows it has there."""

    name: str
    position: int
    rows: int


async def compare(
    connection: AsyncConnection, projections: Sequence[Projection[Any]], moved: Moved
) -> list[Compared]:
    """Compare views at their checkpoints, while they and the ledger go on.

    The ledger must be right. Each page of it is one transaction, which only reads. `moved` is
    called with how many positions more were gone through.

    Raises VerificationFailed, for the first position.
    """
    left: list[Comparison] = [comparison(projection) for projection in projections]
    compared: dict[str, Compared | VerificationFailed] = {}
    position = 0
    await connection.rollback()
    while left:
        checkpoints = await pin(connection, [each.view for each in left])
        stretch = await _next(connection, position, _furthest(left, checkpoints))
        for each in left:
            checkpoint = checkpoints[each.view.name].position
            if result := await _step(connection, each, stretch.until(checkpoint)):
                compared[each.view.name] = result
        await connection.rollback()
        moved(stretch.up_to - position)
        position = stretch.up_to
        left = [each for each in left if each.view.name not in compared]
    return _right([compared[projection.name] for projection in projections])


async def _step(
    connection: AsyncConnection, comparison: Comparison, stretch: Stretch
) -> Compared | VerificationFailed | None:
    """Compare one view further; what came of it, if that was the end."""
    try:
        await comparison.take(connection, stretch)
        if stretch.up_to < stretch.checkpoint:
            return None
        rows = await comparison.finish(connection, stretch.checkpoint)
    except VerificationFailed as wrong:
        return wrong
    return Compared(comparison.view.name, stretch.checkpoint, rows)


def _right(results: Sequence[Compared | VerificationFailed]) -> list[Compared]:
    if wrong := [result for result in results if isinstance(result, VerificationFailed)]:
        raise min(wrong, key=attrgetter("position"))
    return [result for result in results if isinstance(result, Compared)]


def _furthest(left: Iterable[Comparison], checkpoints: Mapping[str, Checkpoint]) -> int:
    """The furthest checkpoint.

    Raises VerificationFailed where a view has none, or other code made it.
    """
    for view in (each.view for each in left):
        checkpoint = checkpoints.get(view.name)
        if checkpoint is None:
            raise VerificationFailed(1, f"view {view.name} has no checkpoint")
        if checkpoint.version != view.version:
            raise VerificationFailed(
                1,
                f"view {view.name} was made by version {checkpoint.version} of its code, which is"
                f" now {view.version}: run `ledger rebuild {view.name}`",
            )
    return max(checkpoint.position for checkpoint in checkpoints.values())


async def _next(connection: AsyncConnection, after: int, checkpoint: int) -> Stretch:
    """The next page of the ledger."""
    if checkpoint <= after:
        return Stretch(after, after, checkpoint, (), ())
    store = Store(connection)
    records = await store.read(after)
    if not records:
        raise VerificationFailed(
            after + 1, f"a view shows the ledger up to {checkpoint}, but it ends here"
        )
    keys = await store.keys(sealed_customers(records))
    events = list(effective([_recorded(record, keys) for record in records]))
    nameless = [
        UUID(bytes=r.stream_id) for r in records if is_sealed(r) and not keys.get(r.stream_id)
    ]
    return Stretch(after, records[-1].position, checkpoint, events, nameless)


def _recorded(record: Record, keys: Mapping[bytes, bytes | None]) -> Recorded:
    try:
        return recorded(record, keys)
    except WrongKey as error:
        raise VerificationFailed(
            record.position, "the customer's key does not open the name"
        ) from error
