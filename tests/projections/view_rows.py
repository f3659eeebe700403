"""The views as they stand, and as a fold in memory says they must."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.eventlog.codec import NO_KEYS, decode_recorded
from ledger.eventlog.records import Record
from projections.projector import project_next_batch
from projections.views.projection import Key, Projection, from_columns
from projections.views.registry import PROJECTIONS
from tests.core.story import effective
from tests.harness import eventually
from tests.ledger.pipeline import Ledger

View = dict[Key, Struct]
Keys = Mapping[bytes, bytes | None]


def replayed(projection: Projection[Any], records: list[Record], keys: Keys = NO_KEYS) -> View:
    """The rows of a view, folded in memory from the whole ledger; names need their keys."""
    rows: View = {}
    for event in effective([decode_recorded(record, keys) for record in records]):
        projection.project(rows, event)
    return rows


async def live(ledger: Ledger, projection: Projection[Any]) -> View:
    """The rows of a view as the analyst sees them."""
    columns = ", ".join(projection.columns)
    found = await ledger.rows(f"SELECT {columns} FROM {projection.name}", "analyst")
    rows = [from_columns(projection.row, row) for row in found]
    return {projection.key_of(row): row for row in rows}


async def all_live(ledger: Ledger) -> dict[str, View]:
    """Every view."""
    return {projection.name: await live(ledger, projection) for projection in PROJECTIONS}


async def all_replayed(ledger: Ledger) -> dict[str, View]:
    """Every view, as a replay of the ledger says it must be."""
    records, keys = await ledger.records(), await ledger.keys()
    return {projection.name: replayed(projection, records, keys) for projection in PROJECTIONS}


async def checkpoints(ledger: Ledger) -> dict[str, int]:
    """The position that each view has reached."""
    rows: Any = await ledger.rows("SELECT name, position FROM checkpoints", "api")
    return dict(rows)


async def set_checkpoint(ledger: Ledger, name: str, position: int) -> None:
    """Move a checkpoint without its rows, as only a mistake can."""
    await ledger.execute(
        "UPDATE checkpoints SET position = %s WHERE name = %s", "migrate", position, name
    )


async def advance_to_the_end(connection: AsyncConnection) -> int:
    """Advance the views until nothing is left; how many batches that took."""
    batches = 0
    while True:
        announcement = await project_next_batch(connection, PROJECTIONS)
        if announcement.position == announcement.after:
            return batches
        batches += 1


async def until_projected(ledger: Ledger) -> int:
    """Wait until every view is at the head, and say where that is."""

    async def at_head() -> int:
        found = await ledger.rows(
            "SELECT h.position FROM ledger_head h"
            " WHERE h.position = ALL (SELECT position FROM checkpoints)",
            "projector",
        )
        return found[0][0] if found else 0

    return await eventually(at_head, "every view is at the head")
