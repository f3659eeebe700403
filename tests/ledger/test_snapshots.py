"""Snapshots spare reading and never change an answer: a bad one is passed over."""

import hmac
import struct
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.core.decider import Fold
from ledger.eventlog import snapshots
from ledger.eventlog.snapshots import KEPT, NEWEST, LedgerState, load, spread
from ledger.runtime.database import make_engine
from ledger.runtime.metrics import SNAPSHOTS_REFUSED
from tests.harness import eventually
from tests.submissions import history, opening, orders

from .naive_audit import audit
from .pipeline import Ledger


async def written(ledger: Ledger, every: int = 20) -> Fold:
    """A ledger with snapshots and with events after the newest of them; its whole fold."""
    events = [*opening(), *history(7, 80)]
    async with ledger.writing(snapshot_every=every):
        for start in range(0, len(events), 15):
            group = events[start : start + 15]
            before = await newest(ledger)
            await ledger.put_events(group)
            await ledger.until_recorded(group)
            if (await ledger.head()).position >= before + every:
                await until_saved_after(ledger, before)
    last = orders(5)
    await ledger.write(last)
    return audit(await ledger.records())


async def until_saved_after(ledger: Ledger, position: int) -> None:
    async def is_saved() -> bool:
        return await newest(ledger) > position

    await eventually(is_saved, f"a snapshot is saved after position {position}")


async def newest(ledger: Ledger) -> int:
    return next(iter(await positions(ledger)), 0)


async def positions(ledger: Ledger) -> list[int]:
    """Where snapshots are, the newest first."""
    rows = await ledger.rows("SELECT DISTINCT position FROM snapshots ORDER BY position DESC")
    return [position for (position,) in rows]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots of few entries have several parts."""
    monkeypatch.setattr(snapshots, "PART_ENTRIES", 1)


async def loaded(ledger: Ledger) -> LedgerState:
    async with ledger.connection() as connection:
        return await load(connection)


def same(known: LedgerState, whole: Fold) -> bool:
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


Steps = st.lists(st.integers(1, 1_000), min_size=1, max_size=120)


def kept_one_by_one(steps: list[int], kept: int) -> list[int]:
    """What is left of snapshots that were taken so many events after each other."""
    positions: list[int] = []
    for step in steps:
        positions = spread([*positions, (positions or [0])[-1] + step], kept)
    return positions


@given(Steps, st.integers(NEWEST, 20))
def test_at_most_the_limit_is_kept_and_always_the_newest(steps: list[int], kept: int) -> None:
    taken = [sum(steps[:count]) for count in range(1, len(steps) + 1)]
    left = kept_one_by_one(steps, kept)
    assert len(left) == min(len(steps), kept)
    assert left == sorted(set(left) & set(taken))
    assert left[-NEWEST:] == taken[-NEWEST:]
    assert spread(left, kept) == left


@given(Steps, st.integers(NEWEST, 20))
def test_kept_snapshots_are_spread_over_the_history(steps: list[int], kept: int) -> None:
    left = kept_one_by_one(steps, kept)
    gaps = [after - before for before, after in zip([0, *left], left, strict=False)]
    assert max(gaps) <= max(*steps, 2 * sum(steps) / (kept - 1), 0)


async def test_saving_a_snapshot_deletes_those_beyond_the_limit(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "spread", lambda positions: spread(positions, 5))
    await written(ledger, every=5)
    found = await positions(ledger)
    assert len(found) == 5
    assert found == spread(found, 5)[::-1]


async def test_a_writer_that_has_to_fold_the_whole_ledger_leaves_snapshots_on_its_way(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an upgrade of their shape: else the past would be far from any, for ever."""
    whole = await written(ledger)
    await ledger.execute("UPDATE snapshots SET fold_version = fold_version - 1")
    middle = (await ledger.head()).position // 2
    monkeypatch.setattr("ledger.eventlog.reader.PAGE", 30)

    async def is_near() -> bool:
        async with ledger.connection() as connection:
            return (await snapshots.nearest(connection, middle)).head.position > 0

    async with ledger.writing(snapshot_every=25):
        await eventually(is_near, "a snapshot is saved in the first half")
    known = await loaded(ledger)
    assert known.snapshot_position > 0
    assert same(known, whole)


async def test_unusable_snapshots_are_deleted(ledger: Ledger) -> None:
    """As those of a ledger that was brought back from an older backup, beyond its head."""
    whole = await written(ledger)
    good = await positions(ledger)
    for number in range(KEPT):
        await ledger.execute(
            "INSERT INTO snapshots SELECT position + 1000000 + %s, part, parts, fold_version,"
            " hash, body FROM snapshots WHERE position = %s",
            "migrate",
            number,
            good[0],
        )
    assert same(await loaded(ledger), whole)
    await snapshots.save(ledger.engine("writer"), await taken_at(ledger, good[1]))
    assert await positions(ledger) == good
    assert same(await loaded(ledger), whole)


async def taken_at(ledger: Ledger, position: int) -> snapshots.LedgerState:
    async with ledger.connection() as connection:
        found = await snapshots.nearest(connection, position)
    assert found.head.position == position
    return found


async def test_the_nearest_is_the_newest_that_is_not_beyond_a_position(ledger: Ledger) -> None:
    await written(ledger)
    good = await positions(ledger)
    records = await ledger.records()
    async with ledger.connection() as connection:
        for asked in range(good[0] + 2):
            found = await snapshots.nearest(connection, asked)
            position = found.head.position
            assert position == max((p for p in good if p <= asked), default=0)
            whole, fold = audit(records[:position]), found.fold
            assert (fold.customers, fold.products) == (whole.customers, whole.products)
            if position:
                assert found.recorded_at_us == records[position - 1].recorded_at_us


@pytest.mark.usefixtures("small_parts")
async def test_one_entry_is_found_in_the_newest_snapshot_between_two_positions(
    ledger: Ledger,
) -> None:
    await written(ledger)
    newest, older, *_ = await positions(ledger)
    records = await ledger.records()
    async with ledger.connection() as connection:
        for asked, expected in ((newest, newest), (newest - 1, older)):
            whole = audit(records[:expected])
            for key, state in (*whole.customers.items(), *whole.products.items()):
                assert await snapshots.entry(connection, key, 1, asked) == (expected, state)
                assert await snapshots.entry(connection, key, expected + 1, asked) is None


@pytest.mark.usefixtures("small_parts")
async def test_an_entry_that_a_snapshot_lost_is_taken_from_an_older_one(ledger: Ledger) -> None:
    await written(ledger)
    newest, older, *_ = await positions(ledger)
    whole = audit((await ledger.records())[:older])
    async with ledger.connection("migrate") as connection:
        for body in ("body = 'x'", "body = ''"):
            await connection.exec_driver_sql(
                f"UPDATE snapshots SET {body} WHERE position = {newest}"
            )
            for key, state in whole.customers.items():
                assert await snapshots.entry(connection, key, 1, newest) == (older, state)


def packed(part: object, key: bytes, header: bytes) -> bytes:
    """A body as whoever has this key would make it."""
    body = zlib.compress(msgspec.msgpack.encode(part))
    return body + hmac.digest(key, b"order-ledger snapshot 1\n" + header + body, "sha256")


def richer(body: bytes) -> list[dict[bytes, list[int]]]:
    """The contents of a body, with a fortune in every wallet."""
    customers, products = msgspec.msgpack.decode(zlib.decompress(body))
    return [{key: [10**12, position] for key, (_, position) in customers.items()}, products]


@pytest.mark.parametrize("at", ["the newest", "another position"])
@pytest.mark.parametrize("seal", ["none", "the old one", "of another key"])
async def test_a_snapshot_forged_by_the_writers_account_is_never_believed(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, seal: str, at: str
) -> None:
    whole = await written(ledger)
    newest, *_ = await positions(ledger)
    rows = await ledger.rows(
        "SELECT part, parts, fold_version, body FROM snapshots WHERE position = %s",
        "writer",
        newest,
    )
    position = newest if at == "the newest" else (await ledger.head()).position
    hash_ = (await ledger.records())[position - 1].hash
    async with ledger.engine("writer").begin() as connection:
        statement = "DELETE FROM snapshots WHERE position = %s"
        await connection.exec_driver_sql(statement, (position,))
        for part, parts, version, body in rows:
            header = struct.pack(">QIII", position, version, part, parts) + hash_
            forged = packed(richer(body), b"guessed", header)
            if seal != "of another key":
                forged = forged[:-32] + (body[-32:] if seal == "the old one" else b"")
            await connection.exec_driver_sql(
                "INSERT INTO snapshots (position, part, parts, fold_version, hash, body)"
                " VALUES (%s, %s, %s, %s, %s, %s)",
                (position, part, parts, version, hash_, forged),
            )
    before = SNAPSHOTS_REFUSED._value.get()
    known = await loaded(ledger)
    assert same(known, whole)
    assert known.snapshot_position < position
    assert f"the snapshot at position {position} can't be used" in caplog.text
    assert SNAPSHOTS_REFUSED._value.get() > before
    async with ledger.connection() as connection:
        assert await snapshots.refused(connection) == [position]
        # Neither by a look at one wallet as of a position.
        for key in whole.customers:
            found = await snapshots.entry(connection, key, 1, position)
            assert found is None or found[0] < position
    # The next one that is saved takes it away.
    await snapshots.save(ledger.engine("writer"), await taken_at(ledger, known.snapshot_position))
    assert position not in await positions(ledger)


async def test_forged_snapshots_do_not_push_out_true_ones(ledger: Ledger) -> None:
    await written(ledger)
    good = await positions(ledger)
    head = (await ledger.head()).position
    forged = [p for p in range(1, head + 1) if p not in good]
    for position in forged:
        await ledger.execute(
            "INSERT INTO snapshots SELECT %s, part, parts, fold_version,"
            " (SELECT hash FROM events WHERE position = %s), body"
            " FROM snapshots WHERE position = %s",
            "migrate",
            position,
            position,
            good[0],
        )
    await snapshots.save(ledger.engine("writer"), await taken_at(ledger, good[0]))
    assert await positions(ledger) == good


async def test_without_the_key_no_snapshot_is_made_or_believed(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    whole = await written(ledger)
    before = await positions(ledger)
    engine = make_engine(ledger.settings.db_url("writer"))
    try:
        async with engine.connect() as connection:
            known = await load(connection)
        await snapshots.save(engine, known.take_snapshot())
    finally:
        await engine.dispose()
    assert same(known, whole)
    assert await positions(ledger) == before
    assert "snapshot_key" in caplog.text


DAMAGES: dict[str, str] = {
    "its bytes are cut": "UPDATE snapshots SET body = LEFT(body, 10) WHERE part = 1",
    "its bytes are changed": "UPDATE snapshots SET body = CONCAT('x', body) WHERE part = 2",
    "a part is empty": "UPDATE snapshots SET body = '' WHERE part = 0",
    "a part is missing": "DELETE FROM snapshots WHERE part = 1",
    "it is of another ledger": "UPDATE snapshots SET hash = REPEAT('x', 32)",
    "it is of another position": "UPDATE snapshots SET position = position + 1",
    "it is of another shape": "UPDATE snapshots SET fold_version = fold_version + 1",
}


@pytest.mark.usefixtures("small_parts")
async def test_a_bad_snapshot_is_passed_over_for_an_older_one_or_none(ledger: Ledger) -> None:
    whole = await written(ledger)
    newest, older, *_ = await positions(ledger)
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
    bad = await newest(ledger)
    async with ledger.writing(snapshot_every=1):
        events = orders(2)
        await ledger.put_events(events)
        await ledger.until_recorded(events)
        await until_saved_after(ledger, bad)
    known = await loaded(ledger)
    assert known.snapshot_position > bad
    assert same(known, audit(await ledger.records()))


@pytest.mark.usefixtures("small_parts")
async def test_a_snapshot_of_many_parts_is_read_whole(ledger: Ledger) -> None:
    whole = await written(ledger)
    rows = await ledger.rows("SELECT MAX(parts), COUNT(*) FROM snapshots GROUP BY position")
    assert {parts for parts, _ in rows} == {count for _, count in rows}
    assert max(rows)[0] >= len(whole.customers) + len(whole.products) > 2
    known = await loaded(ledger)
    assert known.snapshot_position > 0
    assert same(known, whole)
