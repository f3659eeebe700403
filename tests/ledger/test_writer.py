"""The writer's promises while nothing fails: order, once, and the same decisions in any batches."""

import asyncio
from itertools import count, pairwise
from uuid import uuid4

import pytest
import sqlalchemy

from ledger.core.events import (
    OrderCancelled,
    OrderCancelRefused,
    OrderCompleted,
    Reason,
    SubmissionRefused,
    WalletCredited,
)
from ledger.eventlog.codec import decode_recorded, encode_group, encode_submitted
from ledger.eventlog.encryption import is_sealed
from ledger.eventlog.records import Record, Submitted
from ledger.eventlog.snapshots import load, save
from ledger.messaging.topology import INBOX
from ledger.runtime.metrics import CLOCK_AHEAD_S, CLOCK_WRONG, RECORDED_AHEAD_S
from ledger.runtime.timestamps import now_us
from ledger.writer import Clock, append_new, take_over
from tests.harness import eventually
from tests.submissions import (
    ANN,
    PEN,
    cancel,
    conditional,
    credit,
    customer,
    event_of,
    history,
    opening,
    order,
    orders,
    price,
    product,
)

from .naive_audit import audit, causes, ids
from .pipeline import Ledger


def decisions(records: list[Record]) -> list[tuple[object, ...]]:
    """All of a ledger that must not depend on when it was written, nor on the keys of its names."""
    return [
        (r.position, r.event_id, r.stream_id, r.version, r.type, r.cause_position, data_of(r))
        for r in records
    ]


def data_of(record: Record) -> object:
    return decode_recorded(record).payload if is_sealed(record) else record.data


async def test_what_was_submitted_is_decided_in_the_order_of_the_inbox(ledger: Ledger) -> None:
    events = history(1, 300)
    async with ledger.writing():
        for start in range(0, 300, 7):
            await ledger.put_events(events[start : start + 7])
        records = await ledger.until_recorded(events)
    assert causes(records) == ids(events)
    audit(records)


async def test_a_precondition_is_decided_the_same_by_a_writer_that_starts_in_between(
    ledger: Ledger,
) -> None:
    """From the events alone, and from a snapshot: both have the positions that clients saw."""
    seen = (await ledger.write([*opening(), event_of(order())]))[-1].position
    for change, from_snapshot in ((price(7), False), (credit(7), True)):
        if from_snapshot:
            async with ledger.connection("writer") as connection:
                await save(ledger.engine("writer"), await load(connection))
        events = [event_of(conditional(change, seen)) for _ in range(2)]
        *_, made, again, refused = await ledger.write(events)
        assert [made.event_id, again.event_id] == [event.event_id.bytes for event in events]
        assert decode_recorded(refused).payload == SubmissionRefused(Reason.PRECONDITION_FAILED)
    audit(await ledger.records())


async def test_a_decided_event_stands_right_after_its_cause(ledger: Ledger) -> None:
    placed = event_of(order(quantity=2))
    records = await ledger.write([*opening(5000), placed])
    cause, decided = records[-2:]
    assert cause.event_id == placed.event_id.bytes
    assert (decided.cause_position, decided.version) == (cause.position, 2)
    assert decode_recorded(decided).payload == OrderCompleted(ANN, PEN, 2, 1000, 2000)
    assert decided.recorded_at_us == cause.recorded_at_us


async def test_an_event_delivered_again_counts_once(ledger: Ledger) -> None:
    events = [*opening(), *orders(5)]
    async with ledger.writing():
        await ledger.put_events(events, events)
        await ledger.until_recorded(events)
        await ledger.put_events(events[2:], *[[event] for event in events])
        last = orders(1)
        await ledger.put_events(last)
        records = await ledger.until_recorded(last)
    assert causes(records) == ids([*events, *last])
    assert audit(records).customers[ANN].balance_minor == 10**9 - 6 * 1000


async def test_an_event_twice_in_one_group_counts_once(ledger: Ledger) -> None:
    placed = orders(1)
    records = await ledger.write([*opening(), *placed, *placed])
    assert audit(records).products[PEN].stock == 9_999


async def test_an_event_delivered_again_after_a_restart_counts_once(ledger: Ledger) -> None:
    events = [*opening(), *orders(3)]
    first = await ledger.write(events)
    again = await ledger.write(events)
    assert again == first


async def test_a_reused_event_id_with_another_body_changes_nothing(ledger: Ledger) -> None:
    paid_in = event_of(credit(100))
    forged = event_of(credit(10**9), paid_in.event_id)
    elsewhere = event_of(product(at=uuid4()), paid_in.event_id)
    await ledger.write([*opening(0), paid_in, forged])
    records = await ledger.write([forged, elsewhere])
    assert audit(records).customers[ANN].balance_minor == 100
    assert decode_recorded(records[-1]).payload == WalletCredited(100)


async def test_no_decision_depends_on_where_a_batch_ends(ledger: Ledger) -> None:
    """One ledger decides a history in one batch; the same ids go through many small ones."""
    events = history(2, 120)
    at_once = await ledger.write(events)
    audit(at_once)
    small = await decided_in_batches(ledger, events, [1, 2, 3])
    assert decisions(small) == decisions(at_once)


async def decided_in_batches(
    ledger: Ledger, events: list[Submitted], sizes: list[int]
) -> list[Record]:
    """The records of the events, decided batch by batch on an emptied ledger."""
    await ledger.forget_events()
    await ledger.execute("DELETE FROM customer_keys")
    async with ledger.connection() as connection:
        known = await load(connection)
        await take_over(connection, known)
        start = 0
        for turn in count():
            if start >= len(events):
                return await ledger.records()
            size = sizes[turn % len(sizes)]
            await append_new(connection, known, events[start : start + size], now_us())
            assert not known.fold.orders, "an order is kept between batches"
            start += size
    raise AssertionError


@pytest.mark.parametrize("together", [True, False])
async def test_the_id_of_an_old_order_never_becomes_a_customer_or_a_product(
    ledger: Ledger, together: bool
) -> None:
    old = uuid4()
    events = [event_of(order(at=old)), event_of(customer(at=old)), event_of(product(at=old))]
    await ledger.write(opening())
    records = await ledger.write(*([events] if together else [[event] for event in events]))
    if not together:
        records = await ledger.write([event_of(customer(at=old)), event_of(product(at=old))])
    fold = audit(records)
    assert old not in fold.customers
    assert old not in fold.products
    refused = [
        decode_recorded(record).payload for record in records if record.type.endswith("refused")
    ]
    assert refused[:2] == [
        SubmissionRefused(Reason.DUPLICATE_CUSTOMER),
        SubmissionRefused(Reason.DUPLICATE_PRODUCT),
    ]


async def test_an_order_is_cancelled_from_its_history_after_it_was_forgotten(
    ledger: Ledger,
) -> None:
    old = uuid4()
    await ledger.write([*opening(5000, 10), event_of(order(3, at=old))])
    records = await ledger.write([event_of(cancel(old))])
    assert decode_recorded(records[-1]).payload == OrderCancelled(ANN, PEN, 3, 3000)
    records = await ledger.write([event_of(cancel(old)), event_of(order(1, at=old))])
    assert decode_recorded(records[-3]).payload == OrderCancelRefused(Reason.ALREADY_CANCELLED)
    assert decode_recorded(records[-1]).payload == SubmissionRefused(Reason.DUPLICATE_ORDER)
    fold = audit(records)
    assert (fold.customers[ANN].balance_minor, fold.products[PEN].stock) == (5000, 10)


async def test_recorded_time_never_falls_though_the_clock_does(ledger: Ledger) -> None:
    falling = count(10**15, -(10**6))
    await ledger.put_events(*[[event] for event in opening()])
    async with ledger.writing(now_us=lambda: next(falling), clock_limit_s=0):
        for event in orders(3):
            await ledger.put_events([event])
            await ledger.until_recorded([event])
    async with ledger.writing(now_us=lambda: 5, clock_limit_s=0):
        last = orders(1)
        await ledger.put_events(last)
        records = await ledger.until_recorded(last)
    assert all(one.recorded_at_us <= two.recorded_at_us for one, two in pairwise(records))
    assert records[-1].recorded_at_us > 5


YEAR_US = 365 * 86_400 * 10**6


@pytest.mark.parametrize(("off_us", "side"), [(YEAR_US, "ahead of"), (-YEAR_US, "behind")])
async def test_a_writer_with_a_wrong_clock_records_nothing_and_says_so(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, off_us: int, side: str
) -> None:
    await ledger.put_events(events := opening())
    async with ledger.writing(now_us=lambda: now_us() + off_us):

        async def is_said() -> bool:
            return f"{side} the database's, more than the 300 s" in caplog.text

        await eventually(is_said, "the writer says how wrong the clock is")
        assert CLOCK_WRONG._value.get() == 1
        assert abs(CLOCK_AHEAD_S._value.get() - off_us / 10**6) < 60
    assert await ledger.records() == []
    # Another one, whose clock is right, gets what waits.
    async with ledger.writing():
        records = await ledger.until_recorded(events)
    assert CLOCK_WRONG._value.get() == 0
    assert abs(records[-1].recorded_at_us - now_us()) < 10**8


async def test_a_clock_that_is_set_under_a_running_writer_ends_its_work_until_it_is_right(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger.writer.CLOCK_RETRY_S", 0.05)
    off_us = 0
    async with ledger.writing(now_us=lambda: now_us() + off_us):
        await ledger.put_events(first := opening())
        await ledger.until_recorded(first)
        off_us = YEAR_US
        await ledger.put_events(events := orders(3))

        async def is_said() -> bool:
            return "ahead of the database's" in caplog.text

        await eventually(is_said, "the writer says that the clock is wrong")
        assert len(await ledger.records()) == len(first)
        off_us = 0
        records = await ledger.until_recorded(events)
    assert all(abs(record.recorded_at_us - now_us()) < 10**8 for record in records)


async def test_a_ledger_whose_newest_event_is_of_the_future_is_gone_on_with_only_on_demand(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    await ledger.put_events(first := opening())
    async with ledger.writing(now_us=lambda: now_us() + YEAR_US, clock_limit_s=0):
        await ledger.until_recorded(first)
    await ledger.put_events(events := orders(2))
    async with ledger.writing():

        async def is_said() -> bool:
            return "ahead of this machine's clock" in caplog.text

        await eventually(is_said, "the writer says that the newest event is of the future")
        assert len(await ledger.records()) == len(first)
        assert RECORDED_AHEAD_S._value.get() > 364 * 86_400
    async with ledger.writing(clock_limit_s=0):
        records = await ledger.until_recorded(events)
    assert {record.recorded_at_us for record in records[2:]} == {records[1].recorded_at_us}


async def test_the_database_is_not_asked_for_its_clock_in_every_batch(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger.writer.CLOCK_CHECK_S", 3600)
    clock, asked = Clock(300), list[str]()

    def record(_: object, __: object, statement: str, *___: object) -> None:
        asked.append(statement)

    engine = ledger.engine("writer")
    sqlalchemy.event.listen(engine.sync_engine, "before_cursor_execute", record)
    async with engine.connect() as connection:
        for _ in range(50):
            at_us = await clock.read(connection, 0)
    assert len(asked) == 1
    assert abs(at_us - now_us()) < 10**8


async def test_the_submitter_is_recorded_with_the_event(ledger: Ledger) -> None:
    (event,) = [event_of(customer())]
    await ledger.put(encode_group([encode_submitted(event, "/somewhere")]))
    async with ledger.writing():
        records = await ledger.until_recorded([event])
    assert records[0].meta == b'{"source":"/somewhere"}'
    assert records[0].occurred_at_us == event.occurred_at_us


async def test_a_stop_acks_what_is_committed_and_leaves_the_rest(ledger: Ledger) -> None:
    events = [*opening(), *orders(500)]
    await ledger.put_events(*[[event] for event in events])
    writer, _ = ledger.make_writer()
    run = asyncio.create_task(writer.run())

    async def has_begun() -> bool:
        return writer.progress.commits > 0

    await eventually(has_begun, "a batch is committed")
    writer.stop()
    await run
    done = causes(await ledger.records())
    assert done == ids(events[: len(done)])

    async def is_back() -> bool:
        return await ledger.depth(INBOX) == len(events) - len(done)

    await eventually(is_back, "what was not acked waits again")
    left = [event for group in await ledger.waiting() for event in group]
    assert ids(left) == ids(events[len(done) : len(done) + len(left)])
