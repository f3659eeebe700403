"""How much waits in inbox and parking queue, asked when somebody wants to know."""

import asyncio
from math import nan
from typing import Final

from aio_pika.abc import AbstractChannel

from ledger.messaging.rabbitmq import BROKER_ERRORS, open_channel, until_closed
from ledger.messaging.topology import INBOX, PARKING
from ledger.runtime.metrics import INBOX_MESSAGES, PARKING_MESSAGES
from ledger.runtime.reconnect import keep_alive

ASK_TIMEOUT_S: Final = 1.0


class Depths:
    """A connection of its own, so that asking holds up nobody's deliveries."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._channel: AbstractChannel | None = None

    async def run(self) -> None:
        """Hold the connection, for as long as the process runs."""
        await keep_alive(self._name, self._session, BROKER_ERRORS)

    async def measure(self) -> None:
        """Ask the broker; what it doesn't tell is not a number."""
        for queue, gauge in ((INBOX, INBOX_MESSAGES), (PARKING, PARKING_MESSAGES)):
            gauge.set(await self._depth(queue))

    async def _depth(self, queue: str) -> float:
        if self._channel is None:
            return nan
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                found = await self._channel.declare_queue(queue, passive=True)
        except BROKER_ERRORS:
            return nan
        return found.declaration_result.message_count or 0

    async def _session(self) -> None:
        async with open_channel(self._url, self._name, confirms=False) as channel:
            self._channel = channel
            try:
                await until_closed(channel)
            finally:
                self._channel = None
