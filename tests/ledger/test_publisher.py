"""The publisher's promises: confirmed means in the inbox, and everything else is said in time."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from ledger.eventlog.records import Submitted
from ledger.messaging.publisher import (
    GROUP_MAX_EVENTS,
    IN_FLIGHT,
    SECOND_FROM_EVENTS,
    InboxFull,
    InboxUnavailable,
    NotConfirmed,
    Overloaded,
    Publisher,
    Unroutable,
)
from ledger.messaging.rabbitmq import Connection
from ledger.messaging.topology import INBOX, SUBMITTED_EXCHANGE
from tests.harness import eventually, make_ledger
from tests.private_servers import Servers
from tests.proxy import Proxy, open_proxy
from tests.submissions import opening, orders

from .naive_audit import causes, ids
from .pipeline import Ledger, beside, running_ledger, until_connected

SHORT_S = 0.5
BASIC_PUBLISH = b"\x00\x3c\x00\x28"
"""Class 60, method 40 of AMQP 0-9-1."""


@pytest.fixture
async def broker(ledger: Ledger) -> AsyncIterator[Proxy]:
    async with open_proxy(ledger.settings.amqp_port) as proxy:
        yield proxy


@pytest.fixture
async def publisher(ledger: Ledger, broker: Proxy) -> AsyncIterator[Publisher]:
    """A publisher whose way to the broker can be cut."""
    settings = ledger.settings.model_copy(update={"amqp_port": broker.port})
    async with ledger.publishing(settings) as publisher:
        yield publisher


@pytest.fixture
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A submission fails soon; in other tests it may take as long as the machine needs."""
    for name in ("LINE_TIMEOUT_S", "ANSWER_TIMEOUT_S", "OVERDUE_S"):
        monkeypatch.setattr(f"ledger.messaging.publisher.{name}", SHORT_S)


async def until_accepting(publisher: Publisher) -> None:
    """Wait until the broker takes events again."""

    async def is_accepted() -> bool:
        try:
            await publisher.submit(orders(1))
        except InboxUnavailable:
            return False
        return True

    await eventually(is_accepted, "the broker takes events again")


async def flat(ledger: Ledger) -> list[Submitted]:
    return [event for group in await ledger.waiting() for event in group]


async def test_a_confirmed_submission_is_in_the_inbox(ledger: Ledger, publisher: Publisher) -> None:
    for count in (1, 2, 3):
        await publisher.submit(orders(1))
        assert await ledger.depth(INBOX) == count


async def test_events_that_arrive_during_a_confirm_leave_as_one_message(
    ledger: Ledger, publisher: Publisher
) -> None:
    submissions = [orders(1 + number % 3) for number in range(1_000)]
    await asyncio.gather(*map(publisher.submit, submissions))
    groups = await ledger.waiting()
    assert len(groups) < 50
    (sizes,) = publisher.metrics.group_events.collect()
    totals = {sample.name.removeprefix(sizes.name): sample.value for sample in sizes.samples}
    assert (totals["_count"], totals["_sum"]) == (len(groups), sum(map(len, submissions)))
    assert max(map(len, groups)) <= GROUP_MAX_EVENTS
    got = ids([event for group in groups for event in group])
    assert got == ids([event for submission in submissions for event in submission])


async def test_few_events_wait_for_the_confirm_under_way_and_many_do_not(
    ledger: Ledger, broker: Proxy, publisher: Publisher
) -> None:
    first, few = orders(1), orders(SECOND_FROM_EVENTS - 1)
    broker.stall()
    callers = [asyncio.create_task(publisher.submit(first))]
    await in_flight(publisher)
    callers.append(asyncio.create_task(publisher.submit(few)))
    await asyncio.sleep(0)  # the caller's task begins
    assert publisher.waiting == len(few)
    last = orders(1)
    callers.append(asyncio.create_task(publisher.submit(last)))
    await in_flight(publisher)
    await broker.heal()
    await asyncio.gather(*callers)
    groups = [ids(group) for group in await ledger.waiting()]
    assert groups == [ids(first), ids([*few, *last])]


async def test_a_submission_is_never_split_over_two_messages(
    ledger: Ledger, publisher: Publisher
) -> None:
    submissions = [orders(100) for _ in range(8)] + [orders(GROUP_MAX_EVENTS + 50)]
    await asyncio.gather(*map(publisher.submit, submissions))
    groups = [set(ids(group)) for group in await ledger.waiting()]
    for submission in submissions:
        assert any(set(ids(submission)) <= group for group in groups)


async def test_events_are_recorded_in_the_order_of_their_submission(
    ledger: Ledger, publisher: Publisher
) -> None:
    events = [*opening(), *orders(300)]
    await publisher.submit(events)
    async with ledger.writing():
        records = await ledger.until_recorded(events)
    caused = [record.event_id for record in records if not record.cause_position]
    assert caused == [event.event_id.bytes for event in events]


async def test_a_submission_is_refused_when_no_queue_is_bound(
    ledger: Ledger, publisher: Publisher
) -> None:
    async with Connection(ledger.settings.amqp_url("migrate"), "t").channel(
        confirms=False
    ) as channel:
        queue = await channel.declare_queue(INBOX, passive=True)
        await queue.unbind(SUBMITTED_EXCHANGE)
        with pytest.raises(Unroutable, match="no queue is bound"):
            await publisher.submit(orders(1))
        assert not await publisher.has_inbox()
        await queue.bind(SUBMITTED_EXCHANGE)
    await publisher.submit(orders(1))
    assert await publisher.has_inbox()
    assert await ledger.depth(INBOX) == 1


async def test_a_full_inbox_refuses_events_and_keeps_those_it_accepted(servers: Servers) -> None:
    settings = await make_ledger(servers, inbox_max_length=3)
    async with running_ledger(settings) as ledger:
        accepted: list[Submitted] = []
        async with ledger.publishing() as publisher:
            refused = 0
            for event in [*opening(), *orders(20)]:
                try:
                    await publisher.submit([event])
                    accepted.append(event)
                except InboxFull:
                    refused += 1
            assert publisher.connected
            assert len(accepted) >= 3
            assert refused > 0
            assert ids(await flat(ledger)) == ids(accepted)
            async with ledger.writing():
                await ledger.until_recorded(accepted)
                await ledger.until_inbox_empty()
                again = orders(1)
                await publisher.submit(again)
                await ledger.until_recorded(again)


async def test_a_submission_is_refused_at_once_while_the_broker_is_away(
    ledger: Ledger, broker: Proxy, publisher: Publisher
) -> None:
    broker.cut()

    async def is_away() -> bool:
        return not publisher.connected

    await eventually(is_away, "the loss is noticed")
    with pytest.raises(InboxUnavailable, match="the broker is away") as refusal:
        await publisher.submit(orders(1))
    assert refusal.value.accepted == "no"
    await broker.heal()
    await until_connected(publisher)
    await publisher.submit(orders(1))
    assert await ledger.depth(INBOX) == 1


async def test_a_submission_is_refused_before_the_first_connection(ledger: Ledger) -> None:
    publisher = Publisher(Connection(ledger.settings.amqp_url("api"), "t"), "/tests", "tests")
    with pytest.raises(InboxUnavailable):
        await publisher.submit(orders(1))


@pytest.mark.usefixtures("short_deadlines")
async def test_what_was_sent_to_a_stalled_broker_is_unknown_and_what_waits_is_not_accepted(
    ledger: Ledger, broker: Proxy, publisher: Publisher
) -> None:
    broker.stall()
    sent = await as_many_as_may_be_in_flight(publisher)
    line = [orders(1) for _ in range(10)]
    answers = await asyncio.gather(*map(publisher.submit, line), return_exceptions=True)
    assert [refused_as(answer) for answer in answers] == ["no"] * 10
    assert publisher.waiting == 0
    answers = await asyncio.gather(*sent, return_exceptions=True)
    assert [refused_as(answer) for answer in answers] == ["unknown"] * len(sent)
    await broker.heal()
    await until_accepting(publisher)
    got = ids(await flat(ledger))
    assert not any(event.event_id in got for events in line for event in events)


def refused_as(answer: object) -> str:
    """What a refusal says of the events: whether they were accepted."""
    assert isinstance(answer, InboxUnavailable), answer
    return answer.accepted


@pytest.mark.usefixtures("short_deadlines")
async def test_a_late_confirm_keeps_the_channel(
    ledger: Ledger, broker: Proxy, publisher: Publisher
) -> None:
    """To hang up would make what else is under way unknown, and refuse all who wait in line."""
    exchange = publisher._exchange
    broker.stall("down")
    with pytest.raises(NotConfirmed):
        await publisher.submit(orders(1))

    async def is_refused_at_once() -> bool:
        return not publisher.connected

    await eventually(is_refused_at_once, "the confirm is overdue")
    with pytest.raises(InboxUnavailable, match="does not confirm") as refusal:
        await publisher.submit(orders(1))
    assert refusal.value.accepted == "no"
    await broker.heal()
    await until_connected(publisher)
    await publisher.submit(orders(1))
    assert publisher._exchange is exchange
    assert await ledger.depth(INBOX) == 2


async def test_a_confirm_that_comes_late_is_waited_for(
    ledger: Ledger, broker: Proxy, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 503 for what the broker takes a moment later would be ordered twice."""
    monkeypatch.setattr("ledger.messaging.publisher.LINE_TIMEOUT_S", SHORT_S)
    monkeypatch.setattr("ledger.messaging.publisher.OVERDUE_S", SHORT_S)
    broker.stall("down")
    caller = asyncio.create_task(publisher.submit(orders(1)))

    async def is_overdue() -> bool:
        return not publisher.connected

    await eventually(is_overdue, "the confirm is overdue")
    await broker.heal()
    await caller
    assert await ledger.depth(INBOX) == 1


async def test_what_was_sent_when_the_connection_broke_is_sent_again(
    ledger: Ledger, broker: Proxy, publisher: Publisher
) -> None:
    broker.stall("down")
    sent = await as_many_as_may_be_in_flight(publisher)
    late = orders(3)
    in_line = asyncio.create_task(publisher.submit(late))
    await until_waiting(publisher, 1)
    broker.cut()

    async def is_away() -> bool:
        return not publisher.connected

    await eventually(is_away, "the loss is noticed")
    await broker.heal()
    await asyncio.gather(*sent, in_line)
    async with ledger.writing():
        records = await ledger.until_recorded(late)
        await ledger.until_inbox_empty()
    assert len(set(causes(records))) == len(causes(records))


@pytest.mark.usefixtures("short_deadlines")
async def test_a_refusal_after_a_broken_connection_is_unknown(
    ledger: Ledger, broker: Proxy, publisher: Publisher
) -> None:
    """The broker may have taken the events before it was asked again."""
    broker.stall("down")
    caller = asyncio.create_task(publisher.submit(orders(1)))
    await in_flight(publisher)
    broker.cut()
    with pytest.raises(NotConfirmed):
        await caller


async def test_a_stopping_publisher_answers_all_in_time(
    broker: Proxy, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger.messaging.publisher.STOP_TIMEOUT_S", SHORT_S)
    broker.stall()
    sent = await as_many_as_may_be_in_flight(publisher)
    in_line = asyncio.create_task(publisher.submit(orders(1)))
    await until_waiting(publisher, 1)
    publisher.stop()
    answers = await asyncio.gather(*sent, in_line, return_exceptions=True)
    assert [refused_as(answer) for answer in answers] == ["unknown"] * len(sent) + ["no"]


async def test_the_end_of_the_publisher_answers_all(ledger: Ledger, broker: Proxy) -> None:
    settings = ledger.settings.model_copy(update={"amqp_port": broker.port})
    async with ledger.publishing(settings) as publisher:
        broker.stall()
        sent = await as_many_as_may_be_in_flight(publisher)
        sent.append(asyncio.create_task(publisher.submit(orders(1))))
        await until_waiting(publisher, 1)
    answers = await asyncio.gather(*sent, return_exceptions=True)
    # All but the last were sent.
    assert [refused_as(answer) for answer in answers] == ["unknown"] * IN_FLIGHT + ["no"]


@pytest.mark.usefixtures("short_deadlines")
async def test_a_confirm_that_never_comes_ends_the_connection(
    ledger: Ledger, broker: Proxy, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger.messaging.publisher.CONFIRM_TIMEOUT_S", SHORT_S)
    exchange = publisher._exchange
    broker.stall("down")
    with pytest.raises(InboxUnavailable):
        await publisher.submit(orders(1))

    async def is_another() -> bool:
        return publisher._exchange is not exchange

    await eventually(is_another, "the connection is given up")
    await broker.heal()
    await until_accepting(publisher)


async def as_many_as_may_be_in_flight(publisher: Publisher) -> list[asyncio.Task[None]]:
    """Submissions that keep the publisher busy, so that the next one has to wait in line."""
    busy = []
    for _ in range(IN_FLIGHT):
        busy.append(asyncio.create_task(publisher.submit(orders(SECOND_FROM_EVENTS))))
        await in_flight(publisher)
    return busy


async def in_flight(publisher: Publisher) -> None:
    """Wait until all that was submitted so far has left the line."""
    await asyncio.sleep(0)  # the callers' tasks begin

    async def line_is_empty() -> bool:
        return not publisher._waiting

    await eventually(line_is_empty, "the line is empty")


async def test_cancelling_a_caller_does_not_take_back_its_publish(
    ledger: Ledger, publisher: Publisher
) -> None:
    events = orders(20)
    callers = [asyncio.create_task(publisher.submit([event])) for event in events]
    await in_flight(publisher)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    await publisher.submit(orders(1))
    assert set(ids(events)) <= set(ids(await flat(ledger)))


async def test_a_waiting_submission_of_a_cancelled_caller_is_published(
    ledger: Ledger, broker: Proxy, publisher: Publisher
) -> None:
    broker.stall()
    busy = await as_many_as_may_be_in_flight(publisher)
    event = orders(1)
    caller = asyncio.create_task(publisher.submit(event))
    await until_waiting(publisher, 1)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    await broker.heal()
    await asyncio.gather(*busy)
    await until_connected(publisher)
    await publisher.submit(orders(1))
    assert event[0].event_id in ids(await flat(ledger))


async def until_waiting(publisher: Publisher, count: int) -> None:
    async def is_there() -> bool:
        return len(publisher._waiting) >= count

    await eventually(is_there, "the submission is in line")


async def test_submissions_are_refused_while_too_many_events_wait(
    broker: Proxy, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few are enough, and encoding many could take as long as a confirm may.
    monkeypatch.setattr("ledger.messaging.publisher.MAX_WAITING", 100)
    broker.stall()
    began = await as_many_as_may_be_in_flight(publisher)
    began.append(asyncio.create_task(publisher.submit(orders(100))))
    await until_waiting(publisher, 1)
    with pytest.raises(Overloaded, match="waiting"):
        await publisher.submit(orders(1))
    await broker.heal()
    await asyncio.gather(*began)
    await until_accepting(publisher)


async def test_submissions_are_refused_while_too_many_requests_are_open(
    ledger: Ledger, broker: Proxy, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "_max_open", 10)
    monkeypatch.setattr("ledger.messaging.publisher.MIN_OPEN", 10)
    broker.stall()
    submissions = [orders(1) for _ in range(50)]
    callers = [asyncio.create_task(publisher.submit(events)) for events in submissions]
    refused = [asyncio.gather(caller, return_exceptions=True) for caller in callers[10:]]
    assert {type(answer) for (answer,) in await asyncio.gather(*refused)} == {Overloaded}
    await broker.heal()
    await asyncio.gather(*callers[:10])
    assert ids(await flat(ledger)) == ids([event for one in submissions[:10] for event in one])
    (refusals,) = publisher.metrics.not_accepted.collect()
    assert [(s.labels, s.value) for s in refusals.samples] == [
        ({"reason": "overloaded", "accepted": "no"}, 40)
    ]


async def test_submissions_are_refused_while_confirms_take_too_long_for_those_in_line(
    ledger: Ledger, broker: Proxy, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "_confirm_s", 1_000.0)
    broker.stall()
    began = await as_many_as_may_be_in_flight(publisher)
    # Who finds nobody in line is let in at any speed: nothing else would measure a better one.
    began.append(asyncio.create_task(publisher.submit(orders(3))))
    await until_waiting(publisher, 1)
    with pytest.raises(Overloaded, match="for each confirm"):
        await publisher.submit(orders(1))
    await broker.heal()
    await asyncio.gather(*began)


async def test_a_lost_confirm_is_made_good_by_sending_the_events_again(
    ledger: Ledger, broker: Proxy, publisher: Publisher
) -> None:
    broker.lose(BASIC_PUBLISH, delivered=True)
    event = opening()
    await publisher.submit(event)
    async with ledger.writing():
        records = await ledger.until_recorded(event)
        await ledger.until_inbox_empty()
    assert causes(records).count(event[0].event_id) == 1


async def test_many_publishers_share_one_inbox(ledger: Ledger) -> None:
    connection = Connection(ledger.settings.amqp_url("api"), "t")
    publishers = [Publisher(connection, "/tests", f"p{n}") for n in range(4)]
    async with beside(*[publisher.run() for publisher in publishers]):
        for publisher in publishers:
            await until_connected(publisher)
        events = [orders(25) for _ in publishers]
        await asyncio.gather(
            *(
                publisher.submit([event])
                for publisher, own in zip(publishers, events, strict=True)
                for event in own
            )
        )
    assert set(ids(await flat(ledger))) == set(ids([event for own in events for event in own]))
