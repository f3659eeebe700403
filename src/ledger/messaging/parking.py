"""The parking queue: messages that could not be decoded, each with its reason (dead letters).

A quorum queue can't be browsed, only consumed. So a message is read by taking it without an ack; it
goes back when the channel closes. RabbitMQ puts it behind messages that were returned before, so
only a reader who takes all of them leaves their order as it was.
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
    encode_group,
)
from ledger.eventlog.records import Submitted
from ledger.messaging.rabbitmq import CALL_TIMEOUT_S, Connection
from ledger.messaging.topology import PARKING, PARKING_EXCHANGE, PARKING_LOCK

MAX_REASON: Final = 1_000
IN_FLIGHT: Final = 100
NO_REASON: Final = "no reason was given"

MOST_READ: Final = 100_000
# AMQP counts what one consumer may hold in 16 bits.
MAX_PREFETCH: Final = 65_535

SILENCE_S: Final = 5.0
LOCK_WAIT_S: Final = 5.0
RETURN_WAIT_S: Final = 5.0


class ParkingFailed(ConnectionError):
    """The broker did not confirm a message for the parking queue."""


class ParkingBusy(Exception):
    """Another reader holds the parking queue or some of its messages."""


class Parked(Struct, frozen=True):
    """A parked message without its body, whose SHA-256 is the id; `size` is in bytes.

    It was a `whole` message of the inbox, or one event of a group whose others were decoded.
    `trouble` is why today's code can't decode it either, None when it can.
    """

    id: str
    reason: str
    parked_at: datetime | None
    whole: bool
    size: int
    trouble: str | None


async def park(connection: Connection, rejected: Sequence[Rejected]) -> None:
    """Publish to the parking queue what could not be decoded; returns when the broker has it.

    Raises ParkingFailed or another of BROKER_ERRORS; a retry may then park a message twice.
    """
    if not rejected:
        return
    async with connection.channel(confirms=True) as channel:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            exchange = await channel.get_exchange(PARKING_EXCHANGE)
        for begin in range(0, len(rejected), IN_FLIGHT):
            messages = [
                Message(
                    item.body,
                    content_type=BATCH_CONTENT_TYPE if item.whole else EVENT_CONTENT_TYPE,
                    delivery_mode=DeliveryMode.PERSISTENT,
                    message_id=id_of(item.body),
                    timestamp=datetime.now(UTC),
                    headers={"x-reason": item.reason[:MAX_REASON]},
                )
                for item in rejected[begin : begin + IN_FLIGHT]
            ]
            # A deadline for each hundred: a single one could never be met by very many.
            async with asyncio.timeout(CALL_TIMEOUT_S):
                confirms = await asyncio.gather(*[exchange.publish(m, "") for m in messages])
            if not all(isinstance(confirm, Basic.Ack) for confirm in confirms):
                raise ParkingFailed("the broker did not confirm a message for the parking queue")


def id_of(body: bytes) -> str:
    """The id of a parked message, the same for every copy of the same bytes."""
    return sha256(body).hexdigest()


def inbox_body(body: bytes, whole: bool) -> bytes:
    """A parked message as the inbox takes it: an event of a group becomes a group of one."""
    return body if whole else encode_group([body])


def decode_parked(body: bytes, whole: bool) -> tuple[list[Submitted], str | None]:
    """The events that today's code decodes; or none, and the reason.

    One event of a group is enough: those that can't be decoded will be parked on their own.
    """
    events, rejected = decode_group(inbox_body(body, whole))
    if events:
        return events, None
    return [], rejected[0].reason[:MAX_REASON] if rejected else "there is no event in it"


def describe(message: AbstractIncomingMessage) -> Parked:
    """Describe a delivery from the parking queue."""
    headers: dict[str, Any] = dict(message.headers)
    match headers:
        case {"x-reason": str(reason)} if reason:
            pass
        case {"x-death": [{"reason": cause, "queue": queue}, *_]}:
            # The broker dead-letters by itself, for instance at the delivery limit.
            reason = f"given up by the broker: {cause} from {queue}"
        case _:
            reason = NO_REASON
    whole = message.content_type != EVENT_CONTENT_TYPE
    return Parked(
        id_of(message.body),
        reason[:MAX_REASON],
        message.timestamp,
        whole,
        message.body_size or len(message.body),
        decode_parked(message.body, whole)[1],
    )


class Parking:
    """The parking queue while one reader holds it; messages without an ack go back to their place.

    `count` is the number of messages when it was opened.
    """

    def __init__(self, channel: AbstractChannel, count: int) -> None:
        self._channel = channel
        self._consumers: list[tuple[AbstractQueue, str]] = []
        self.count = count
        self.acked = 0

    async def messages(self) -> AsyncIterator[AbstractIncomingMessage]:
        """Every message once, in order, up to MOST_READ; all of them stay held by this reader.

        Raises ParkingBusy when a consumer that does not take the lock holds some of them.
        """
        left = min(self.count, MOST_READ)
        while left:
            count = min(left, MAX_PREFETCH)
            deliveries: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue(count)
            queue = await self._consume(count, deliveries)
            for _ in range(count):
                yield await self._next(deliveries, queue)
            left -= count

    async def ack(self, messages: Iterable[AbstractIncomingMessage]) -> None:
        """Take messages off the queue for ever."""
        # In a transaction, which RabbitMQ carries out as one command for each consumer. Of many
        # single acks it loses some when the channel closes soon after.
        async with asyncio.timeout(CALL_TIMEOUT_S), self._channel.transaction():
            for message in messages:
                await message.ack()
                self.acked += 1

    async def settle(self) -> None:
        """Return when the queue has carried out the acks: cancelling a consumer waits for that."""
        for queue, tag in self._consumers:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await queue.cancel(tag)

    async def _consume(
        self, count: int, deliveries: asyncio.Queue[AbstractIncomingMessage]
    ) -> AbstractQueue:
        """Let one more consumer take exactly `count` messages into `deliveries`."""

        async def on_message(message: AbstractIncomingMessage) -> None:
            deliveries.put_nowait(message)

        async with asyncio.timeout(CALL_TIMEOUT_S):
            await self._channel.set_qos(prefetch_count=count)
            queue = await self._channel.declare_queue(PARKING, passive=True)
            # The queue takes back what consumers hold in the order of their tags.
            tag = f"{len(self._consumers):03}"
            self._consumers.append((queue, await queue.consume(on_message, consumer_tag=tag)))
        return queue

    async def _next(
        self, deliveries: asyncio.Queue[AbstractIncomingMessage], queue: AbstractQueue
    ) -> AbstractIncomingMessage:
        try:
            async with asyncio.timeout(SILENCE_S):
                return await deliveries.get()
        except TimeoutError:
            # If the broker is away, that is the error to raise.
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await queue.declare()
            raise ParkingBusy(
                "somebody else holds messages of the parking queue: find the consumer in the"
                " broker's list, end it and try again"
            ) from None


@asynccontextmanager
async def open_parking(url: str, name: str) -> AsyncIterator[Parking]:
    """The parking queue for one reader at a time; raises ParkingBusy if another one does not end.

    Closing it waits until the broker has put back what was not acked, for the next reader to see.
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
