"""Exchanges and queues are declared by one account; the others may use only their own."""

from collections.abc import Awaitable, Callable

import pytest
from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity

from ledger.messaging import topology
from ledger.messaging.consumer import InboxLost, open_inbox
from ledger.messaging.rabbitmq import Connection, QueueDepths
from ledger.messaging.topology import (
    ACCEPTED_EXCHANGE,
    ANNOUNCED_EXCHANGE,
    INBOX,
    PARKING,
    PARKING_EXCHANGE,
    RECORDED_EXCHANGE,
    SUBMITTED_EXCHANGE,
)
from ledger.runtime.metrics import INBOX_MESSAGES
from ledger.runtime.reconnect import first_to_end
from tests.harness import eventually
from tests.submissions import opening

from .pipeline import Ledger


async def test_declaring_twice_changes_nothing_and_loses_nothing(ledger: Ledger) -> None:
    await ledger.put_events(opening())
    url = ledger.settings.amqp_url("migrate")
    async with Connection(url, "t").channel(confirms=False) as channel:
        await topology.declare(channel, ledger.settings.inbox_max_length)
    assert len(await ledger.waiting()) == 1


async def test_a_queue_with_other_arguments_is_an_error(ledger: Ledger) -> None:
    url = ledger.settings.amqp_url("migrate")
    async with Connection(url, "t").channel(confirms=False) as channel:
        with pytest.raises(ChannelPreconditionFailed):
            await topology.declare(channel, ledger.settings.inbox_max_length + 1)


READS = {"api": set[str](), "writer": {INBOX}, "projector": set[str](), "monitor": set[str]()}
WRITES = {
    "api": {SUBMITTED_EXCHANGE, ACCEPTED_EXCHANGE},
    "writer": {PARKING_EXCHANGE, RECORDED_EXCHANGE},
    "projector": {ANNOUNCED_EXCHANGE},
    # The parking exchange is named as its queue is, whose depth the account is told.
    "monitor": {PARKING_EXCHANGE},
}


@pytest.mark.parametrize("role", ["api", "writer", "projector", "monitor"])
async def test_an_account_may_read_and_write_its_own_queues_and_exchanges_only(
    ledger: Ledger, role: str
) -> None:
    read = {queue for queue in (INBOX, PARKING) if await may_read(ledger, role, queue)}
    assert read == READS[role]
    written = {name for name in topology.EXCHANGES if await may_write(ledger, role, name)}
    assert written == WRITES[role]
    assert not await may_write(ledger, role, "")


async def may_read(ledger: Ledger, role: str, queue: str) -> bool:
    async def consume(channel: AbstractChannel) -> None:
        found = await channel.get_queue(queue, ensure=False)
        await found.consume(forget)

    return await is_permitted(ledger, role, consume)


async def forget(_: AbstractIncomingMessage) -> None:
    pass


async def may_write(ledger: Ledger, role: str, exchange: str) -> bool:
    async def publish(channel: AbstractChannel) -> None:
        target = await channel.get_exchange(exchange, ensure=False)
        await target.publish(Message(b"[]"), routing_key=INBOX, mandatory=False)

    return await is_permitted(ledger, role, publish)


async def is_permitted(
    ledger: Ledger, role: str, act: Callable[[AbstractChannel], Awaitable[None]]
) -> bool:
    try:
        async with Connection(ledger.settings.amqp_url(role), "t").channel(
            confirms=True
        ) as channel:
            await act(channel)
    except ChannelAccessRefused:
        return False
    return True


@pytest.mark.parametrize("role", ["monitor", "writer", "migrate"])
async def test_an_account_with_a_right_on_the_queues_is_told_their_depth_by_every_broker(
    ledger: Ledger, role: str
) -> None:
    await ledger.put(b"[]")
    connection = Connection(ledger.settings.amqp_url(role), "t")
    depths = QueueDepths(connection)

    async def measured() -> bool:
        await depths.measure()
        return INBOX_MESSAGES.collect()[0].samples[0].value == 1

    await first_to_end(depths.run(), eventually(measured, "the depth is known"))
    assert connection.may_look


async def test_the_monitor_can_neither_take_from_the_inbox_nor_bind_it(ledger: Ledger) -> None:
    async def bind(channel: AbstractChannel) -> None:
        inbox = await channel.get_queue(INBOX, ensure=False)
        await inbox.bind(ANNOUNCED_EXCHANGE)

    assert not await is_permitted(ledger, "monitor", bind)
    assert not await may_read(ledger, "monitor", INBOX)


@pytest.mark.parametrize("role", ["api", "writer", "projector"])
async def test_a_process_works_where_the_broker_refuses_to_be_asked(
    ledger: Ledger, role: str
) -> None:
    """RabbitMQ 4.2.6 and 4.3.0 refuse every passive declaration of an account like these."""
    connection = Connection(ledger.settings.amqp_url(role), "t")
    connection.may_look = False
    for name in sorted(WRITES[role]):
        async with connection.channel(confirms=True) as channel:
            exchange = await connection.exchange(channel, name)
            await exchange.publish(Message(b"[]"), routing_key="", mandatory=False)
    async with connection.channel(confirms=True) as channel:
        missing = await connection.exchange(channel, "no such exchange")
        with pytest.raises((ChannelNotFoundEntity, ChannelAccessRefused)):
            await missing.publish(Message(b"[]"), routing_key="")


@pytest.mark.parametrize("may_look", [True, False])
async def test_a_writer_whose_inbox_was_deleted_notices_whatever_the_broker_tells(
    ledger: Ledger, may_look: bool
) -> None:
    connection = Connection(ledger.settings.amqp_url("writer"), "t")
    connection.may_look = may_look

    async def work() -> None:
        async with (
            Connection(ledger.settings.amqp_url("migrate"), "t").channel(confirms=False) as channel,
            open_inbox(connection) as inbox,
        ):
            await inbox.ensure_consumed()
            await channel.queue_delete(INBOX)
            await eventually(inbox.ensure_consumed, "the inbox is missed")

    with pytest.raises((InboxLost, ChannelNotFoundEntity)):
        await work()
    with pytest.raises(ChannelNotFoundEntity):
        await work()
