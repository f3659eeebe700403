"""Other API processes: each tells the others what it accepted, so that a GET anywhere finds it."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, Final
from uuid import UUID, uuid4

from aio_pika.abc import AbstractIncomingMessage

from api.pending import Pending
from ledger.core.events import OrderCancelRequested, OrderPlaced
from ledger.eventlog.codec import decode_group
from ledger.eventlog.records import Submitted
from ledger.messaging.notifications import listening
from ledger.messaging.publisher import InboxFull, InboxUnavailable, Publisher
from ledger.messaging.rabbitmq import BROKER_ERRORS, until_closed
from ledger.messaging.topology import ACCEPTED_EXCHANGE
from ledger.runtime.reconnect import keep_alive

log = logging.getLogger(__name__)

MAX_WAITING: Final = 100_000
CATCH_UP_TIMEOUT_S: Final = 1.0


class Peers:
    """Tells and hears of accepted orders.

    An order is told after the inbox has it and before its client is answered. What this process
    hears stands in one queue, so a mark that it sends itself comes after all that was told before.
    """

    def __init__(self, url: str, instance: str) -> None:
        self._url = url
        self._instance = instance
        self._publisher = Publisher(url, "/api", f"{instance}-peers", ACCEPTED_EXCHANGE)
        self._marks: dict[UUID, asyncio.Future[None]] = {}
        self._pending: Pending | None = None

    def hear_for(self, pending: Pending) -> None:
        """Keep here what others accepted."""
        self._pending = pending

    async def tell(self, events: Sequence[Submitted]) -> None:
        """Tell the others. The events are accepted by now, so a failure is only logged."""
        try:
            await self._publisher.submit(events)
        except InboxUnavailable as error:
            log.warning("other API processes were not told of %d orders: %s", len(events), error)

    async def catch_up(self) -> None:
        """Return when this process has heard of all that any of them answered until now.

        Raises InboxUnavailable when that can't be known in time.
        """
        mark = Submitted(uuid4(), uuid4(), 0, OrderCancelRequested())
        heard = self._marks[mark.event_id] = asyncio.get_running_loop().create_future()
        try:
            await self._publisher.submit((mark,))
            async with asyncio.timeout(CATCH_UP_TIMEOUT_S):
                await heard
        except TimeoutError as error:
            raise InboxUnavailable("other API processes can't be asked for the order") from error
        finally:
            del self._marks[mark.event_id]

    def works(self) -> Sequence[Coroutine[Any, Any, None]]:
        """What must run for as long as the process serves."""
        return self._publisher.run(), keep_alive("peers", self._listen, BROKER_ERRORS)

    async def _listen(self) -> None:
        name = f"ledger.api.{self._instance}-peers"
        async with listening(
            self._url, name, ACCEPTED_EXCHANGE, self._hear, MAX_WAITING
        ) as channel:
            log.info("hears from now on of orders that other API processes accept")
            await until_closed(channel)

    async def _hear(self, message: AbstractIncomingMessage) -> None:
        events, _ = decode_group(message.body)
        for event in events:
            if (mark := self._marks.get(event.event_id)) and not mark.done():
                mark.set_result(None)
            elif isinstance(event.payload, OrderPlaced) and message.app_id != self._publisher.name:
                self._keep(event, event.payload)

    def _keep(self, event: Submitted, placed: OrderPlaced) -> None:
        if self._pending is None:
            return
        try:
            self._pending.add(event, placed)
        except InboxFull as error:
            log.warning("an order that another API process accepted is not kept: %s", error)
