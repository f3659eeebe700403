"""Publishing to the inbox, in groups and with confirms.

Events that arrive while a confirm is under way leave together as one message. A publish costs some
hundred microseconds of Python, an event in a group a few: grouping gives the throughput.
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

from ledger.eventlog.codec import BATCH_CONTENT_TYPE, encode_group, encode_submitted
from ledger.eventlog.records import Submitted
from ledger.messaging.rabbitmq import CALL_TIMEOUT_S, Connection, until_closed
from ledger.messaging.topology import SUBMITTED_EXCHANGE
from ledger.runtime import tracing
from ledger.runtime.failpoints import failpoint, failpoint_after_send
from ledger.runtime.metrics import PublisherMetrics
from ledger.runtime.reconnect import first_to_end

log = logging.getLogger(__name__)

SUBMIT_TIMEOUT_S: Final = 1.5
# A broker that neither confirms nor says that it blocks for so long gets a new connection.
CONFIRM_TIMEOUT_S: Final = 10.0
CONFIRM_CHECK_S: Final = 1.0
GROUP_MAX_EVENTS: Final = 256
GROUP_MAX_BYTES: Final = 256 * 1024
IN_FLIGHT: Final = 2
# Fewer events wait for the confirm of the message under way, and leave together: a second small
# message would cost more than the wait.
SECOND_FROM_EVENTS: Final = 16
MAX_WAITING: Final = 20_000


class InboxUnavailable(Exception):
    """The broker did not confirm the events; whether it has them is not known."""

    reason = "unavailable"


class InboxFull(InboxUnavailable):
    """The inbox, or the queue of waiting events before it, is full; nothing was appended."""

    reason = "full"


class _Submission:
    """The encoded events of one caller, and a future that ends with their confirm or an error."""

    __slots__ = ("bodies", "settled", "size")

    def __init__(self, bodies: list[bytes]) -> None:
        self.bodies = bodies
        self.size = sum(map(len, bodies))
        self.settled: asyncio.Future[InboxUnavailable | None] = (
            asyncio.get_running_loop().create_future()
        )

    def settle(self, error: InboxUnavailable | None) -> None:
        if not self.settled.done():
            self.settled.set_result(error)


class Publisher:
    """Appends submitted events to the inbox, or publishes them to another `exchange`.

    `run` keeps its channel open. `source` is the CloudEvents source of the events; without it each
    event keeps the source that it was recorded with.
    """

    def __init__(
        self,
        connection: Connection,
        source: str | None,
        instance: str,
        exchange: str = SUBMITTED_EXCHANGE,
    ) -> None:
        self._connection = connection
        self._source = source
        self._exchange_name = exchange
        self.name = instance
        self._exchange: AbstractExchange | None = None
        self._channel: AbstractChannel | None = None
        self._sent_s: list[float] = []  # when each message without a confirm was sent
        self._waiting: deque[_Submission] = deque()
        self._waiting_events = 0
        self._sendable = asyncio.Event()
        self.metrics = PublisherMetrics()

    @property
    def connected(self) -> bool:
        """True while the broker takes events as far as is known: no confirm is overdue."""
        return self._exchange is not None and self._unconfirmed_s() < SUBMIT_TIMEOUT_S

    @property
    def waiting(self) -> int:
        """The number of events waiting to be published."""
        return self._waiting_events

    async def blocked(self) -> bool:
        """True while the broker, short of memory or disk, does not read what is published."""
        if self._channel is None:
            return False
        transport = await self._channel.get_underlay_channel()
        try:
            async with asyncio.timeout(0):
                await transport.connection.ready()
        except TimeoutError:
            return True
        return False

    async def submit(self, events: Sequence[Submitted]) -> None:
        """Append events, contiguous and in order; returns when the broker has confirmed them.

        Raises InboxFull or InboxUnavailable within SUBMIT_TIMEOUT_S. Cancelling a caller does not
        take back a publish that is under way.
        """
        began_ns = time.time_ns()
        error: InboxUnavailable | None
        if not self.connected:
            away = self._exchange is None
            error = InboxUnavailable(f"the broker {'is away' if away else 'does not confirm'}")
        elif self._waiting_events + len(events) > MAX_WAITING:
            error = InboxFull(f"{MAX_WAITING} events are waiting to be published")
        else:
            submission = _Submission([encode_submitted(event, self._source) for event in events])
            self._waiting.append(submission)
            self._waiting_events += len(events)
            if self._may_send():
                self._sendable.set()
            done, _ = await asyncio.wait((submission.settled,), timeout=SUBMIT_TIMEOUT_S)
            if not done:
                # Settled, so that it is not published later if it still waits.
                submission.settle(InboxUnavailable(f"no confirm within {SUBMIT_TIMEOUT_S} s"))
            error = submission.settled.result()
        if error:
            self.metrics.not_accepted.labels(error.reason).inc(len(events))
            raise error
        if log.isEnabledFor(logging.DEBUG):
            for event in events:
                fields = {
                    "event_id": str(event.event_id),
                    "stream_id": str(event.stream_id),
                    "traceparent": event.traceparent,
                }
                log.debug("%s: confirmed", self._exchange_name, extra=fields)
        if tracing.enabled() and (traceparent := events[0].traceparent):
            tracing.record_span("publish", traceparent, {"ledger.events": len(events)}, began_ns)

    async def run(self) -> None:
        """Publish for as long as the process runs."""
        await self._connection.keep_channel(
            f"publisher of {self._exchange_name}", self._publish_on, confirms=True
        )

    async def _publish_on(self, channel: AbstractChannel) -> None:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            exchange = await channel.get_exchange(self._exchange_name)
        self._exchange, self._channel = exchange, channel
        try:
            senders = (self._send_groups(exchange) for _ in range(IN_FLIGHT))
            await first_to_end(*senders, self._check_confirms(), until_closed(channel))
        finally:
            self._exchange = self._channel = None
            while self._waiting:
                self._waiting.popleft().settle(InboxUnavailable("the broker is away"))
            self._waiting_events = 0

    async def _send_groups(self, exchange: AbstractExchange) -> None:
        """Publish one group after the other as one message each, and settle its submissions."""
        while True:
            group = await self._next_group()
            body = encode_group(body for submission in group for body in submission.bodies)
            began_s = time.monotonic()
            self._sent_s.append(began_s)
            error: InboxUnavailable | None = InboxUnavailable("the broker went away")
            try:
                # No deadline: `submit` answers the callers in time. To close the channel now would
                # lose the confirms of the others, and the broker's word that it blocks, which a new
                # connection gets only once it publishes.
                await publish(exchange, body, self.name, timeout_s=None)
                error = None
            except InboxUnavailable as refusal:
                error = refusal
            finally:
                self._sent_s.remove(began_s)
                for submission in group:
                    submission.settle(error)
            if error is None:
                events = sum(len(submission.bodies) for submission in group)
                self.metrics.publish_s.observe(time.monotonic() - began_s)
                self.metrics.group_events.observe(events)
                self.metrics.accepted.inc(events)

    async def _next_group(self) -> list[_Submission]:
        """Waiting submissions up to the limits of a group, without those whose caller gave up."""
        group: list[_Submission] = []
        while not group:
            while not self._may_send():
                self._sendable.clear()
                await self._sendable.wait()
            events = size = 0
            while self._waiting:
                submission = self._waiting[0]
                # A submission that is larger than a group leaves alone: it is never split.
                if group and (
                    events + len(submission.bodies) > GROUP_MAX_EVENTS
                    or size + submission.size > GROUP_MAX_BYTES
                ):
                    break
                self._waiting.popleft()
                self._waiting_events -= len(submission.bodies)
                if not submission.settled.done():
                    group.append(submission)
                    events += len(submission.bodies)
                    size += submission.size
        return group

    def _may_send(self) -> bool:
        enough = self._waiting_events >= SECOND_FROM_EVENTS or not self._sent_s
        return enough and bool(self._waiting)

    def _unconfirmed_s(self) -> float:
        """The age of the oldest message that the broker has not confirmed yet."""
        now_s = time.monotonic()
        return now_s - min(self._sent_s, default=now_s)

    async def _check_confirms(self) -> None:
        """Raise TimeoutError once a confirm is long overdue and the broker does not block."""
        while True:
            await asyncio.sleep(CONFIRM_CHECK_S)
            if self._unconfirmed_s() >= CONFIRM_TIMEOUT_S and not await self.blocked():
                raise TimeoutError(f"no confirm within {CONFIRM_TIMEOUT_S:g} s")


async def publish(
    exchange: AbstractExchange,
    body: bytes,
    instance: str,
    timeout_s: float | None = SUBMIT_TIMEOUT_S,
) -> None:
    """Publish one message; returns when the broker has confirmed it.

    Raises InboxFull or InboxUnavailable. Without `timeout_s` the caller has a deadline of its own.
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
    except TimeoutError:
        raise InboxUnavailable(f"no confirm within {timeout_s} s") from None
    except PublishError:
        # The message was returned: it is mandatory.
        raise InboxUnavailable("no queue is bound: run `ledger migrate`") from None
    except DeliveryError:
        raise InboxFull("the inbox is full") from None
    if not isinstance(answer, Basic.Ack):
        raise InboxUnavailable("the broker did not confirm")
    await failpoint("publisher.after-confirm")
