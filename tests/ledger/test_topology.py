"""Exchanges and queues are declared by one account; the others may use only their own."""

from collections.abc import Awaitable, Callable

import pytest
from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused

from ledger.messaging import topology
from ledger.messaging.rabbitmq import Connection
from ledger.messaging.topology import (
    ACCEPTED_EXCHANGE,
    ANNOUNCED_EXCHANGE,
    INBOX,
    PARKING,
    PARKING_EXCHANGE,
    RECORDED_EXCHANGE,
    SUBMITTED_EXCHANGE,
)
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


READS = {"api": set[str](), "writer": {INBOX}, "projector": set[str]()}
WRITES = {
    "api": {SUBMITTED_EXCHANGE, ACCEPTED_EXCHANGE},
    "writer": {PARKING_EXCHANGE, RECORDED_EXCHANGE},
    "projector": {ANNOUNCED_EXCHANGE},
}


@pytest.mark.parametrize("role", ["api", "writer", "projector"])
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
        declared = await channel.declare_queue(queue, passive=True)
        await declared.consume(forget)

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
