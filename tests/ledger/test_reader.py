"""The reader's promises: no decision is cut, no gap is read over, look-ups find what is there."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import UUID

import pytest

from ledger.eventlog.codec import payload_of
from ledger.eventlog.decisions import last_decision_index, to_decisions
from ledger.eventlog.reader import EventReader
from ledger.eventlog.records import ChainCheck, LedgerDamaged, Record, VerificationFailed
from ledger.runtime.cache import Prefetch
from tests.submissions import (
    ANN,
    NOBODY,
    PEN,
    credit,
    customer,
    event_of,
    history,
    opening,
    order,
    orders,
    receipt,
)

from .built_ledgers import records_of
from .pipeline import Ledger
from .test_audit import atomic

REFUSED, PLACED = "submission.refused", "order.placed"


def refused_twice() -> list[Record]:
    """1 a customer, 2-3 the same again, refused, 4 a deposit, 5-6 an order that fails."""
    return records_of(
        [event_of(customer()), event_of(customer()), event_of(credit(5)), event_of(order())]
    )


def test_records_are_grouped_into_decisions_that_give_them_back() -> None:
    records = records_of(opening(), history(3, 60))
    decisions = to_decisions(records)
    assert [record for decision in decisions for record in decision.records] == records
    assert all(not decision.cause.cause_position for decision in decisions)
    assert all(
        decided.cause_position == decision.cause.position
        for decision in decisions
        for decided in decision.decided
    )


def test_only_a_refused_submission_takes_no_effect() -> None:
    registered, refused, deposit, failed = to_decisions(refused_twice())
    assert [d.took_effect for d in (registered, refused, deposit, failed)] == [
        True,
        False,
        True,
        True,
    ]
    assert [record.position for record in refused.effective_records] == [3]
    assert [record.position for record in failed.effective_records] == [5, 6]
    assert [d.outcome.type for d in (registered, refused, deposit, failed)] == [
        "customer.registered",
        "submission.refused",
        "wallet.credited",
        "order.failed",
    ]


def test_records_that_begin_with_a_decided_event_are_no_decisions() -> None:
    with pytest.raises(VerificationFailed, match=r"position 3: submission\.refused"):
        to_decisions(refused_twice()[2:])
    assert to_decisions([]) == []


def test_the_last_start_is_that_of_the_last_decision_or_of_its_atomic_batch() -> None:
    records = records_of(opening(), atomic(*orders(3)))
    assert last_decision_index(records, whole_batches=False) == 6
    assert last_decision_index(records, whole_batches=True) == 2
    assert last_decision_index(records[2:], whole_batches=True) == 0
    assert last_decision_index(records[3:4], whole_batches=False) == 0


async def read(reader: EventReader, limit: int, *, whole_batches: bool = False) -> list[Record]:
    """The whole ledger, page by page; each page is whole."""
    records: list[Record] = []
    async for page in reader.pages(0, limit=limit, whole_batches=whole_batches):
        assert not page.records[0].cause_position
        records += page.records
    return records


async def test_no_page_ends_within_a_decision(ledger: Ledger) -> None:
    whole = await ledger.write(opening() + history(3, 12))
    async with ledger.connection() as connection:
        for limit in range(1, len(whole) + 3):
            assert await read(EventReader(connection), limit) == whole


async def test_no_page_ends_within_an_atomic_batch_if_it_must_not(ledger: Ledger) -> None:
    batch = atomic(*orders(6))
    whole = await ledger.write([*opening(), *orders(1), *batch, *orders(2)])
    async with ledger.connection() as connection:
        for limit in range(1, len(whole) + 3):
            reader = EventReader(connection)
            ends = [
                page.position async for page in reader.pages(0, limit=limit, whole_batches=True)
            ]
            assert not set(ends) & set(range(5, 16)), limit
            assert await read(reader, limit, whole_batches=True) == whole
        for position in range(5, 17):
            assert await reader.atomic_batch_at(position) == (5, 16)
        assert await reader.atomic_batch_at(4) is None
        assert await reader.atomic_batch_at(17) is None


async def test_pages_end_where_they_are_asked_to(ledger: Ledger) -> None:
    whole = await ledger.write(opening() + orders(8))
    async with ledger.connection() as connection:
        reader = EventReader(connection)
        for after, up_to in ((0, len(whole)), (3, 10), (0, 7), (5, 5)):
            pages = [page async for page in reader.pages(after, up_to, limit=4)]
            assert [record for page in pages for record in page.records] == whole[after:up_to]
        with pytest.raises(LedgerDamaged, match=f"position {len(whole) + 1}: the event is gone"):
            [page async for page in reader.pages(0, len(whole) + 1)]


@pytest.mark.parametrize("missing", [1, 2, 3])
async def test_a_gap_is_not_read_over(ledger: Ledger, missing: int) -> None:
    await ledger.write(opening() + orders(3))
    await ledger.execute("DROP TRIGGER events_no_delete")
    await ledger.execute(f"DELETE FROM events WHERE position = {missing}")
    async with ledger.connection() as connection:
        for limit in (2, 5_000):
            with pytest.raises(LedgerDamaged, match=f"position {missing}: the event is gone"):
                await read(EventReader(connection), limit)


async def test_what_stands_before_a_gap_is_read_if_that_is_asked_for(ledger: Ledger) -> None:
    whole = await ledger.write(opening() + orders(3))
    await ledger.execute("DROP TRIGGER events_no_delete")
    await ledger.execute("DELETE FROM events WHERE position = 7")
    records: list[Record] = []

    async def read_to_damage(reader: EventReader) -> None:
        async for page in reader.pages(0, up_to_damage=True):
            records.extend(page.records)

    async with ledger.connection() as connection:
        with pytest.raises(LedgerDamaged, match="position 7: the event is gone"):
            await read_to_damage(EventReader(connection))
    assert records == whole[: len(records)]
    assert len(records) >= 4


async def test_a_hash_that_is_not_the_chains_is_found_on_the_way(ledger: Ledger) -> None:
    whole = await ledger.write(opening() + orders(3))
    async with ledger.connection("migrate") as connection:
        reader, chain = EventReader(connection), ChainCheck()
        async for _ in reader.pages(0, limit=3, chain=chain):
            pass
        assert (chain.position, chain.hash) == (len(whole), whole[-1].hash)
        await connection.rollback()
        await ledger.execute("DROP TRIGGER events_no_update")
        await ledger.execute("UPDATE events SET meta = '{}' WHERE position = 5")
        with pytest.raises(LedgerDamaged, match="position 5: the hash"):
            [page async for page in reader.pages(0, limit=3, chain=ChainCheck())]
        trusted = whole[4]
        after = ChainCheck(trusted.position, trusted.hash, trusted.recorded_at_us)
        async for _ in reader.pages(trusted.position, chain=after):
            pass


async def test_records_are_found_by_stream_position_and_id(ledger: Ledger) -> None:
    whole = await ledger.write(history(5, 30))
    streams = {record.stream_id for record in whole}
    async with ledger.connection() as connection:
        reader = EventReader(connection)
        found = await reader.streams(list(streams))
        assert await reader.streams([]) == {}
        assert await reader.records_at([2, 1, len(whole) + 1]) == {1: whole[0], 2: whole[1]}
        assert await reader.record_at(0) is None
        assert await reader.positions_of([whole[2].event_id, bytes(16)], before=4) == {
            whole[2].event_id: 3
        }
        assert await reader.positions_of([whole[2].event_id], before=3) == {}
        assert await reader.last_recorded() == (len(whole), whole[-1].recorded_at_us)
        assert await reader.last_recorded(0) == (0, 0)
        causes = [record.event_id for record in whole if not record.cause_position]
        decisions, _ = await reader.decisions_by_id([*causes, bytes(16)])
    assert found == {
        stream: [record for record in whole if record.stream_id == stream] for stream in streams
    }
    assert sorted(decisions, key=lambda d: d.cause.position) == to_decisions(whole)


async def test_the_events_of_streams_that_took_effect_are_those_of_the_decisions(
    ledger: Ledger,
) -> None:
    whole = await ledger.write([*opening(), *history(5, 60)])
    effective = [
        record for decision in to_decisions(whole) for record in decision.effective_records
    ]
    assert len(effective) < len(whole)
    streams = {record.stream_id for record in whole}
    ids = [UUID(bytes=stream_id) for stream_id in streams]
    async with ledger.connection() as connection:
        reader = EventReader(connection)
        found = await reader.effective_events_of(ids)
        assert [event.position for event in found] == [record.position for record in effective]
        some = await reader.effective_events_of(ids, [PLACED], after=9, up_to=70, beyond_version=1)
        assert [event.position for event in some] == [
            record.position
            for record in effective
            if record.type == PLACED and 9 < record.position <= 70 and record.version > 1
        ]
        pages = [page async for page in reader.pages(0, limit=7, with_keys=True)]
        events = [event for page in pages for event in page.effective_events()]
        assert [event.position for event in events] == [record.position for record in effective]


async def test_a_record_is_given_out_with_the_id_of_its_cause(ledger: Ledger) -> None:
    whole = await ledger.write([*opening(), *orders(4)])
    async with ledger.connection("projector") as connection:
        reader = EventReader(connection)
        page = await reader.scan(1, 7, 4)
        assert page.head.position == len(whole)
        assert [found.record for found in page.records] == whole[1:5]
        assert page.scanned_to == 5
        for found in page.records:
            cause = found.record.cause_position
            assert found.cause_id == (whole[cause - 1].event_id if cause else None)
        placed = await reader.with_causes(0, 99, 99, types=[PLACED], with_keys=True)
        assert [found.record for found in placed] == [r for r in whole if r.type == PLACED]
        ann = await reader.with_causes(0, 99, 99, stream_id=ANN, with_keys=True)
        assert [found.record for found in ann] == [whole[0]]
        assert payload_of(ann[0].record, {ANN.bytes: ann[0].encryption_key}).username == "ann"  # type: ignore[union-attr]


async def count_to(end: int, begun: list[int]) -> AsyncGenerator[int, None]:
    for number in range(end):
        begun.append(number)
        await asyncio.sleep(0)
        yield number
    if end == 3:
        raise ValueError("no more than three")


async def test_the_next_item_is_fetched_while_one_is_worked_on() -> None:
    begun: list[int] = []
    async with aclosing(Prefetch(count_to(5, begun))) as numbers:
        async for number in numbers:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert begun == list(range(min(number + 2, 5)))
    assert begun == [0, 1, 2, 3, 4]


async def test_an_error_of_a_prefetch_comes_in_its_place_and_closing_waits_for_what_is_begun() -> (
    None
):
    taken: list[int] = []

    async def take_all() -> None:
        async with aclosing(Prefetch(count_to(3, []))) as numbers:
            async for number in numbers:
                taken.append(number)

    with pytest.raises(ValueError, match="no more than three"):
        await take_all()
    assert taken == [0, 1, 2]
    async with aclosing(Prefetch(count_to(3, begun := []))):
        pass
    assert begun in ([], [0])


async def test_a_scan_says_how_far_it_has_looked(ledger: Ledger) -> None:
    receipts = [event_of(receipt(1)) for _ in range(6)]
    whole = await ledger.write([*opening(), *orders(2), *receipts])
    end, of_pen = len(whole), [record for record in whole if record.stream_id == PEN.bytes]
    async with ledger.connection("projector") as connection:
        reader = EventReader(connection)

        async def scan(*numbers: int, **only: Any) -> tuple[list[int], int]:
            found = await reader.scan(*numbers, **only)
            assert found.head == await reader.identified_head()
            assert found.head.position == end
            return [each.record.position for each in found.records], found.scanned_to

        # So many positions, or so many events of a stream: not more than the window.
        assert await scan(0, 3, 9) == ([1, 2, 3], 3)
        assert await scan(0, 3, 9, types=[PLACED]) == ([3], 3)
        assert await scan(0, 3, 9, types=["order.failed"]) == ([], 3)
        assert await scan(end, 3, 9) == ([], end)
        assert await scan(0, 99, 9, types=["order.failed"]) == ([], end)
        positions = [record.position for record in of_pen]
        assert await scan(0, 99, 99, stream_id=PEN) == (positions, end)
        assert await scan(0, 99, 2, stream_id=PEN) == (positions[:2], positions[1])
        listed = ["product.listed", PLACED]
        assert await scan(0, 3, 9, stream_id=PEN, types=listed) == (positions[:1], positions[2])
        assert await scan(0, 99, 9, stream_id=PEN, types=listed) == (positions[:1], end)
        for after in range(end + 2):
            later = [position for position in positions if position > after]
            assert await scan(after, 99, 99, stream_id=PEN) == (later, max(after, end))
            version = sum(position <= after for position in positions)
            assert await reader.version_at(PEN, after) == version
        assert await scan(0, 99, 9, stream_id=NOBODY) == ([], end)
