"""Consuming the inbox: deliveries in queue order, acked only after COMMIT."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from msgspec import UNSET, Struct

from ledger.core.events import CustomerErased, OrderPlaced
from ledger.eventlog.codec import Rejected, decode_group, encode_submitted
from ledger.eventlog.identity import SeenHead, head_of
from ledger.eventlog.records import Submitted
from ledger.messaging.rabbitmq import CALL_TIMEOUT_S, Connection
from ledger.messaging.topology import INBOX, OPERATOR
from ledger.runtime.metrics import MESSAGE_EVENTS

# The broker sends no more messages until one is acked.
PREFETCH: Final = 128


class InboxLost(ConnectionError):
    """The broker has cancelled this consumer, so nothing more will be delivered to it."""


class InboxBatch(Struct, frozen=True):
    """Deliveries decoded: their events in order, what could not be decoded, and the last one.

    `messages` is their number. Acking `last` acks all of them. `seen` are the heads that those who
    accepted them had seen.
    """

    events: list[Submitted]
    rejected: list[Rejected]
    last: AbstractIncomingMessage
    messages: int
    seen: set[SeenHead]


class Inbox:
    """A consumer of the inbox, on a channel of its own."""

    def __init__(self, connection: Connection, channel: AbstractChannel) -> None:
        self._connection = connection
        self._channel = channel
        self._cancelled = False
        # As long as it has room, `put` never awaits: the client runs each callback as a task, and
        # one that waited could be overtaken.
        self.deliveries: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue(PREFETCH)

    async def batch(self, max_events: int, timeout_s: float) -> InboxBatch | None:
        """The deliveries at hand, until they have `max_events`; None after `timeout_s` without one.

        A batch has at least one message and ends with a whole one, so it may exceed `max_events`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                message = await self.deliveries.get()
        except TimeoutError:
            return None
        events: list[Submitted] = []
        rejected: list[Rejected] = []
        seen: set[SeenHead] = set()
        messages = 0
        while True:
            messages += 1
            if head := head_of(message.headers):
                seen.add(head)
            message_events, message_rejected = decode_group(message.body)
            if message.user_id != OPERATOR:
                message_events, refused = _refuse_privileged(message_events)
                message_rejected += refused
            MESSAGE_EVENTS.observe(len(message_events) + len(message_rejected))
            events += message_events
            rejected += message_rejected
            if len(events) >= max_events or self.deliveries.empty():
                break
            message = self.deliveries.get_nowait()
        return InboxBatch(events, rejected, message, messages, seen)

    async def ack(self, batch: InboxBatch) -> None:
        """Ack the batch and all before it; only after its COMMIT may this be called."""
        async with asyncio.timeout(CALL_TIMEOUT_S):
            await batch.last.ack(multiple=True)

    async def ensure_consumed(self) -> None:
        """Raise InboxLost, or one of BROKER_ERRORS, when nothing will be delivered any more."""
        lost = self._cancelled
        if self._connection.may_look:
            queue = await self._connection.queue(self._channel, INBOX)
            lost |= not queue.declaration_result.consumer_count
        if lost:
            raise InboxLost("the inbox has no consumer: the broker cancelled this one")

    async def consume(self) -> None:
        """Begin to take deliveries; raises one of BROKER_ERRORS, where there is no inbox, too."""
        async with asyncio.timeout(CALL_TIMEOUT_S):
            await self._channel.set_qos(prefetch_count=PREFETCH)
            transport = await self._channel.get_underlay_channel()
            transport.on_consumer_cancel_callbacks.add(self._note_cancelled)
            # Not declared passively, which some brokers refuse: to consume shows that it is there.
            queue = await self._channel.get_queue(INBOX, ensure=False)
            await queue.consume(self.deliveries.put)

    def _note_cancelled(self, _: object) -> None:
        self._cancelled = True


def _refuse_privileged(events: list[Submitted]) -> tuple[list[Submitted], list[Rejected]]:
    """Those that any account may submit, and the others as rejected.

    Every API process has the password of an account that may publish; an erasure destroys a key.
    """
    privileged = [event for event in events if _is_privileged(event)]
    if not privileged:
        return events, []
    reason = f"only the account {OPERATOR} may submit this: see docs/explanation/promises.md"
    rejected = [Rejected(encode_submitted(e, None), reason, whole=False) for e in privileged]
    return [event for event in events if not _is_privileged(event)], rejected


def _is_privileged(event: Submitted) -> bool:
    payload = event.payload
    if isinstance(payload, OrderPlaced):
        return payload.history is not UNSET
    return isinstance(payload, CustomerErased)


@asynccontextmanager
async def open_inbox(connection: Connection) -> AsyncIterator[Inbox]:
    """Consume the inbox; closing it returns messages without an ack to the queue, in order."""
    async with connection.channel(confirms=False) as channel:
        inbox = Inbox(connection, channel)
        await inbox.consume()
        yield inbox
