"""The client's end of the inbox: grouped, confirmed publishing.

What arrives while a confirm is under way leaves as one message. A publish costs some hundred
microseconds of Python, an event in a group a few: grouping is where the throughput comes from.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Final
from uuid import uuid4

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractExchange
from aio_pika.exceptions import DeliveryError, PublishError
from pamqp.commands import Basic

from ledger.eventlog.codec import BATCH_CONTENT_TYPE, encode_submitted, join
from ledger.eventlog.records import Submitted
from ledger.messaging.rabbitmq import CALL_TIMEOUT_S, Connection, until_closed
from ledger.messaging.topology import SUBMITTED_EXCHANGE
from ledger.runtime import tracing
from ledger.runtime.failpoints import failpoint, failpoint_after_send
from ledger.runtime.metrics import PublisherMetrics
from ledger.runtime.reconnect import first_to_end

log = logging.getLogger(__name__)

SUBMIT_TIMEOUT_S: Final = 1.5
CONFIRM_TIMEOUT_S: Final = 10.0
"""A broker that says nothing for so long, not even that it is in need, is asked anew."""

PATIENCE_CHECK_S: Final = 1.0
GROUP_MAX_EVENTS: Final = 256
GROUP_MAX_BYTES: Final = 256 * 1024
IN_FLIGHT: Final = 2
SECOND_FROM_EVENTS: Final = 16
"""Fewer wait for the confirm of the message that is under way, and leave together."""
MAX_WAITING: Final = 20_000


class InboxUnavailable(Exception):
    """The broker did not confirm the events; whether it has them is not known."""

    reason = "unavailable"


class InboxFull(InboxUnavailable):
    """The inbox, or the line before it, is full; the events were not appended."""

    reason = "full"


class _Submission:
    """Events that one caller wants in the inbox together, and the word that they are."""

    __slots__ = ("bodies", "confirmed", "size")

    def __init__(self, bodies: list[bytes]) -> None:
        self.bodies = bodies
        self.size = sum(map(len, bodies))
        self.confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, error: InboxUnavailable | None) -> None:
        if self.confirmed.done():
            return
        if error:
            self.confirmed.set_exception(error)
        else:
            self.confirmed.set_result(None)


class Publisher:
    """Appends submitted events to the inbox; one instance a process, kept alive by `run`.

    On another `exchange` it tells whoever listens there, by the same rules. Without a `source` each
    event keeps the one that it came from before.
    """

    def __init__(
        self,
        connection: Connection,
        source: str | None,
        instance: str,
        exchange: str = SUBMITTED_EXCHANGE,
    ) -> None:
        self._exchange_name = exchange
        self._connection = connection
        self._source = source
        self.name = instance
        self._exchange: AbstractExchange | None = None
        self._channel: AbstractChannel | None = None
        self._sent_s: list[float] = []
        self._waiting: deque[_Submission] = deque()
        self._waiting_events = 0
        self._arrived = asyncio.Event()
        self.metrics = PublisherMetrics()

    @property
    def connected(self) -> bool:
        """Whether the broker takes events now, as far as is known: none while one is overdue."""
        return self._exchange is not None and self._awaited_s() < SUBMIT_TIMEOUT_S

    async def run(self) -> None:
        """Hold the connection, for as long as the process runs."""
        await self._connection.keep_channel(
            f"publisher of {self._exchange_name}", self._publish_groups, confirms=True
        )

    async def submit(self, events: Sequence[Submitted]) -> None:
        """Append events, contiguous and in order; returns when the broker has confirmed them.

        Raises InboxFull or InboxUnavailable within SUBMIT_TIMEOUT_S. A caller that is cancelled
        does not take back a publish that is under way.
        """
        began_ns = time.time_ns()
        try:
            submission = self._enqueue(events)
            try:
                async with asyncio.timeout(SUBMIT_TIMEOUT_S):
                    await asyncio.shield(submission.confirmed)
            except TimeoutError:
                submission.settle(InboxUnavailable("given up"))
                submission.confirmed.exception()
                raise InboxUnavailable(f"no confirm within {SUBMIT_TIMEOUT_S} s") from None
        except InboxUnavailable as error:
            self.metrics.not_accepted.labels(error.reason).inc(len(events))
            raise
        if tracing.enabled() or log.isEnabledFor(logging.DEBUG):
            self._tell(events, began_ns)

    async def blocked(self) -> bool:
        """Whether the broker, in need of memory or disk, did not read what was published last."""
        if self._channel is None:
            return False
        transport = await self._channel.get_underlay_channel()
        try:
            async with asyncio.timeout(0):
                await transport.connection.ready()
        except TimeoutError:
            return True
        return False

    @property
    def waiting(self) -> int:
        """How many events wait to be published."""
        return self._waiting_events

    def _enqueue(self, events: Sequence[Submitted]) -> _Submission:
        if not self.connected:
            away = self._exchange is None
            raise InboxUnavailable(f"the broker {'is away' if away else 'does not confirm'}")
        if self._waiting_events + len(events) > MAX_WAITING:
            raise InboxFull(f"{MAX_WAITING} events are waiting to be published")
        submission = _Submission([encode_submitted(event, self._source) for event in events])
        self._waiting.append(submission)
        self._waiting_events += len(events)
        if self._may_leave():
            self._arrived.set()
        return submission

    def _tell(self, events: Sequence[Submitted], began_ns: int) -> None:
        for event in events:
            log.debug("%s: confirmed", self._exchange_name, extra=_ids(event))
        if tracing.enabled() and (traceparent := events[0].traceparent):
            tracing.record_span("publish", traceparent, {"ledger.events": len(events)}, began_ns)

    async def _publish_groups(self, channel: AbstractChannel) -> None:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            exchange = await channel.get_exchange(self._exchange_name)
        self._exchange, self._channel = exchange, channel
        try:
            senders = (self._send_groups(exchange) for _ in range(IN_FLIGHT))
            await first_to_end(*senders, self._lose_patience(), until_closed(channel))
        finally:
            self._exchange = self._channel = None
            self._refuse_waiting()

    async def _send_groups(self, exchange: AbstractExchange) -> None:
        while True:
            group = await self._next_group()
            error: InboxUnavailable | None = InboxUnavailable("the broker went away")
            try:
                error = await self._publish(exchange, group)
            finally:
                for submission in group:
                    submission.settle(error)

    async def _publish(
        self, exchange: AbstractExchange, group: list[_Submission]
    ) -> InboxUnavailable | None:
        """Publish a group as one message; None when confirmed, else what to tell the callers."""
        body = join(body for submission in group for body in submission.bodies)
        began = time.monotonic()
        self._sent_s.append(began)
        try:
            # Its callers are told in time. To hang up now would cost the others their confirms,
            # and what a broker in need said: a new connection learns it only by publishing.
            error = await publish(exchange, body, self.name, timeout_s=None)
        finally:
            self._sent_s.remove(began)
        if error:
            return error
        events = sum(len(submission.bodies) for submission in group)
        self.metrics.publish_s.observe(time.monotonic() - began)
        self.metrics.group_events.observe(events)
        self.metrics.accepted.inc(events)
        return None

    def _awaited_s(self) -> float:
        """How long ago the oldest message left of those that the broker did not confirm yet."""
        now_s = time.monotonic()
        return now_s - min(self._sent_s, default=now_s)

    async def _lose_patience(self) -> None:
        """Raises TimeoutError when a confirm is long overdue and the broker did not say why."""
        while True:
            await asyncio.sleep(PATIENCE_CHECK_S)
            if self._awaited_s() >= CONFIRM_TIMEOUT_S and not await self.blocked():
                raise TimeoutError(f"no confirm within {CONFIRM_TIMEOUT_S:g} s")

    async def _next_group(self) -> list[_Submission]:
        """All that is waiting, up to the limits of a group; callers who gave up are left out."""
        group: list[_Submission] = []
        while not group:
            while not self._may_leave():
                self._arrived.clear()
                await self._arrived.wait()
            events = size = 0
            while self._waiting and (not group or _fits(self._waiting[0], events, size)):
                submission = self._waiting.popleft()
                self._waiting_events -= len(submission.bodies)
                if not submission.confirmed.done():
                    group.append(submission)
                    events += len(submission.bodies)
                    size += submission.size
        return group

    def _may_leave(self) -> bool:
        enough = self._waiting_events >= SECOND_FROM_EVENTS or not self._sent_s
        return enough and bool(self._waiting)

    def _refuse_waiting(self) -> None:
        while self._waiting:
            self._waiting.popleft().settle(InboxUnavailable("the broker is away"))
        self._waiting_events = 0


async def publish(
    exchange: AbstractExchange,
    body: bytes,
    instance: str,
    timeout_s: float | None = SUBMIT_TIMEOUT_S,
) -> InboxUnavailable | None:
    """Publish one message; None when the broker confirmed it, else what to tell who submitted it.

    Raises TimeoutError when there was no word in time; without a `timeout_s` the caller sees to it.
    """
    message = Message(
        body,
        content_type=BATCH_CONTENT_TYPE,
        delivery_mode=DeliveryMode.PERSISTENT,
        message_id=uuid4().hex,
        app_id=instance,
    )
    await failpoint("publisher.before-publish")
    try:
        async with asyncio.timeout(timeout_s):
            publishing = exchange.publish(message, routing_key="", mandatory=True)
            answer = await failpoint_after_send("publisher.before-confirm", publishing)
    except PublishError:
        return InboxUnavailable("no queue is bound: run `ledger migrate`")
    except DeliveryError:
        return InboxFull("the inbox is full")
    if not isinstance(answer, Basic.Ack):
        return InboxUnavailable("the broker did not confirm")
    await failpoint("publisher.after-confirm")
    return None


def _ids(event: Submitted) -> dict[str, str | None]:
    return {
        "event_id": str(event.event_id),
        "stream_id": str(event.stream_id),
        "traceparent": event.traceparent,
    }


def _fits(submission: _Submission, events: int, size: int) -> bool:
    return (
        events + len(submission.bodies) <= GROUP_MAX_EVENTS
        and size + submission.size <= GROUP_MAX_BYTES
    )
