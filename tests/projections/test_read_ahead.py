"""Reading ahead: the next page is there when the last is written, and nothing else changes."""

import pytest

from ledger.eventlog.records import LedgerDamaged
from projections import projector
from projections.projector import ReadAhead, project_next_batch
from projections.views.registry import PROJECTIONS
from tests.ledger.pipeline import Ledger
from tests.submissions import history, opening

from .view_rows import all_live, all_replayed, checkpoints


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projector, "PAGE", 20)


async def written(ledger: Ledger) -> int:
    await ledger.write(opening(), history(7, 150))
    return (await ledger.head()).position


async def test_a_page_that_was_read_ahead_is_the_next_one(ledger: Ledger) -> None:
    await written(ledger)
    ahead = ReadAhead(ledger.engine("projector"))
    async with ledger.connection("projector") as connection:
        position = (await project_next_batch(connection, PROJECTIONS, ahead)).position
        batch = await ahead.next(position)
        assert batch
        assert batch.records[0].position == position + 1
        assert await ahead.next(position) is None, "it is given once"
    await ahead.aclose()


async def test_projectors_that_take_turns_and_read_ahead_project_each_event_once(
    ledger: Ledger,
) -> None:
    """Each finds that the other went on, and that the page it read ahead is not the next one."""
    end = await written(ledger)
    engine = ledger.engine("projector")
    ones, others = ReadAhead(engine), ReadAhead(engine)
    async with (
        ledger.connection("projector") as one,
        ledger.connection("projector") as other,
    ):
        position = 0
        while position < end:
            await project_next_batch(one, PROJECTIONS, ones)
            position = (await project_next_batch(other, PROJECTIONS, others)).position
    await ones.aclose()
    await others.aclose()
    assert await all_live(ledger) == await all_replayed(ledger)


async def test_a_gap_on_the_page_ahead_stops_the_projector_before_it(ledger: Ledger) -> None:
    await written(ledger)
    await ledger.execute("DROP TRIGGER events_no_delete")
    await ledger.execute("DELETE FROM events WHERE position = 25")
    ahead = ReadAhead(ledger.engine("projector"))
    async with ledger.connection("projector") as connection:
        position = (await project_next_batch(connection, PROJECTIONS, ahead)).position
        with pytest.raises(LedgerDamaged, match="position 25: the event is gone"):
            await project_next_batch(connection, PROJECTIONS, ahead)
    assert set((await checkpoints(ledger)).values()) == {position}
