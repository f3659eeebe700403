"""The parking queue: messages that could not be decoded, each with its reason (dead letters).

The table `parking_log` is the log of what operators did with them: append-only, with their bytes.

A quorum queue can't be browsed, only consumed. So a message is read by taking it without an ack; it
goes back when the channel closes. RabbitMQ puts it behind messages that were returned before, so
only a reader who takes all of them leaves their order as it was.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, Literal

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from aiormq.exceptions import ChannelLockedResource
from msgspec import Struct
from pamqp.commands import Basic
from sqlalchemy.ext.asyncio import AsyncConnection

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
from ledger.runtime.timestamps import SECOND_US, from_us, now_us

MAX_REASON: Final = 1_000
IN_FLIGHT: Final = 100
NO_REASON: Final = "no reason was given"

MOST_READ: Final = 100_000
# AMQP counts what one consumer may hold in 16 bits.
MAX_PREFETCH: Final = 65_535

SILENCE_S: Final = 5.0
LOCK_WAIT_S: Final = 5.0
RETURN_WAIT_S: Final = 5.0

LOG_PART_BYTES: Final = 4 * 2**20
# More than a row of the log needs besides its body.
LOG_OVERHEAD_BYTES: Final = 16 * 1024
LOG_COLUMNS: Final = "at_us, action, operator, message_id, reason, whole, copies, size"

Action = Literal["resubmitted", "discarded"]


class ParkingFailed(ConnectionError):
    """The broker did not confirm a message for the parking queue."""


class ParkingBusy(Exception):
    """Another reader holds the parking queue or some of its messages."""


class MessageTooLarge(Exception):
    """The message does not fit into a statement that the database takes."""


class Parked(Struct):
    """A parked message without its body, whose SHA-256 is the id; `size` is in bytes.

    It was a `whole` message of the inbox, or one event of a group whose others were decoded.
    `trouble` is why today's code can't decode it either, None when it can. There are several
    `copies` where a crash of the writer parked it twice.
    """

    id: str
    reason: str
    parked_at: datetime | None
    whole: bool
    size: int
    trouble: str | None
    copies: int = 1


class Delivery(Struct):
    """A parked message with the deliveries of its copies, not yet acked."""

    parked: Parked
    body: bytes
    copies: list[AbstractIncomingMessage]


class LogEntry(Struct, frozen=True):
    """An action on a parked message and its copies; the id is the SHA-256 of the message."""

    at: datetime
    action: Action
    operator: str
    id: str
    reason: str
    whole: bool
    copies: int
    size: int


async def park(connection: Connection, rejected: Sequence[Rejected]) -> None:
    """Publish to the parking queue what could not be decoded; returns when the broker has it.

    Raises ParkingFailed or another of BROKER_ERRORS; a retry may then park a message twice.
    """
    if not rejected:
        return
    async with connection.channel(confirms=True) as channel:
        exchange = await connection.exchange(channel, PARKING_EXCHANGE)
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
            left -= count
            deliveries: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue(count)
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._channel.set_qos(prefetch_count=count)
                queue = await self._channel.declare_queue(PARKING, passive=True)
                # The queue takes back what consumers hold in the order of their tags.
                tag = f"{len(self._consumers):03}"
                await queue.consume(deliveries.put, consumer_tag=tag)
            self._consumers.append((queue, tag))
            for _ in range(count):
                try:
                    async with asyncio.timeout(SILENCE_S):
                        message = await deliveries.get()
                except TimeoutError:
                    # If the broker is away, that is the error to raise.
                    async with asyncio.timeout(CALL_TIMEOUT_S):
                        await queue.declare()
                    raise ParkingBusy(
                        "somebody else holds messages of the parking queue: find the consumer in"
                        " the broker's list, end it and try again"
                    ) from None
                yield message

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


@asynccontextmanager
async def open_parking(url: str, name: str) -> AsyncIterator[Parking]:
    """The parking queue for one reader at a time; raises ParkingBusy if another one does not end.

    Closing it waits until the broker has put back what was not acked, for the next reader to see.
    """
    connection = Connection(url, name)
    async with _locked(connection) as lock:
        async with connection.channel(confirms=False) as channel:
            parking = Parking(channel, await _count(lock))
            yield parking
            await parking.settle()
        with suppress(TimeoutError):
            async with asyncio.timeout(RETURN_WAIT_S):
                while await _count(lock) < parking.count - parking.acked:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)


@asynccontextmanager
async def _locked(connection: Connection) -> AsyncIterator[AbstractChannel]:
    """A channel whose connection holds the lock: a queue that ends with that connection."""
    give_up_at = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            async with connection.channel(confirms=False) as channel:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await channel.declare_queue(PARKING_LOCK, exclusive=True)
                yield channel
                return
        except ChannelLockedResource:
            if time.monotonic() > give_up_at:
                raise ParkingBusy(
                    "another `ledger parked` reads the parking queue: try again when it has ended"
                ) from None
        await asyncio.sleep(0.1)


async def _count(channel: AbstractChannel) -> int:
    async with asyncio.timeout(CALL_TIMEOUT_S):
        queue = await channel.declare_queue(PARKING, passive=True)
    return queue.declaration_result.message_count or 0


async def append_to_log(
    connection: AsyncConnection, action: Action, operator: str, deliveries: Sequence[Delivery]
) -> None:
    """Log an action on messages, with their bytes, in the caller's transaction."""
    at_us = now_us()
    await connection.exec_driver_sql(
        f"INSERT INTO parking_log ({LOG_COLUMNS}, body)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [
            (
                at_us,
                action,
                operator,
                bytes.fromhex(delivery.parked.id),
                delivery.parked.reason,
                delivery.parked.whole,
                len(delivery.copies),
                delivery.parked.size,
                delivery.body,
            )
            for delivery in deliveries
        ],
    )


async def read_log(connection: AsyncConnection, limit: int, prefix: str = "") -> list[LogEntry]:
    """The last entries, of all messages or of those whose id begins so; the oldest comes first."""
    rows = await connection.exec_driver_sql(
        f"SELECT {LOG_COLUMNS} FROM parking_log WHERE HEX(message_id) LIKE %s"
        " ORDER BY id DESC LIMIT %s",
        (f"{prefix.upper()}%", limit),
    )
    return [
        LogEntry(
            from_us(at_us // SECOND_US * SECOND_US),
            action,
            by,
            id_.hex(),
            reason,
            bool(whole),
            *sizes,
        )
        for at_us, action, by, id_, reason, whole, *sizes in reversed(rows.all())
    ]


async def read_logged_body(connection: AsyncConnection, id_: str) -> bytes | None:
    """The bytes of a message in the log; None if they were erased."""
    rows = await connection.exec_driver_sql(
        "SELECT id, size FROM parking_log WHERE message_id = %s AND body IS NOT NULL LIMIT 1",
        (bytes.fromhex(id_),),
    )
    row = rows.one_or_none()
    if row is None:
        return None
    # Part by part: asyncmy 0.2.18 loses its place in the stream behind a row of 16 MiB.
    parts = []
    for offset in range(0, row.size, LOG_PART_BYTES):
        part = await connection.exec_driver_sql(
            "SELECT SUBSTRING(body, %s, %s) FROM parking_log WHERE id = %s",
            (offset + 1, LOG_PART_BYTES, row.id),
        )
        parts.append(bytes(part.scalar_one()))
    return b"".join(parts)


async def refuse_too_large(connection: AsyncConnection, size: int) -> None:
    """Raise MessageTooLarge if a body of `size` bytes might not fit into one INSERT."""
    setting = await connection.exec_driver_sql("SELECT @@max_allowed_packet")
    max_bytes = int(setting.scalar_one())
    # In a literal each byte of the body takes two digits.
    if 2 * size + LOG_OVERHEAD_BYTES > max_bytes:
        raise MessageTooLarge(
            f"a message of {size} bytes may not go into the record: set the database's"
            f" max_allowed_packet, which is {max_bytes}, to 64M and try again"
        )
