"""Hints: small messages that wake a reader early. They may be lost; the tables may not."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import uuid4

from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractIncomingMessage

from ledger.messaging.rabbitmq import BROKER_ERRORS, CALL_TIMEOUT_S, open_channel, until_closed
from ledger.runtime.reconnect import first_to_end, keep_alive

log = logging.getLogger(__name__)

MAX_WAITING: Final = 1_000


class Hints:
    """Publishes hints to one exchange without waiting for confirms.

    `tell` never blocks and never fails; with the broker away, or too slow, hints are dropped.
    """

    def __init__(self, url: str, exchange: str, name: str) -> None:
        self._url = url
        self._exchange = exchange
        self._name = name
        self._waiting: asyncio.Queue[bytes] = asyncio.Queue(MAX_WAITING)

    def tell(self, body: bytes) -> None:
        """Publish this soon."""
        try:
            self._waiting.put_nowait(body)
        except asyncio.QueueFull:
            log.debug("%s: a hint is dropped", self._name)

    async def run(self) -> None:
        """Hold the connection, for as long as the process runs."""
        await keep_alive(self._name, self._session, BROKER_ERRORS)

    async def _session(self) -> None:
        async with open_channel(self._url, self._name, confirms=False) as channel:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                exchange = await channel.get_exchange(self._exchange)
            await first_to_end(self._publish(exchange), until_closed(channel))

    async def _publish(self, exchange: AbstractExchange) -> None:
        while True:
            body = await self._waiting.get()
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await exchange.publish(Message(body), routing_key="", mandatory=False)


@asynccontextmanager
async def listening(
    url: str,
    name: str,
    exchange: str,
    hear: Callable[[AbstractIncomingMessage], Awaitable[Any]],
    max_waiting: int,
) -> AsyncIterator[AbstractChannel]:
    """Hear what is told to an exchange, on an exclusive queue and a connection of their own.

    With more than `max_waiting` messages unheard the oldest are dropped. The queue's name begins
    with `name`, which the account must be allowed to declare. Raises one of BROKER_ERRORS.
    """
    async with open_channel(url, name, confirms=False) as channel:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            queue = await channel.declare_queue(
                f"{name}.{uuid4().hex[:8]}",
                exclusive=True,
                auto_delete=True,
                arguments={"x-max-length": max_waiting},
            )
            await queue.bind(exchange)
            await queue.consume(hear, no_ack=True)
        yield channel
