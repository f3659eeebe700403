"""Snapshots spare reading and never change an answer: a bad one is passed over."""

import pytest

from ledger import snapshots
from ledger.core.fold import Fold
from ledger.writer import Known, load
from tests.harness import eventually

from .audit import audit
from .events import history, opening, orders
from .running import Ledger


async def written(ledger: Ledger, every: int = 20) -> Fold:
    """A ledger with snapshots and with events after the newest of them; its whole fold."""
    events = [*opening(), *history(7, 80)]
    async with ledger.writing(snapshot_every=every):
        for start in range(0, len(events), 15):
            group = events[start : start + 15]
            await ledger.put_events(group)
            await ledger.until_recorded(group)
        await eventually(lambda: has_snapshots(ledger, 2), "two snapshots are saved")
    last = orders(5)
    await ledger.write(last)
    return audit(await ledger.records())


async def has_snapshots(ledger: Ledger, count: int) -> bool:
    return len(await positions(ledger)) >= count


async def positions(ledger: Ledger) -> list[int]:
    """Where snapshots are, the newest first."""
    rows = await ledger.rows("SELECT DISTINCT position FROM snapshots ORDER BY position DESC")
    return [position for (position,) in rows]


async def loaded(ledger: Ledger) -> Known:
    async with ledger.connection() as connection:
        return await load(connection)


def same(known: Known, whole: Fold) -> bool:
    fold = known.fold
    return (fold.customers, fold.products) == (whole.customers, whole.products)


async def test_a_restart_reads_the_newest_snapshot_and_only_what_came_after(
    ledger: Ledger,
) -> None:
    whole = await written(ledger)
    known = await loaded(ledger)
    assert known.snapshot_position == (await positions(ledger))[0] > 0
    assert same(known, whole)
    assert known.head.position == (await ledger.head()).position
    assert known.fold.orders == {}
    # What came before is not read again: it could not be, for it is damaged now.
    await ledger.execute("DROP TRIGGER events_no_update")
    await ledger.execute("UPDATE events SET data = 'x' WHERE position = 1")
    assert same(await loaded(ledger), whole)


async def test_only_the_newest_snapshots_are_kept(ledger: Ledger) -> None:
    await written(ledger, every=5)
    assert len(await positions(ledger)) == snapshots.KEPT


DAMAGES: dict[str, str] = {
    "its bytes are cut": "UPDATE snapshots SET body = LEFT(body, 10) WHERE part = 1",
    "its bytes are changed": "UPDATE snapshots SET body = CONCAT('x', body) WHERE part = 2",
    "a part is empty": "UPDATE snapshots SET body = '' WHERE part = 0",
    "a part is missing": "DELETE FROM snapshots WHERE part = 1",
    "it is of another ledger": "UPDATE snapshots SET hash = REPEAT('x', 32)",
    "it is of another position": "UPDATE snapshots SET position = position + 1",
    "it is of another shape": "UPDATE snapshots SET fold_version = fold_version + 1",
}


async def test_a_bad_snapshot_is_passed_over_for_an_older_one_or_none(ledger: Ledger) -> None:
    whole = await written(ledger)
    newest, older = await positions(ledger)
    async with ledger.connection("migrate") as connection:
        for what, damage in DAMAGES.items():
            where = "AND" if " WHERE " in damage else "WHERE"
            for scope, found in ((f"{where} position = {newest}", older), ("", 0)):
                # The damage is not committed, and `load` undoes it at its end.
                await connection.exec_driver_sql(f"{damage} {scope}")
                known = await load(connection)
                assert known.snapshot_position == found, what
                assert same(known, whole), what


async def test_a_writer_that_finds_only_bad_snapshots_goes_on_and_saves_a_good_one(
    ledger: Ledger,
) -> None:
    await written(ledger)
    await ledger.execute("UPDATE snapshots SET body = 'x'")
    bad = await positions(ledger)
    async with ledger.writing(snapshot_every=1):
        events = orders(2)
        await ledger.put_events(events)
        await ledger.until_recorded(events)

        async def is_saved() -> bool:
            return (await positions(ledger))[0] > bad[0]

        await eventually(is_saved, "a snapshot is saved")
    known = await loaded(ledger)
    assert known.snapshot_position == known.head.position
    assert same(known, audit(await ledger.records()))


async def test_a_snapshot_of_many_parts_is_read_whole(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "PART_ENTRIES", 1)
    whole = await written(ledger)
    rows = await ledger.rows("SELECT MAX(part) FROM snapshots")
    assert rows[0][0] == len(whole.customers) + len(whole.products) > 2
    known = await loaded(ledger)
    assert known.snapshot_position > 0
    assert same(known, whole)
