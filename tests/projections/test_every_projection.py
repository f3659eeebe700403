"""What every projection promises, over the registry: a new view is proved by its one line there."""

import asyncio
from typing import Any

import pytest

from ledger.eventlog.codec import decode_recorded
from projections import projector
from projections.projector import project_next_batch
from projections.tables import lock_checkpoints
from projections.views.projection import Key, Projection
from projections.views.registry import PROJECTIONS
from tests.core.story import effective
from tests.ledger.pipeline import Ledger
from tests.submissions import history, opening, orders

from .view_rows import (
    View,
    advance_to_the_end,
    all_live,
    all_replayed,
    checkpoints,
    live,
    replayed,
    set_checkpoint,
    until_projected,
)

every_projection = pytest.mark.parametrize(
    "projection", PROJECTIONS, ids=[projection.name for projection in PROJECTIONS]
)


@every_projection
async def test_the_live_view_equals_a_replay_row_for_row(
    ledger: Ledger, projection: Projection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Live means in the batches that happen to form; a replay takes the ledger event by event."""
    monkeypatch.setattr(projector, "PAGE", 17)
    async with ledger.projecting():
        events = [*opening(), *history(13, 300)]
        for start in range(0, len(events), 40):
            await ledger.write(events[start : start + 40])
        await until_projected(ledger)
    records = await ledger.records()
    expected = replayed(projection, records, await ledger.keys())
    assert expected, "the history changes no row: it proves nothing"
    assert await live(ledger, projection) == expected


@every_projection
async def test_a_view_that_comes_later_equals_the_one_that_was_there(
    written: Ledger, projection: Projection[Any]
) -> None:
    async with written.connection("projector") as connection:
        await advance_to_the_end(connection)
        before = await live(written, projection)
        await written.execute(f"DELETE FROM {projection.name}")
        await set_checkpoint(written, projection.name, 0)
        others = {k: v for k, v in (await all_live(written)).items() if k != projection.name}
        await advance_to_the_end(connection)
    after = await all_live(written)
    assert after.pop(projection.name) == before
    assert after == others


@every_projection
async def test_every_row_says_which_event_changed_it_last(
    written: Ledger, projection: Projection[Any]
) -> None:
    async with written.connection("projector") as connection:
        await advance_to_the_end(connection)
    changed_by: dict[Key, int] = {}
    replay: View = {}
    for event in effective([decode_recorded(record) for record in await written.records()]):
        before = replay.copy()
        projection.project(replay, event)
        changed = {key for key, row in replay.items() if row is not before.get(key)}
        changed_by |= dict.fromkeys(changed, event.position)
    rows = await live(written, projection)
    assert {key: row.position for key, row in rows.items()} == changed_by  # type: ignore[attr-defined]


@every_projection
async def test_a_lagging_view_catches_up_alone_and_then_goes_on_with_the_others(
    written: Ledger, projection: Projection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector, "PAGE", 50)
    others = tuple(each for each in PROJECTIONS if each is not projection)
    async with written.connection("projector") as connection:
        for _ in range(3):
            await project_next_batch(connection, others)
        ahead = (await checkpoints(written))[others[0].name]
        assert (await checkpoints(written))[projection.name] == 0 < ahead
        while (await checkpoints(written))[projection.name] < ahead:
            announcement = await project_next_batch(connection, PROJECTIONS)
            assert announcement.position <= ahead
            assert (await checkpoints(written))[others[0].name] == ahead
        await project_next_batch(connection, PROJECTIONS)
        reached = await checkpoints(written)
        assert len(set(reached.values())) == 1
        assert reached[projection.name] > ahead
        await advance_to_the_end(connection)
    assert await all_live(written) == await all_replayed(written)


async def test_two_projectors_at_once_count_each_event_once(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector, "PAGE", 20)
    async with ledger.projecting(), ledger.projecting(), ledger.projecting():
        await ledger.write(opening(), history(14, 200), history(15, 200))
        await until_projected(ledger)
    assert await all_live(ledger) == await all_replayed(ledger)


async def test_two_that_advance_at_the_same_moment_take_turns(
    written: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector, "PAGE", 30)

    async def go() -> int:
        async with written.connection("projector") as connection:
            return await advance_to_the_end(connection)

    batches = await asyncio.gather(go(), go(), go())
    assert sum(batches) >= (await written.head()).position // 30
    assert await all_live(written) == await all_replayed(written)


async def test_advancing_at_the_head_changes_nothing(written: Ledger) -> None:
    async with written.connection("projector") as connection:
        await advance_to_the_end(connection)
        before = await all_live(written), await checkpoints(written)
        announcement = await project_next_batch(connection, PROJECTIONS)
    assert announcement.after == announcement.position == (await written.head()).position
    assert (announcement.outcomes, announcement.products) == ([], [])
    assert (await all_live(written), await checkpoints(written)) == before


@pytest.mark.parametrize("step", ["write_rows", "move_checkpoints"])
async def test_a_death_between_rows_and_checkpoint_leaves_neither(
    written: Ledger, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The connection ends right after the last rows, or the checkpoint, and before COMMIT."""
    done = getattr(projector, step)

    async def and_die(*arguments: Any) -> None:
        await done(*arguments)
        await written.kill_connections("projector")

    async with written.connection("projector") as connection:
        await connection.exec_driver_sql("DO 0")
        with monkeypatch.context() as patch:
            patch.setattr(projector, step, and_die)
            with pytest.raises(Exception, match="MySQL server"):
                await project_next_batch(connection, PROJECTIONS)
    assert set((await checkpoints(written)).values()) == {0}
    assert all(not rows for rows in (await all_live(written)).values())
    async with written.connection("projector") as connection:
        await advance_to_the_end(connection)
    assert await all_live(written) == await all_replayed(written)


MONEY, UNITS = 10**9, 10_000
BALANCE = """
    SELECT (SELECT COUNT(DISTINCT position) FROM checkpoints),
           (SELECT SUM(balance_minor) FROM wallets)
           + (SELECT COALESCE(SUM(total_minor), 0) FROM orders WHERE status = 'COMPLETED'),
           (SELECT SUM(stock) FROM stock)
           + (SELECT COALESCE(SUM(quantity), 0) FROM orders WHERE status = 'COMPLETED')
"""


async def test_readers_see_all_views_move_in_one_step(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A join across the views balances at every moment, not only in the end."""
    monkeypatch.setattr(projector, "PAGE", 10)
    await ledger.write(opening(MONEY, UNITS), orders(300))
    async with ledger.connection("projector") as connection:
        await project_next_batch(connection, PROJECTIONS)
        moving = asyncio.create_task(advance_to_the_end(connection))
        looks = 0
        while not moving.done():
            assert await ledger.rows(BALANCE, "analyst") == [(1, MONEY, UNITS)]
            looks += 1
        await moving
    assert looks > 5


async def test_the_checkpoints_are_locked_while_views_advance(written: Ledger) -> None:
    async with (
        written.connection("projector") as one,
        written.connection("projector") as two,
    ):
        await lock_checkpoints(one, PROJECTIONS)
        other = asyncio.create_task(project_next_batch(two, PROJECTIONS))
        await written.until_running("%FROM checkpoints%FOR UPDATE", "projector")
        assert not other.done()
        await one.rollback()
        assert (await other).after == 0
