"""How a command submits events to the inbox, and waits until the views show them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from cli.settings import Settings
from ledger.eventlog.identity import HeadWatch
from ledger.eventlog.records import Submitted
from ledger.messaging.publisher import InboxUnavailable, Publisher
from ledger.messaging.rabbitmq import Connection
from ledger.runtime.reconnect import first_to_end

SHOWN_TIMEOUT_S: Final = 20.0
POLL_S: Final = 0.05


class NotShown(Exception):
    """It is in the inbox, but the views did not show it in time: do writer and projector run?"""


async def submit(
    settings: Settings,
    engine: AsyncEngine,
    source: str,
    events: Sequence[Submitted],
    is_shown: Callable[[], Awaitable[bool]],
    role: str = "api",
) -> None:
    """Append events to the inbox and wait until the views show them.

    Only a writer that has the head which `engine` leads to now decides them. Raises
    InboxUnavailable, NotShown.
    """
    name = source.strip("/")
    watch = HeadWatch(engine)
    await watch.check()
    user_id, _ = settings.amqp_account(role)
    connection = Connection(settings.amqp_url(role), name)
    publisher = Publisher(connection, source, name, watch=watch, user_id=user_id)

    async def is_connected() -> bool:
        return publisher.connected

    async def work() -> None:
        # A submission without a connection fails at once: wait for the first one.
        await _wait_until(is_connected, InboxUnavailable("the broker is away"))
        await publisher.submit(events)
        await wait_until_shown(is_shown)

    await first_to_end(publisher.run(), work())


async def wait_until_shown(is_shown: Callable[[], Awaitable[bool]]) -> None:
    """Poll until the views show an event; raises NotShown after SHOWN_TIMEOUT_S."""
    await _wait_until(is_shown, NotShown(NotShown.__doc__))


async def _wait_until(is_true: Callable[[], Awaitable[bool]], error: Exception) -> None:
    deadline = time.monotonic() + SHOWN_TIMEOUT_S
    while not await is_true():
        if time.monotonic() > deadline:
            raise error
        await asyncio.sleep(POLL_S)
