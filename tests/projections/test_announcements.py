"""What the projector says after each commit, and what a listener may rely on."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
from aio_pika import Message

from cli.settings import Settings
from ledger.eventlog.records import Submitted
from ledger.messaging.rabbitmq import Connection
from ledger.messaging.topology import ANNOUNCED_EXCHANGE
from projections import projector
from projections.announcements import Announcement, Announcements, Outcome, encode_announcement
from projections.projector import project_next_batch
from projections.views.registry import PROJECTIONS
from tests.harness import eventually
from tests.ledger.pipeline import Ledger, beside, seen_by
from tests.proxy import open_proxy
from tests.submissions import PEN, cancel, customer, event_of, opening, order, orders, price

from .view_rows import until_projected


class Listener:
    """Hears announcements as the API does, and keeps them."""

    def __init__(self, settings: Settings) -> None:
        self.announcements = Announcements(Connection(settings.amqp_url("api"), "t"), uuid4().hex)
        self.heard: list[Announcement] = []
        self.resets = 0
        self.announcements.subscribe(self.heard.append)
        self.announcements.on_reset(self._reset)

    def _reset(self) -> None:
        self.resets += 1

    @property
    def outcomes(self) -> dict[UUID, Outcome]:
        return {each.event_id: each for heard in self.heard for each in heard.outcomes}

    async def until(self, event: Submitted) -> Outcome:
        """The outcome of a submission."""

        async def is_announced() -> Outcome | None:
            return self.outcomes.get(event.event_id)

        found = await eventually(is_announced, "the outcome is announced")
        assert found
        return found

    async def until_heard(self, count: int) -> None:
        async def are_heard() -> bool:
            return len(self.heard) >= count

        await eventually(are_heard, f"{count} announcements are heard")


@pytest.fixture
async def listener(ledger: Ledger) -> AsyncIterator[Listener]:
    listener = Listener(ledger.settings)
    async with beside(listener.announcements.run()):

        async def is_connected() -> bool:
            return listener.announcements.connected

        await eventually(is_connected, "the listener is connected")
        yield listener


async def test_every_submission_gets_its_outcome(ledger: Ledger, listener: Listener) -> None:
    placed, failing = event_of(order()), event_of(order(10**6, at=uuid4()))
    undone, twice = event_of(cancel()), event_of(cancel())
    again, ghost = event_of(customer()), event_of(price(5, at=uuid4()))
    events = [*opening(), placed, failing, undone, twice, again, ghost]
    async with ledger.projecting():
        await ledger.write(events)
        await listener.until(ghost)
    told = {each: (listener.outcomes[each.event_id]) for each in events}
    assert [(told[each].type, told[each].reason) for each in events] == [
        ("customer.registered", None),
        ("product.listed", None),
        ("order.completed", None),
        ("order.failed", "INSUFFICIENT_STOCK"),
        ("order.cancelled", None),
        ("order.cancel-refused", "ALREADY_CANCELLED"),
        ("submission.refused", "DUPLICATE_CUSTOMER"),
        ("submission.refused", "UNKNOWN_PRODUCT"),
    ]
    assert all(told[each].stream_id == each.stream_id for each in events)
    assert len(listener.outcomes) == len(events)


async def test_an_outcome_is_announced_only_when_the_views_show_it(
    ledger: Ledger, listener: Listener
) -> None:
    event = opening()
    async with ledger.projecting():
        await ledger.write(event)
        outcome = await listener.until(event[1])
        found = await ledger.rows("SELECT MIN(position) FROM checkpoints", "api")
        assert found[0][0] >= outcome.position == 2
        assert len(await ledger.rows("SELECT * FROM stock", "api")) == 1


async def test_the_products_that_changed_are_named(ledger: Ledger, listener: Listener) -> None:
    async with ledger.projecting():
        await ledger.write(opening())
        await until_projected(ledger)
        await ledger.write([event_of(customer(at=uuid4()))])
        await ledger.write(last := orders(1))
        await listener.until(last[0])
    named = {heard.position: heard.products for heard in listener.heard if heard.outcomes}
    assert named[2] == [PEN]
    assert named[3] == []
    assert named[5] == [PEN]


async def test_an_idle_projector_says_where_it_is(ledger: Ledger, listener: Listener) -> None:
    await ledger.write(opening())
    async with ledger.projecting() as projector:
        await projector.watch.check()
        await listener.until_heard(3)
    *_, last = listener.heard
    assert (last.after, last.position, last.outcomes) == (2, 2, [])
    assert last.seen == await seen_by(ledger)
    assert listener.announcements.position == 2


async def test_announcements_of_one_projector_follow_each_other(
    ledger: Ledger, listener: Listener
) -> None:
    async with ledger.projecting():
        for _ in range(5):
            await ledger.write(opening(), orders(3))
        await until_projected(ledger)
        await listener.until_heard(5)
    position = 0
    for heard in listener.heard:
        assert heard.after == position
        position = heard.position


async def say(ledger: Ledger, *announcements: Announcement | bytes) -> None:
    url = ledger.settings.amqp_url("projector")
    async with Connection(url, "t").channel(confirms=True) as channel:
        exchange = await channel.get_exchange(ANNOUNCED_EXCHANGE)
        for each in announcements:
            body = each if isinstance(each, bytes) else encode_announcement(each)
            await exchange.publish(Message(body), routing_key="")


async def test_a_listener_is_reset_after_a_missed_announcement(
    ledger: Ledger, listener: Listener
) -> None:
    await say(ledger, Announcement(0, 5), Announcement(5, 9))
    await listener.until_heard(2)
    before = listener.resets
    await say(ledger, Announcement(11, 12))
    await listener.until_heard(3)
    assert listener.resets == before + 1
    await say(ledger, Announcement(12, 13), Announcement(13, 13))
    await listener.until_heard(5)
    assert listener.resets == before + 1


async def test_a_repeat_or_a_lagging_view_resets_nothing(
    ledger: Ledger, listener: Listener
) -> None:
    await say(ledger, Announcement(0, 9))
    await listener.until_heard(1)
    before = listener.resets
    await say(ledger, Announcement(0, 9), Announcement(3, 5), Announcement(9, 9))
    await listener.until_heard(4)
    assert listener.resets == before
    assert listener.announcements.position == 9


async def test_an_announcement_that_cannot_be_read_is_passed_over(
    ledger: Ledger, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    await say(ledger, b"\xff", b"[]", Announcement(0, 1))
    await listener.until_heard(1)
    assert "another version" in caplog.text


async def test_a_listener_that_lost_its_connection_is_reset_and_listens_again(
    ledger: Ledger,
) -> None:
    async with open_proxy(ledger.settings.amqp_port) as proxy:
        listener = Listener(ledger.settings.model_copy(update={"amqp_port": proxy.port}))
        async with beside(listener.announcements.run()):

            async def is_connected() -> bool:
                return listener.announcements.connected

            await eventually(is_connected, "the listener is connected")
            assert listener.resets == 1
            proxy.cut()

            async def is_told() -> bool:
                return not listener.announcements.connected and listener.resets == 2

            await eventually(is_told, "the loss is told")
            await proxy.heal()
            await eventually(is_connected, "the listener is connected again")
            assert listener.resets == 3
            await say(ledger, Announcement(0, 1))
            await listener.until_heard(1)


async def test_a_notification_of_the_writer_wakes_the_projector_before_its_poll(
    ledger: Ledger, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten orders one after the other would take ten polls without notifications."""
    loop = asyncio.get_running_loop()
    poll_s = 20.0  # so that the pace of the machine is no matter
    async with ledger.writing(), ledger.projecting(), ledger.publishing() as publisher:
        await publisher.submit(events := opening())
        await listener.until(events[-1])
        monkeypatch.setattr(projector, "POLL_S", poll_s)
        begun = loop.time()
        for event in orders(10):
            await publisher.submit([event])
            await listener.until(event)
        assert loop.time() - begun < 10 * poll_s / 2


async def test_without_notifications_the_poll_finds_new_events(
    ledger: Ledger, listener: Listener
) -> None:
    writer, _ = ledger.make_writer()  # its hints never leave
    async with ledger.projecting(), beside(writer.run()):
        await ledger.put_events(events := opening())
        await listener.until(events[-1])


async def test_a_lagging_view_is_announced_up_to_where_it_came(ledger: Ledger) -> None:
    others = PROJECTIONS[1:]
    await ledger.write(opening())
    async with ledger.connection("projector") as connection:
        await project_next_batch(connection, others)
        await ledger.write(orders(1))
        first = await project_next_batch(connection, PROJECTIONS)
        then = await project_next_batch(connection, PROJECTIONS)
    assert (first.after, first.position, first.products) == (0, 2, [PEN])
    assert (then.after, then.position, then.products) == (2, 4, [PEN])
