"""The writer's end of the inbox: deliveries in queue order, acked only after COMMIT."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from msgspec import Struct

from ledger.eventlog.codec import Rejected, decode_group
from ledger.eventlog.records import Submitted
from ledger.messaging.rabbitmq import CALL_TIMEOUT_S, Connection
from ledger.messaging.topology import INBOX
from ledger.runtime.metrics import MESSAGE_EVENTS

PREFETCH: Final = 128


class InboxLost(ConnectionError):
    """The broker no longer delivers to this consumer: its queue or its channel is gone."""


class Batch(Struct, frozen=True):
    """What was waiting in the inbox: its events in order, what could not be read, what to ack."""

    events: list[Submitted]
    rejected: list[Rejected]
    last: AbstractIncomingMessage
    messages: int


class Inbox:
    """One consumer of the inbox, on a channel of its own."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        # Bounded by the prefetch: the broker sends no more until something is acked.
        self._arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue(PREFETCH)

    async def enqueue(self, message: AbstractIncomingMessage) -> None:
        """The consumer's callback. It only enqueues, so that messages keep their order."""
        self._arrived.put_nowait(message)

    async def batch(self, max_events: int, timeout_s: float) -> Batch | None:
        """What is waiting, up to about `max_events`; None when nothing came in `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                message = await self._arrived.get()
        except TimeoutError:
            return None
        events, rejected = self._decode(message)
        messages = 1
        while len(events) < max_events and not self._arrived.empty():
            message = self._arrived.get_nowait()
            more, bad = self._decode(message)
            events += more
            rejected += bad
            messages += 1
        return Batch(events, rejected, message, messages)

    def _decode(self, message: AbstractIncomingMessage) -> tuple[list[Submitted], list[Rejected]]:
        events, rejected = decode_group(message.body)
        MESSAGE_EVENTS.observe(len(events) + len(rejected))
        return events, rejected

    async def ack(self, batch: Batch) -> None:
        """Ack the batch and all before it. Call it after COMMIT and at no other time."""
        async with asyncio.timeout(CALL_TIMEOUT_S):
            await batch.last.ack(multiple=True)

    async def check(self) -> None:
        """Raises InboxLost, or what aio-pika raises, when nothing can come any more."""
        async with asyncio.timeout(CALL_TIMEOUT_S):
            queue = await self._channel.declare_queue(INBOX, passive=True)
        if not queue.declaration_result.consumer_count:
            raise InboxLost("the inbox has no consumer: this one was cancelled by the broker")


@asynccontextmanager
async def open_inbox(connection: Connection) -> AsyncIterator[Inbox]:
    """Consume the inbox; leaving it returns to the queue what was not acked."""
    async with connection.channel(confirms=False) as channel:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            await channel.set_qos(prefetch_count=PREFETCH)
            inbox = Inbox(channel)
            queue = await channel.declare_queue(INBOX, passive=True)
            await queue.consume(inbox.enqueue)
        yield inbox
