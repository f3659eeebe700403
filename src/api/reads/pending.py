"""Accepted orders that no view shows yet, so that a GET finds each at once, on any API process.

`PendingOrders` remembers the orders that this process accepted. Where several processes serve one
ledger, `Peers` publishes each to the others and receives theirs.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from itertools import islice
from struct import Struct as Layout
from typing import Any, Final
from uuid import UUID, uuid4

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from ledger.core.events import OrderCancelRequested, OrderPlaced
from ledger.eventlog.codec import decode_group
from ledger.eventlog.identity import HeadWatch, head_of
from ledger.eventlog.records import Submitted
from ledger.messaging.publisher import InboxFull, InboxUnavailable, Publisher
from ledger.messaging.rabbitmq import Connection, subscribe, until_closed
from ledger.messaging.topology import ACCEPTED_EXCHANGE
from ledger.runtime.timestamps import SECOND_US, now_us
from projections.announcements import Announcement
from projections.queries import ViewsUnavailable

log = logging.getLogger(__name__)

MAX_PENDING: Final = 1_000_000
CHUNK: Final = 500
SWEEP_S: Final = 30.0
SWEEP_MAX: Final = 1_000
MAX_QUEUED: Final = 100_000
TELL_TIMEOUT_S: Final = 1.5
CATCH_UP_TIMEOUT_S: Final = 2.0
# occurred_at_us, quantity, customer_id, product_id
_LAYOUT: Final = Layout(">QI16s16s")


class PendingOrders:
    """Placed orders by id, in the order they came; each is removed by its outcome."""

    def __init__(self) -> None:
        # As bytes: the garbage collector never walks them, and there may be a million.
        self._placed: dict[bytes, bytes] = {}
        self._reset = asyncio.Event()

    def __len__(self) -> int:
        return len(self._placed)

    def add(self, event: Submitted, placed: OrderPlaced) -> None:
        """Remember a placed order that is about to be submitted; raises InboxFull."""
        if len(self._placed) >= MAX_PENDING:
            raise InboxFull(f"{MAX_PENDING} orders are waiting to be decided")
        self._placed[event.stream_id.bytes] = _LAYOUT.pack(
            event.occurred_at_us,
            placed.quantity,
            placed.customer_id.bytes,
            placed.product_id.bytes,
        )

    def remove(self, order_id: UUID) -> None:
        """Forget an order: its submission failed, or a view shows it."""
        self._placed.pop(order_id.bytes, None)

    def get(self, order_id: UUID) -> tuple[OrderPlaced, int] | None:
        """The order, and when it was placed in µs since the Unix epoch."""
        packed = self._placed.get(order_id.bytes)
        if packed is None:
            return None
        occurred_at_us, quantity, customer_id, product_id = _LAYOUT.unpack(packed)
        placed = OrderPlaced(UUID(bytes=customer_id), UUID(bytes=product_id), quantity)
        return placed, occurred_at_us

    def announced(self, announcement: Announcement) -> None:
        """Forget the orders that were decided."""
        if self._placed:
            for outcome in announcement.outcomes:
                self._placed.pop(outcome.stream_id.bytes, None)

    def reset(self) -> None:
        """Check all orders soon: announcements may have been missed."""
        self._reset.set()

    async def run(self, shown: Callable[[Sequence[UUID]], Awaitable[set[UUID]]]) -> None:
        """Forget orders that the views show, for as long as the process runs.

        An announcement that was missed would leave its orders here for ever. So all are looked up
        after a reset, and every SWEEP_S those of the oldest that should have been decided by now.
        """
        while True:
            try:
                async with asyncio.timeout(SWEEP_S):
                    await self._reset.wait()
                self._reset.clear()
                order_ids = list(self._placed)
            except TimeoutError:
                before_us = now_us() - int(SWEEP_S * SECOND_US)
                oldest = islice(self._placed.items(), SWEEP_MAX)
                order_ids = [key for key, order in oldest if _LAYOUT.unpack(order)[0] < before_us]
            try:
                for start in range(0, len(order_ids), CHUNK):
                    chunk = [UUID(bytes=order_id) for order_id in order_ids[start : start + CHUNK]]
                    for order_id in await shown(chunk):
                        self.remove(order_id)
            except ViewsUnavailable as error:
                log.warning("%d pending orders can't be checked: %s", len(self._placed), error)
                self._reset.set()
                await asyncio.sleep(1)


class Peers:
    """Publishes accepted orders to the other API processes, and adds theirs to `pending`.

    An order is published after the inbox has it and before its client is answered. A process
    receives all through one queue, so a mark that it publishes itself comes after all orders that
    were published before.
    """

    def __init__(
        self,
        consuming: Connection,
        publishing: Connection,
        instance: str,
        pending: PendingOrders,
        watch: HeadWatch | None = None,
    ) -> None:
        self._consuming = consuming
        self._instance = instance
        self._publisher = Publisher(
            publishing, "/api", f"{instance}-peers", ACCEPTED_EXCHANGE, watch
        )
        self._watch = watch
        self._marks: dict[UUID, asyncio.Future[None]] = {}
        self._pending = pending

    async def publish(self, events: Sequence[Submitted]) -> None:
        """Tell the others. The events are accepted by now, so a failure is only logged."""
        try:
            # Cancelling does not take the events back.
            async with asyncio.timeout(TELL_TIMEOUT_S):
                await self._publisher.submit(events)
        except (InboxUnavailable, TimeoutError) as error:
            log.warning("other API processes were not told of %d orders: %r", len(events), error)

    async def catch_up(self) -> None:
        """Return when this process has received every order that was answered until now.

        Raises InboxUnavailable when that can't be known in time.
        """
        mark = Submitted(uuid4(), uuid4(), 0, OrderCancelRequested())
        received = self._marks[mark.event_id] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(CATCH_UP_TIMEOUT_S):
                await self._publisher.submit((mark,))
                await received
        except (InboxUnavailable, TimeoutError) as error:
            raise InboxUnavailable("other API processes can't be asked for the order") from error
        finally:
            del self._marks[mark.event_id]

    def works(self) -> Sequence[Coroutine[Any, Any, None]]:
        """What must run for as long as the process serves."""
        return self._publisher.run(), self._consuming.keep_channel("peers", self._receive_orders)

    async def _receive_orders(self, channel: AbstractChannel) -> None:
        name = f"ledger.api.{self._instance}-peers"
        await subscribe(channel, name, ACCEPTED_EXCHANGE, self._receive, MAX_QUEUED)
        log.info("receiving the orders that other API processes accept")
        await until_closed(channel)

    async def _receive(self, message: AbstractIncomingMessage) -> None:
        own = self._watch.head if self._watch else None
        if self._watch and own and (head := head_of(message.headers)):
            self._watch.hear(head)
            if head.ledger_id != own.ledger_id:
                return
        events, _ = decode_group(message.body)
        for event in events:
            if (mark := self._marks.get(event.event_id)) and not mark.done():
                mark.set_result(None)
            # What this process accepted is there already, or decided by now.
            elif isinstance(event.payload, OrderPlaced) and message.app_id != self._publisher.name:
                try:
                    self._pending.add(event, event.payload)
                except InboxFull as error:
                    log.warning("an order of another API process is not remembered: %s", error)
