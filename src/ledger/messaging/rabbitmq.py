"""Sessions with RabbitMQ: a connection that its users share, a channel for each of them.

Everybody who speaks to the broker for as long as the process runs does it through
`Connection.keep_channel`, which opens a channel again, after a pause with jitter, whenever the
broker or the way to it fails. A process needs two connections: a broker in need of memory or disk
stops reading from connections that publish (https://www.rabbitmq.com/docs/connection-blocked), and
the client holds back every frame of such a connection, acks among them. So consumers never share
the connection of publishers.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from math import nan
from typing import Any, Final
from uuid import uuid4

import aio_pika
from aio_pika import Message
from aio_pika.abc import (
    AbstractChannel,
    AbstractConnection,
    AbstractExchange,
    AbstractIncomingMessage,
    AbstractQueue,
)
from aio_pika.connection import make_url
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from aiormq.exceptions import ChannelAccessRefused

from ledger.messaging.topology import INBOX, PARKING
from ledger.runtime import versions
from ledger.runtime.metrics import INBOX_MESSAGES, PARKING_MESSAGES
from ledger.runtime.reconnect import first_to_end, keep_alive

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 5.0
CALL_TIMEOUT_S: Final = 5.0
CLOSE_TIMEOUT_S: Final = 2.0
DEPTH_TIMEOUT_S: Final = 1.0
HEARTBEAT_S: Final = 10
MAX_NOTIFICATIONS: Final = 1_000

# What aio-pika raises when the broker or the way to it fails; TimeoutError is an OSError.
BROKER_ERRORS: Final = CONNECTION_EXCEPTIONS


class Connection:
    """One connection to RabbitMQ: opened for its first user, closed after its last.

    `name` is what the operator sees in the broker's list of connections. When the connection
    breaks, the channels of all users end, and the first to ask again opens a new one.
    """

    def __init__(self, url: str, name: str) -> None:
        self._url = make_url(url, heartbeat=HEARTBEAT_S, name=name)
        self._current: AbstractConnection | None = None
        self._connecting = asyncio.Lock()
        self._users: Counter[AbstractConnection] = Counter()
        self.name: Final = name
        # Whether the broker lets this account ask for what it does not configure: see `exchange`.
        self.may_look = True

    @asynccontextmanager
    async def channel(self, *, confirms: bool) -> AsyncIterator[AbstractChannel]:
        """A channel, closed for certain; with `confirms` a publish waits for the broker.

        Raises one of BROKER_ERRORS when the broker is away, and Unsupported where it's too old.
        """
        async with self._connecting:
            if self._current is None or not self._current.connected.is_set():
                self._current = await self._open()
            connection = self._current
            self._users[connection] += 1
        channel: AbstractChannel | None = None
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                channel = await connection.channel(
                    publisher_confirms=confirms, on_return_raises=confirms
                )
            yield channel
        except TimeoutError:
            # A broker that leaves one call unanswered answers nobody on this connection: all its
            # users start again on a new one. Any other error ends the channel alone, or has ended
            # the connection already.
            await self._close(connection)
            raise
        finally:
            self._users[connection] -= 1
            if channel is None or not self._users[connection]:
                await self._close(connection)
            else:
                try:
                    async with asyncio.timeout(CLOSE_TIMEOUT_S):
                        await channel.close()
                except BROKER_ERRORS as error:
                    log.debug("%s: closing a broken channel: %r", self.name, error)
                    await self._close(connection)

    async def keep_channel(
        self,
        purpose: str,
        use: Callable[[AbstractChannel], Awaitable[None]],
        *,
        confirms: bool = False,
    ) -> None:
        """Run `use` with a channel, again with a new one after each broker error, until it returns.

        `use` has to end when its channel does: see `until_closed`. `purpose` is for the log.
        """

        async def session() -> None:
            async with self.channel(confirms=confirms) as channel:
                await use(channel)

        await keep_alive(purpose, session, BROKER_ERRORS)

    async def exchange(self, channel: AbstractChannel, name: str) -> AbstractExchange:
        """An exchange by its name; raises ChannelNotFoundEntity where it is missing.

        RabbitMQ 4.2.6 and 4.3.0 refuse to tell those who may not configure it
        (https://github.com/rabbitmq/rabbitmq-server/pull/16272). The first refusal ends the
        channel; from then on nothing is asked, and what is missing ends the channel that uses it.
        """
        async with self._looking(name), asyncio.timeout(CALL_TIMEOUT_S):
            return await channel.get_exchange(name, ensure=self.may_look)

    async def queue(self, channel: AbstractChannel, name: str) -> AbstractQueue:
        """A queue by its name, declared passively for as long as `may_look`: see `exchange`."""
        async with self._looking(name), asyncio.timeout(CALL_TIMEOUT_S):
            return await channel.get_queue(name, ensure=self.may_look)

    @asynccontextmanager
    async def _looking(self, name: str) -> AsyncIterator[None]:
        try:
            yield
        except ChannelAccessRefused:
            if self.may_look:
                self.may_look = False
                log.warning(
                    "%s: the broker does not tell this account of %s, so it is not asked any more:"
                    " RabbitMQ 4.2.6 and 4.3.0 need an upgrade, others the rights that"
                    " docs/how-to/production.md names",
                    self.name,
                    name,
                )
            raise

    async def _open(self) -> AbstractConnection:
        connection = aio_pika.Connection(self._url)
        try:
            await connection.connect(timeout=CONNECT_TIMEOUT_S)
            _check_version(connection)
        except BaseException:
            # Mostly this only notes the end. Else the garbage collector would start to close the
            # connection later, and perhaps where no event loop runs.
            await self._close(connection)
            raise
        return connection

    async def _close(self, connection: AbstractConnection) -> None:
        if connection is self._current:
            self._current = None
        if not self._users[connection]:
            del self._users[connection]
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await connection.close()
        except BROKER_ERRORS as error:
            log.debug("%s: closing a broken connection: %r", self.name, error)
            await connection.close()  # notes the end: the transport is gone, see `_open`


def _check_version(connection: AbstractConnection) -> None:
    """Raise Unsupported where the broker that greeted is too old (AMQP 0-9-1, 1.4.2.1)."""
    transport = connection.transport
    greeting: Mapping[str, Any] = getattr(
        transport and transport.connection, "server_properties", {}
    )
    is_rabbitmq = greeting.get("product") == "RabbitMQ"
    version = str(greeting.get("version", "")) if is_rabbitmq else ""
    versions.check("RabbitMQ", versions.version_of(version))


async def until_closed(channel: AbstractChannel) -> None:
    """Wait for the channel's end, whoever brings it about; raises ConnectionError then."""
    await channel.closed()
    raise ConnectionError("the broker closed the channel")


async def subscribe(
    channel: AbstractChannel,
    name: str,
    exchange: str,
    on_message: Callable[[AbstractIncomingMessage], Awaitable[Any]],
    max_waiting: int,
) -> None:
    """Consume what is published to an exchange from now on, through an exclusive queue.

    With more than `max_waiting` messages in the queue the oldest are dropped. The queue's name
    begins with `name`, which the account must be allowed to declare. The subscription ends with
    the channel. Raises one of BROKER_ERRORS.
    """
    async with asyncio.timeout(CALL_TIMEOUT_S):
        queue = await channel.declare_queue(
            f"{name}.{uuid4().hex[:8]}",
            exclusive=True,
            auto_delete=True,
            arguments={"x-max-length": max_waiting},
        )
        await queue.bind(exchange)
        await queue.consume(on_message, no_ack=True)


class Notifier:
    """Publishes notifications to one exchange without waiting for confirms.

    Notifications only wake a reader early: they may be lost, the tables may not. So `notify`
    neither blocks nor fails; with the broker away or too slow, notifications are dropped.
    """

    def __init__(self, connection: Connection, exchange: str) -> None:
        self._connection = connection
        self._exchange = exchange
        self._waiting: asyncio.Queue[bytes] = asyncio.Queue(MAX_NOTIFICATIONS)

    def notify(self, body: bytes) -> None:
        """Publish this soon."""
        try:
            self._waiting.put_nowait(body)
        except asyncio.QueueFull:
            log.debug("%s: dropped a notification", self._exchange)

    async def run(self) -> None:
        """Publish for as long as the process runs."""
        await self._connection.keep_channel(f"publisher of {self._exchange}", self._publish_all)

    async def _publish_all(self, channel: AbstractChannel) -> None:
        exchange = await self._connection.exchange(channel, self._exchange)

        async def publish() -> None:
            while True:
                body = await self._waiting.get()
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await exchange.publish(Message(body), routing_key="", mandatory=False)

        await first_to_end(publish(), until_closed(channel))


class QueueDepths:
    """Asks the broker for the depths of inbox and parking queue, as often as metrics are asked for.

    Since 4.2.6 a broker tells them only to accounts that have rights on the queues.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._channel: AbstractChannel | None = None

    async def run(self) -> None:
        """Hold a channel for as long as the process runs."""
        await self._connection.keep_channel("queue depths", self._hold)

    async def measure(self) -> None:
        """Set the gauges of both queues, to NaN where the broker does not answer."""
        for queue, gauge in ((INBOX, INBOX_MESSAGES), (PARKING, PARKING_MESSAGES)):
            depth = nan
            if self._channel and self._connection.may_look:
                try:
                    async with asyncio.timeout(DEPTH_TIMEOUT_S):
                        found = await self._connection.queue(self._channel, queue)
                    depth = found.declaration_result.message_count or 0
                except BROKER_ERRORS as error:
                    log.debug("the depth of %s is not known: %r", queue, error)
            gauge.set(depth)

    async def _hold(self, channel: AbstractChannel) -> None:
        self._channel = channel
        try:
            await until_closed(channel)
        finally:
            self._channel = None
