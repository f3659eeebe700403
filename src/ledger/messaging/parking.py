"""The parking queue: what could not be read, kept with its reason until an operator decides.

A quorum queue can't be looked into, only consumed. So a message is read by taking it without an
ack: it goes back when the channel closes. RabbitMQ then lines up what was taken behind what was
returned before, so only who reads all of it leaves the order as it was. All of it is read, then.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from aiormq.exceptions import ChannelLockedResource
from msgspec import Struct
from pamqp.commands import Basic

from ledger.eventlog.codec import (
    BATCH_CONTENT_TYPE,
    EVENT_CONTENT_TYPE,
    Rejected,
    decode_group,
    join,
)
from ledger.eventlog.records import Submitted
from ledger.messaging.rabbitmq import CALL_TIMEOUT_S, Connection
from ledger.messaging.topology import PARKING, PARKING_EXCHANGE, PARKING_LOCK

MAX_REASON: Final = 1_000
IN_FLIGHT: Final = 100
NO_REASON: Final = "no reason was given"

MOST_READ: Final = 100_000
MAX_PREFETCH: Final = 65_535
"""What one consumer may hold: AMQP counts it in 16 bits."""

SILENCE_S: Final = 5.0
LOCK_WAIT_S: Final = 5.0
RETURN_WAIT_S: Final = 5.0


class NotTaken(ConnectionError):
    """The broker did not take a message for the parking queue."""


class ParkingBusy(Exception):
    """Somebody else reads the parking queue."""


class Parked(Struct, frozen=True):
    """A parked message without its body, whose SHA-256 is the id.

    It was a `whole` message of the inbox, or one event of a group whose others went their way.
    `trouble` is why today's code can't read it either, None when it can.
    """

    id: str
    reason: str
    parked_at: datetime | None
    whole: bool
    size: int
    trouble: str | None


async def park(connection: Connection, rejected: Sequence[Rejected]) -> None:
    """Keep what could not be read, with its reason; returns when the broker has it.

    The connection must not be the consumer's: see `ledger.messaging.rabbitmq`.
    """
    if not rejected:
        return
    async with connection.channel(confirms=True) as channel:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            exchange = await channel.get_exchange(PARKING_EXCHANGE)
        for begun in range(0, len(rejected), IN_FLIGHT):
            # A deadline for a few at a time: one for all could never be kept if they are many.
            messages = map(_message, rejected[begun : begun + IN_FLIGHT])
            async with asyncio.timeout(CALL_TIMEOUT_S):
                answers = await asyncio.gather(*[exchange.publish(m, "") for m in messages])
            if not all(isinstance(answer, Basic.Ack) for answer in answers):
                raise NotTaken("the broker did not take a message for the parking queue")


def _message(item: Rejected) -> Message:
    return Message(
        item.body,
        content_type=BATCH_CONTENT_TYPE if item.whole else EVENT_CONTENT_TYPE,
        delivery_mode=DeliveryMode.PERSISTENT,
        message_id=id_of(item.body),
        timestamp=datetime.now(UTC),
        headers={"x-reason": item.reason[:MAX_REASON]},
    )


def id_of(body: bytes) -> str:
    """The id of a parked message: the same bytes have the same one, however often they come."""
    return sha256(body).hexdigest()


def parked(message: AbstractIncomingMessage) -> Parked:
    """What a delivered message of the parking queue is."""
    whole = message.content_type != EVENT_CONTENT_TYPE
    return Parked(
        id_of(message.body),
        _reason(message.headers),
        message.timestamp,
        whole,
        message.body_size or len(message.body),
        read_again(message.body, whole)[1],
    )


def _reason(headers: dict[str, Any]) -> str:
    """Why it's here: the writer's word, or the broker's if it was the one who gave it up."""
    if reason := headers.get("x-reason"):
        return str(reason)[:MAX_REASON]
    match headers.get("x-death"):
        case [{"reason": reason, "queue": queue}, *_]:
            return f"given up by the broker: {reason} from {queue}"
    return NO_REASON


def for_inbox(body: bytes, whole: bool) -> bytes:
    """A parked message as the inbox takes it: an event of a group becomes a group of one."""
    return body if whole else join([body])


def read_again(body: bytes, whole: bool) -> tuple[list[Submitted], str | None]:
    """The events that today's code reads there; or none, and why not.

    Of a group one event is enough: what can't be read of it will be parked on its own.
    """
    events, rejected = decode_group(for_inbox(body, whole))
    if events:
        return events, None
    return [], rejected[0].reason[:MAX_REASON] if rejected else "there is no event in it"


class Parking:
    """The parking queue in the hands of one reader; what is not acked goes back to its place."""

    def __init__(self, channel: AbstractChannel, count: int) -> None:
        self._channel = channel
        self._consumers: list[tuple[AbstractQueue, str]] = []
        self.count = count
        self.acked = 0

    async def messages(self) -> AsyncIterator[AbstractIncomingMessage]:
        """Every message once, in order, but no more than MOST_READ; the reader holds all of them.

        Raises ParkingBusy when somebody without the lock holds some of them.
        """
        left = min(self.count, MOST_READ)
        while left:
            some = min(left, MAX_PREFETCH)
            async for message in self._some(some):
                yield message
            left -= some

    async def ack(self, messages: Iterable[AbstractIncomingMessage]) -> None:
        """Take messages off the queue for ever.

        In a transaction, of which RabbitMQ makes one command for each consumer: of many single acks
        it loses some when the channel closes soon after.
        """
        async with asyncio.timeout(CALL_TIMEOUT_S), self._channel.transaction():
            for message in messages:
                await message.ack()
                self.acked += 1

    async def settle(self) -> None:
        """Return when the queue has carried out the acks: to cancel a consumer waits for that."""
        for queue, tag in self._consumers:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await queue.cancel(tag)

    async def _some(self, count: int) -> AsyncIterator[AbstractIncomingMessage]:
        """The next `count` messages, through one more consumer, which may hold just as many."""
        arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue(count)

        async def enqueue(message: AbstractIncomingMessage) -> None:
            arrived.put_nowait(message)

        async with asyncio.timeout(CALL_TIMEOUT_S):
            await self._channel.set_qos(prefetch_count=count)
            queue = await self._channel.declare_queue(PARKING, passive=True)
            # What they hold goes back in the order of their tags.
            tag = f"{len(self._consumers):03}"
            self._consumers.append((queue, await queue.consume(enqueue, consumer_tag=tag)))
        for _ in range(count):
            yield await self._next(arrived, queue)

    async def _next(
        self, arrived: asyncio.Queue[AbstractIncomingMessage], queue: AbstractQueue
    ) -> AbstractIncomingMessage:
        try:
            async with asyncio.timeout(SILENCE_S):
                return await arrived.get()
        except TimeoutError:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await queue.declare()
            raise ParkingBusy(
                "somebody else holds messages of the parking queue: find the consumer in the"
                " broker's list, end it and try again"
            ) from None


@asynccontextmanager
async def open_parking(url: str, name: str) -> AsyncIterator[Parking]:
    """The parking queue, for one reader at a time; raises ParkingBusy when another does not end.

    It's left when the broker has put back what was not acked, so that the next reader sees it.
    """
    connection = Connection(url, name)
    async with AsyncExitStack() as stack:
        lock = await _lock(connection, stack)
        async with connection.channel(confirms=False) as channel:
            parking = Parking(channel, await _count(lock))
            yield parking
            await parking.settle()
        with suppress(TimeoutError):
            async with asyncio.timeout(RETURN_WAIT_S):
                while await _count(lock) < parking.count - parking.acked:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)


async def _lock(connection: Connection, stack: AsyncExitStack) -> AbstractChannel:
    """A channel whose connection holds the lock: a queue that ends with that connection."""
    give_up_at = time.monotonic() + LOCK_WAIT_S
    while True:
        async with AsyncExitStack() as attempt:
            channel = await attempt.enter_async_context(connection.channel(confirms=False))
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await channel.declare_queue(PARKING_LOCK, exclusive=True)
            except ChannelLockedResource:
                if time.monotonic() > give_up_at:
                    raise ParkingBusy(
                        "another `ledger parked` reads the parking queue: try again when it has"
                        " ended"
                    ) from None
            else:
                stack.push_async_exit(attempt.pop_all())
                return channel
        await asyncio.sleep(0.1)


async def _count(channel: AbstractChannel) -> int:
    async with asyncio.timeout(CALL_TIMEOUT_S):
        queue = await channel.declare_queue(PARKING, passive=True)
    return queue.declaration_result.message_count or 0
