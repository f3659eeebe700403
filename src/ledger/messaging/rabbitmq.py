"""Connections to RabbitMQ: plain ones, each with its deadlines, each closed for certain."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import aio_pika
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import CONNECTION_EXCEPTIONS

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 5.0
CALL_TIMEOUT_S: Final = 5.0
CLOSE_TIMEOUT_S: Final = 2.0
HEARTBEAT_S: Final = 10

BROKER_ERRORS: Final = CONNECTION_EXCEPTIONS
"""What aio-pika raises when the broker or the way to it fails; TimeoutError is among them."""


@asynccontextmanager
async def open_channel(url: str, name: str, *, confirms: bool) -> AsyncIterator[AbstractChannel]:
    """A channel on a connection of its own; with `confirms` a publish waits for the broker.

    `name` is what the operator sees in the broker's list of connections. Raises one of
    BROKER_ERRORS when the broker is away.
    """
    connection = await aio_pika.connect(
        f"{url}?heartbeat={HEARTBEAT_S}&name={name}", timeout=CONNECT_TIMEOUT_S
    )
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            channel = await connection.channel(
                publisher_confirms=confirms, on_return_raises=confirms
            )
        yield channel
    finally:
        await _close(connection)


async def _close(connection: aio_pika.abc.AbstractConnection) -> None:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await connection.close()
    except BROKER_ERRORS as error:
        log.debug("closing a broken connection: %r", error)


async def until_closed(channel: AbstractChannel) -> None:
    """Wait for the channel's end, whoever brings it about; raises ConnectionError then."""
    await channel.closed()
    raise ConnectionError("the broker closed the channel")
