"""A connection that its users share: when it opens, closes, and is opened again."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelNotFoundEntity

from ledger.messaging.rabbitmq import BROKER_ERRORS, Connection, until_closed
from ledger.messaging.topology import INBOX
from tests.harness import eventually
from tests.proxy import Proxy, open_proxy

from .pipeline import Ledger, beside


@pytest.fixture
async def broker(ledger: Ledger) -> AsyncIterator[Proxy]:
    async with open_proxy(ledger.settings.amqp_port) as proxy:
        yield proxy


@pytest.fixture
def connection(ledger: Ledger, broker: Proxy) -> Connection:
    """A connection whose way to the broker can be cut."""
    settings = ledger.settings.model_copy(update={"amqp_port": broker.port})
    return Connection(settings.amqp_url("migrate"), "t")


class User:
    """Holds a channel for as long as it runs, and counts those that it had."""

    def __init__(self) -> None:
        self.channels = 0
        self.channel: AbstractChannel | None = None

    async def use(self, channel: AbstractChannel) -> None:
        self.channels += 1
        self.channel = channel
        try:
            await until_closed(channel)
        finally:
            self.channel = None

    async def until_has_channel(self, number: int) -> AbstractChannel:
        async def has_channel() -> AbstractChannel | None:
            return self.channel if self.channels == number else None

        channel = await eventually(has_channel, f"channel {number} is open")
        assert channel
        return channel


async def test_users_share_one_connection_that_closes_after_the_last(
    connection: Connection,
) -> None:
    async with connection.channel(confirms=False) as first:
        async with connection.channel(confirms=True) as second:
            shared = connection._current
            assert shared is not None
            assert first is not second
        assert second.is_closed
        assert connection._current is shared
        await first.declare_queue(INBOX, passive=True)
    assert shared.is_closed
    assert connection._current is None
    assert not connection._users


async def test_an_error_of_one_channel_leaves_the_others_alone(connection: Connection) -> None:
    async with connection.channel(confirms=False) as other:
        with pytest.raises(ChannelNotFoundEntity):
            async with connection.channel(confirms=False) as channel:
                await channel.declare_queue("no such queue", passive=True)
        await other.declare_queue(INBOX, passive=True)


async def test_a_call_that_is_not_answered_ends_the_connection_for_all_users(
    connection: Connection, broker: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a user could go on for ever with a connection that is dead and does not know it."""
    user = User()
    async with beside(connection.keep_channel("test", user.use)):
        await user.until_has_channel(1)
        broker.stall()
        monkeypatch.setattr("ledger.messaging.rabbitmq.CALL_TIMEOUT_S", 1.0)
        with pytest.raises(TimeoutError):
            async with connection.channel(confirms=False) as channel, asyncio.timeout(0.2):
                await channel.declare_queue(INBOX, passive=True)
        monkeypatch.undo()
        await broker.heal()
        await user.until_has_channel(2)


async def test_all_users_have_a_channel_again_after_the_connection_broke(
    connection: Connection, broker: Proxy
) -> None:
    users = [User() for _ in range(3)]
    async with beside(*(connection.keep_channel("test", user.use) for user in users)):
        for user in users:
            await user.until_has_channel(1)
        broker.cut()
        await broker.heal()
        for user in users:
            channel = await user.until_has_channel(2)
            await channel.declare_queue(INBOX, passive=True)


async def test_a_broker_that_is_away_is_an_error_of_the_broker(ledger: Ledger) -> None:
    url = ledger.settings.amqp_url("api").replace(f":{ledger.settings.amqp_port}", ":1")
    with pytest.raises(BROKER_ERRORS):
        async with Connection(url, "t").channel(confirms=False):
            pytest.fail("there is no broker")
