"""Ledgers that no view may be built on: the projector stops and says why."""

import pytest

from ledger.eventlog.records import LedgerDamaged
from projections.projector import project_next_batch
from projections.tables import CheckpointLost
from projections.views.projection import ViewDamaged
from projections.views.registry import PROJECTIONS
from tests.ledger.pipeline import Ledger
from tests.submissions import opening, orders

from .view_rows import advance_to_the_end, all_live, checkpoints, set_checkpoint


async def without(ledger: Ledger, condition: str) -> None:
    await ledger.execute("DROP TRIGGER events_no_delete")
    await ledger.execute(f"DELETE FROM events WHERE {condition}")


@pytest.mark.parametrize("missing", [1, 2, 4, 6])
async def test_a_gap_stops_the_projector_and_no_view_moves(ledger: Ledger, missing: int) -> None:
    await ledger.write([*opening(), *orders(3)])
    await without(ledger, f"position = {missing}")
    with pytest.raises(LedgerDamaged, match=f"position {missing}: the event is gone"):
        async with ledger.projecting() as projector:
            await projector.run()
    assert set((await checkpoints(ledger)).values()) == {0}
    assert all(not rows for rows in (await all_live(ledger)).values())


async def test_a_ledger_that_lost_its_end_stops_the_projector(ledger: Ledger) -> None:
    await ledger.write([*opening(), *orders(3)])
    await without(ledger, "position > 6")
    async with ledger.connection("projector") as connection:
        with pytest.raises(LedgerDamaged, match="the head names position 8"):
            await advance_to_the_end(connection)


@pytest.mark.parametrize("names", [["wallets"], [view.name for view in PROJECTIONS]])
async def test_views_ahead_of_the_ledger_stop_the_projector(
    ledger: Ledger, names: list[str]
) -> None:
    await ledger.write(opening())
    for name in names:
        await set_checkpoint(ledger, name, 7)
    async with ledger.connection("projector") as connection:
        with pytest.raises(LedgerDamaged, match="ahead of the ledger"):
            await advance_to_the_end(connection)


async def test_a_view_whose_row_is_gone_is_not_continued(ledger: Ledger) -> None:
    await ledger.write(opening())
    async with ledger.connection("projector") as connection:
        await advance_to_the_end(connection)
        await ledger.execute("DELETE FROM wallets")
        await ledger.write(orders(1))
        with pytest.raises(ViewDamaged, match="position 4"):
            await advance_to_the_end(connection)
    assert set((await checkpoints(ledger)).values()) == {2}


async def test_a_view_without_checkpoint_is_not_begun_in_silence(ledger: Ledger) -> None:
    await ledger.execute("DELETE FROM checkpoints WHERE name = 'orders'")
    async with ledger.connection("projector") as connection:
        with pytest.raises(CheckpointLost, match="ledger migrate"):
            await project_next_batch(connection, PROJECTIONS)
