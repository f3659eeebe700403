"""Publishing to the inbox, in groups and with confirms, and refusing what can't be published soon.

Events that arrive while a confirm is under way leave together as one message. A publish costs some
hundred microseconds of Python, an event in a group a few: grouping gives the throughput.

A submission waits in line, leaves with a group, and is confirmed. Only before it leaves is it
certain that a refusal is one: nothing was accepted, and the client may send it again. So overload
is refused before the line, and what waited too long is taken out of it. What was sent is waited for
much longer. If the connection breaks meanwhile, the same events are sent again on the next one:
that is harmless, as the writer decides an event id once.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import Final, Literal, NamedTuple
from uuid import uuid4

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractExchange
from aio_pika.exceptions import DeliveryError, PublishError
from pamqp.commands import Basic
from prometheus_client import Counter

from ledger.eventlog.codec import BATCH_CONTENT_TYPE, encode_group, encode_submitted
from ledger.eventlog.identity import HeadWatch, SeenHead
from ledger.eventlog.records import Submitted
from ledger.messaging.rabbitmq import BROKER_ERRORS, CALL_TIMEOUT_S, Connection, until_closed
from ledger.messaging.topology import SUBMITTED_EXCHANGE
from ledger.runtime import tracing
from ledger.runtime.cache import SingleFlight
from ledger.runtime.failpoints import failpoint, failpoint_after_send
from ledger.runtime.metrics import PublisherMetrics
from ledger.runtime.reconnect import first_to_end

log = logging.getLogger(__name__)

# Returns once the broker does not block the connection.
Ready = Callable[[], Awaitable[None]]

# What has not left the line within this time is refused: the estimate that let it in was wrong.
LINE_TIMEOUT_S: Final = 2.0
# What was sent is answered within this time, confirmed or not.
ANSWER_TIMEOUT_S: Final = 12.0
# The same once the process stops; the server gives requests under way a little longer.
STOP_TIMEOUT_S: Final = 5.0
# From this age of a confirm on the broker takes nothing as far as is known.
OVERDUE_S: Final = 3.0
# A broker that neither confirms nor says that it blocks for so long gets a new connection.
CONFIRM_TIMEOUT_S: Final = 8.0
CHECK_S: Final = 0.25
# A confirm shows for so long that there is an inbox. Empty groups that ask for one may pile up
# while no writer runs: one in so many seconds from an idle API is 100,000 in six days.
PROOF_S: Final = 5.0
ASK_TIMEOUT_S: Final = 1.0
ASK_AGAIN_S: Final = 0.5
# The most that all those times advance between two checks.
TICK_MAX_S: Final = 0.5
GROUP_MAX_EVENTS: Final = 512
GROUP_MAX_BYTES: Final = 256 * 1024
IN_FLIGHT: Final = 2
# Fewer events wait for the confirm of the message under way, and leave together: a second small
# message would cost more than the wait.
SECOND_FROM_EVENTS: Final = 16
MAX_WAITING: Final = 20_000
# The longest that a new submission may have to wait by what was measured.
MAX_WAIT_S: Final = 1.0
# So many requests may be open at any speed: three thousand clients may order at one moment.
MIN_OPEN: Final = 3_200
# The share that a measured rate keeps for the next check where less is confirmed meanwhile.
RATE_KEPT: Final = 0.95
CONFIRM_WEIGHT: Final = 0.2


class InboxUnavailable(Exception):
    """The broker takes no events; these were surely not accepted."""

    reason = "unavailable"
    accepted: Literal["no", "unknown"] = "no"
    retry_after_s = 2


class Unroutable(InboxUnavailable):
    """The broker returned the events because there is no inbox; they were surely not accepted."""


class InboxFull(InboxUnavailable):
    """The inbox is full; the events were surely not accepted."""

    reason = "full"
    retry_after_s = 5


class Overloaded(InboxFull):
    """More waits to be published than can be soon; the events were surely not accepted."""

    reason = "overloaded"
    retry_after_s = 1


class NotConfirmed(InboxUnavailable):
    """The events were sent, and the broker did not confirm them; it may have them or not."""

    reason = "unconfirmed"
    accepted = "unknown"


class _Submission:
    """The encoded events of one caller, and a future that ends with their confirm or an error.

    `sent`: a broker may have the events from a connection that broke. `open` until it is settled.
    """

    __slots__ = ("bodies", "open", "sent", "settled", "since_s", "size")

    def __init__(self, bodies: list[bytes], since_s: float) -> None:
        self.bodies = bodies
        self.size = sum(map(len, bodies))
        self.since_s = since_s
        self.open = True
        self.sent = False
        self.settled: asyncio.Future[InboxUnavailable | None] = (
            asyncio.get_running_loop().create_future()
        )


class _Group(NamedTuple):
    """Submissions that were sent as one message, which has no confirm yet."""

    submissions: list[_Submission]
    sent_s: float


class Publisher:
    """Appends submitted events to the inbox, or publishes them to another `exchange`.

    `run` keeps its channel open. `source` is the CloudEvents source of the events; without it each
    event keeps the source that it was recorded with. Messages name the head that `watch` has seen,
    which only a writer that has it decides; while it knows of a foreign ledger, or that this one
    went back, no event is submitted. `user_id`: see `publish`.
    """

    def __init__(
        self,
        connection: Connection,
        source: str | None,
        instance: str,
        exchange: str = SUBMITTED_EXCHANGE,
        watch: HeadWatch | None = None,
        user_id: str | None = None,
    ) -> None:
        self._connection = connection
        self._source = source
        self._exchange_name = exchange
        self._user_id = user_id
        self.name = instance
        self._exchange: AbstractExchange | None = None
        self._sent: list[_Group] = []
        self._waiting: deque[_Submission] = deque()
        self._waiting_events = 0
        # Stands still while this process does. After a pause, or a long turn of the event loop, a
        # confirm may be here that was not read yet, and must not be too late.
        self._awake_s = 0.0
        self._open = 0
        self._max_open = MIN_OPEN
        self._confirmed = 0
        self._confirm_s = 0.0  # what a confirm takes, averaged
        self.blocked = False  # the broker, short of memory or disk, reads nothing
        self._confirmed_s = self._asked_s = -inf
        self._asking: SingleFlight[str, None] = SingleFlight()
        self._watch = watch
        self._stop_s = inf
        self._refused: dict[str, Counter] = {}
        self._sendable = asyncio.Event()
        self.metrics = PublisherMetrics()

    @property
    def connected(self) -> bool:
        """True while the broker takes events as far as is known: no confirm is overdue."""
        return self._exchange is not None and not self.blocked and self._age_s() < OVERDUE_S

    async def has_inbox(self) -> bool:
        """Whether a queue takes what is published, as a confirm within the last PROOF_S shows.

        Where there is none, an empty group is published to get one: no account needs rights on the
        queue for that, and a queue that is not bound is missed too. All who ask at once share it.
        """
        if self._is_proven():
            return True
        if time.monotonic() - self._asked_s > ASK_AGAIN_S:
            await self._asking.join(self._exchange_name, self._ask)
        return self._is_proven()

    def _is_proven(self) -> bool:
        return self.connected and time.monotonic() - self._confirmed_s <= PROOF_S

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                if self._exchange:
                    empty = Message(encode_group([]), content_type=BATCH_CONTENT_TYPE)
                    await self._exchange.publish(empty, routing_key="", mandatory=True)
                    self._confirmed_s = time.monotonic()
        except PublishError:
            self._confirmed_s = -inf
        except DeliveryError:
            # There is one, and it is full.
            self._confirmed_s = time.monotonic()
        except BROKER_ERRORS as error:
            log.debug("whether there is an inbox is not known: %r", error)
        self._asked_s = time.monotonic()

    @property
    def _seen(self) -> SeenHead | None:
        return self._watch.head if self._watch else None

    @property
    def _held(self) -> str | None:
        # Other API processes may be asked all the same.
        is_inbox = self._exchange_name == SUBMITTED_EXCHANGE
        return self._watch.problem if self._watch and is_inbox else None

    @property
    def waiting(self) -> int:
        """The number of events waiting to be published."""
        return self._waiting_events

    def refuse_overload(self, events: int = 1, *, crowded: bool = False) -> None:
        """Raise Overloaded where so many events more could not be published soon.

        It costs little and needs nothing, so that a request can be refused before it is read.
        `crowded`: too many requests wait that have not been looked at yet.
        """
        if crowded:
            detail = "too many requests are waiting"
        elif self._open >= self._max_open:
            detail = f"{self._open} requests are waiting to be accepted"
        elif self._waiting_events + events > MAX_WAITING:
            detail = f"{self._waiting_events} events are waiting to be published"
        elif self._confirm_s * self._waiting_events > MAX_WAIT_S * IN_FLIGHT * GROUP_MAX_EVENTS:
            detail = f"the broker needs {self._confirm_s:.1f} s for each confirm"
        else:
            return
        self.count_refusal(error := Overloaded(detail), events)
        raise error

    def count_refusal(self, error: InboxUnavailable, events: int) -> None:
        """Count events that were refused."""
        counter = self._refused.get(error.reason)
        if counter is None:
            # Kept: to look it up by its labels costs more than all else that there is to do here.
            counter = self.metrics.not_accepted.labels(error.reason, error.accepted)
            self._refused[error.reason] = counter
        counter.inc(events)

    async def submit(self, events: Sequence[Submitted]) -> None:
        """Append events, contiguous and in order; returns when the broker has confirmed them.

        Raises InboxUnavailable or one of its kinds: within LINE_TIMEOUT_S where the events were not
        sent, else NotConfirmed within ANSWER_TIMEOUT_S. Cancelling a caller does not take back its
        events.
        """
        began_ns = time.time_ns()
        count = len(events)
        if self._held or not self.connected:
            error = InboxUnavailable(self._why_not())
            self.count_refusal(error, count)
            raise error
        self.refuse_overload(count)
        submission = _Submission(
            [encode_submitted(event, self._source) for event in events], self._awake_s
        )
        self._waiting.append(submission)
        self._waiting_events += count
        self._open += 1
        if self._may_send():
            self._sendable.set()
        if settled := await submission.settled:
            self.count_refusal(settled, count)
            # One of its own for each caller: a raised exception collects the frames it passed.
            raise type(settled)(*settled.args)
        if log.isEnabledFor(logging.DEBUG):
            for event in events:
                fields = {
                    "event_id": str(event.event_id),
                    "stream_id": str(event.stream_id),
                    "traceparent": event.traceparent,
                }
                log.debug("%s: confirmed", self._exchange_name, extra=fields)
        if tracing.enabled() and (traceparent := events[0].traceparent):
            tracing.record_span("publish", traceparent, {"ledger.events": count}, began_ns)

    async def run(self) -> None:
        """Publish for as long as the process runs."""
        self._stop_s = inf
        try:
            await first_to_end(
                self._connection.keep_channel(
                    f"publisher of {self._exchange_name}", self._publish_on, confirms=True
                ),
                self._keep_deadlines(),
            )
        finally:
            self._stop_s = -inf
            self._settle_late()

    def stop(self) -> None:
        """Answer all submissions within STOP_TIMEOUT_S: the process is about to stop."""
        self._stop_s = time.monotonic() + STOP_TIMEOUT_S

    async def _publish_on(self, channel: AbstractChannel) -> None:
        exchange = await self._connection.exchange(channel, self._exchange_name)
        async with asyncio.timeout(CALL_TIMEOUT_S):
            transport = await channel.get_underlay_channel()
            ready = transport.connection.ready
        self._exchange, self._confirmed_s = exchange, -inf
        try:
            await first_to_end(
                *(self._send_groups(exchange, ready) for _ in range(IN_FLIGHT)),
                self._check_confirms(),
                self._watch_blocking(ready),
                until_closed(channel),
            )
        finally:
            self._exchange = None
            self.blocked = False

    async def _send_groups(self, exchange: AbstractExchange, ready: Ready) -> None:
        """Publish one group after the other as one message each, and settle its submissions."""
        while True:
            group = _Group(await self._next_group(ready), self._awake_s)
            self._sent.append(group)
            began_s = time.monotonic()
            try:
                body = encode_group(body for one in group.submissions for body in one.bodies)
                # No deadline: the callers are answered in time all the same. To close the channel
                # now would lose the confirms of the others, and the broker's word that it blocks,
                # which a new connection gets only once it publishes.
                await publish(
                    exchange, body, self.name, self._user_id, timeout_s=None, seen=self._seen
                )
            except InboxUnavailable as refusal:
                if isinstance(refusal, Unroutable):
                    self._confirmed_s = -inf
                for submission in group.submissions:
                    # The broker has refused these events now, and may have taken them before.
                    self._settle(submission, _unknown() if submission.sent else refusal)
            except BaseException:
                # Sent, and no confirm will come: they are sent again on the next connection.
                again = [submission for submission in group.submissions if submission.open]
                for submission in again:
                    submission.sent = True
                    self._waiting_events += len(submission.bodies)
                self._waiting.extendleft(reversed(again))
                raise
            else:
                events = 0
                for submission in group.submissions:
                    events += len(submission.bodies)
                    self._settle(submission, None)
                took_s = time.monotonic() - began_s
                self._confirmed_s = time.monotonic()
                self._confirmed += len(group.submissions)
                self._confirm_s += (took_s - self._confirm_s) * CONFIRM_WEIGHT
                self.metrics.publish_s.observe(took_s)
                self.metrics.group_events.observe(events)
                self.metrics.accepted.inc(events)
            finally:
                self._sent.remove(group)

    async def _next_group(self, ready: Ready) -> list[_Submission]:
        """Submissions from the line, up to the limits of a group, once the broker does not block.

        `ready` returns then. What would be sent before could not be taken back any more.
        """
        while True:
            while not self._may_send():
                self._sendable.clear()
                await self._sendable.wait()
            await ready()
            if self._may_send():
                break
        group: list[_Submission] = []
        events = size = 0
        while self._waiting:
            submission = self._waiting[0]
            # A submission that is larger than a group leaves alone: it is never split.
            if group and (
                events + len(submission.bodies) > GROUP_MAX_EVENTS
                or size + submission.size > GROUP_MAX_BYTES
            ):
                break
            group.append(self._waiting.popleft())
            events += len(submission.bodies)
            size += submission.size
        self._waiting_events -= events
        return group

    def _may_send(self) -> bool:
        enough = self._waiting_events >= SECOND_FROM_EVENTS or not self._sent
        return enough and bool(self._waiting)

    def _settle(self, submission: _Submission, error: InboxUnavailable | None) -> None:
        """Let the caller know, unless it was answered or cancelled before."""
        if submission.open:
            submission.open = False
            self._open -= 1
            if not submission.settled.done():
                submission.settled.set_result(error)

    def _age_s(self) -> float:
        """The age of the oldest message that the broker has not confirmed yet."""
        return self._awake_s - self._sent[0].sent_s if self._sent else 0.0

    def _why_not(self) -> str:
        if held := self._held:
            return held
        if self._exchange is None:
            return "the broker is away"
        if self.blocked:
            return "the broker is short of memory or disk"
        return "the broker does not confirm" if self._age_s() >= OVERDUE_S else "the API stops"

    async def _keep_deadlines(self) -> None:
        """Settle what waited too long, and measure how many requests may be open."""
        checked_s = time.monotonic()
        while True:
            await asyncio.sleep(CHECK_S)
            now_s = time.monotonic()
            self._awake_s += min(now_s - checked_s, TICK_MAX_S)
            self._settle_late()
            per_s, self._confirmed = self._confirmed / (now_s - checked_s), 0
            self._max_open = max(MIN_OPEN, int(per_s * MAX_WAIT_S), int(self._max_open * RATE_KEPT))
            checked_s = now_s

    def _settle_late(self) -> None:
        """Refuse what waited in line for too long; give up hope for a confirm that did not come."""
        now_s = self._awake_s
        stopped = time.monotonic() >= self._stop_s
        for group in self._sent:
            for submission in group.submissions:
                if stopped or now_s - submission.since_s > ANSWER_TIMEOUT_S:
                    self._settle(submission, _unknown())
        in_line: deque[_Submission] = deque()
        for submission in self._waiting:
            limit_s = ANSWER_TIMEOUT_S if submission.sent else LINE_TIMEOUT_S
            if not stopped and now_s - submission.since_s <= limit_s:
                in_line.append(submission)
                continue
            self._waiting_events -= len(submission.bodies)
            if submission.sent:
                error: InboxUnavailable = _unknown()
            elif self.connected and not stopped:
                error = Overloaded(f"the events waited in line for {LINE_TIMEOUT_S:g} s")
            else:
                error = InboxUnavailable(self._why_not())
            self._settle(submission, error)
        self._waiting = in_line

    async def _check_confirms(self) -> None:
        """Raise TimeoutError once a confirm is long overdue and the broker does not block."""
        while True:
            await asyncio.sleep(CHECK_S)
            if self._age_s() >= CONFIRM_TIMEOUT_S and not self.blocked:
                raise TimeoutError(f"no confirm within {CONFIRM_TIMEOUT_S:g} s")

    async def _watch_blocking(self, ready: Ready) -> None:
        """Keep `blocked` true while the broker, short of memory or disk, reads nothing.

        It says so (connection.blocked) only to whom it has read something of.
        """
        while True:
            await asyncio.sleep(CHECK_S)
            try:
                async with asyncio.timeout(0):
                    await ready()
            except TimeoutError:
                self.blocked = True
                await ready()
                self.blocked = False


def _unknown() -> NotConfirmed:
    return NotConfirmed("the broker did not confirm the events in time; it may have them")


async def publish(
    exchange: AbstractExchange,
    body: bytes,
    instance: str,
    user_id: str | None = None,
    timeout_s: float | None = CONFIRM_TIMEOUT_S,
    seen: SeenHead | None = None,
) -> None:
    """Publish one message; returns when the broker has confirmed it.

    The broker refuses a `user_id` that is not the name of the account that publishes
    (https://www.rabbitmq.com/docs/validated-user-id); the writer looks at it: see `consumer`.

    Raises Unroutable and InboxFull, where the broker refused it, and NotConfirmed. Without
    `timeout_s` the caller has a deadline of its own. A writer whose ledger does not have the head
    that was `seen` refuses the message.
    """
    message = Message(
        body,
        content_type=BATCH_CONTENT_TYPE,
        delivery_mode=DeliveryMode.PERSISTENT,
        message_id=uuid4().hex,
        app_id=instance,
        headers=seen.headers() if seen else None,
        user_id=user_id,
    )
    await failpoint("publisher.before-publish")
    try:
        async with asyncio.timeout(timeout_s):
            publishing = exchange.publish(message, routing_key="", mandatory=True)
            answer = await failpoint_after_send("publisher.before-confirm", publishing)
    except TimeoutError:
        raise NotConfirmed(f"no confirm within {timeout_s:g} s") from None
    except PublishError:
        # The message was returned: it is mandatory.
        raise Unroutable("no queue is bound: run `ledger migrate`") from None
    except DeliveryError:
        raise InboxFull("the inbox is full") from None
    if not isinstance(answer, Basic.Ack):
        raise NotConfirmed("the broker did not confirm")
    await failpoint("publisher.after-confirm")
