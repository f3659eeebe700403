"""How a command submits: through the inbox, and then it waits until the views show it."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from tenacity import AsyncRetrying, RetryCallState, retry_if_result, stop_after_delay, wait_fixed

from cli.settings import Settings
from ledger.eventlog.records import Submitted
from ledger.messaging.publisher import InboxUnavailable, Publisher
from ledger.messaging.rabbitmq import Connection
from ledger.runtime.reconnect import first_to_end

SHOWN_TIMEOUT_S: Final = 20.0


class NotShown(Exception):
    """It is in the inbox, but the views did not show it in time: do writer and projector run?"""


async def submit(
    settings: Settings,
    source: str,
    events: Sequence[Submitted],
    is_shown: Callable[[], Awaitable[bool]],
) -> None:
    """Append events to the inbox and wait until they are shown.

    Raises InboxUnavailable, NotShown.
    """
    name = source.strip("/")
    publisher = Publisher(Connection(settings.amqp_url("api"), name), source, name)

    async def is_connected() -> bool:
        return publisher.connected

    async def work() -> None:
        await _until(is_connected, InboxUnavailable("the broker is away"))
        await publisher.submit(events)
        await until_shown(is_shown)

    await first_to_end(publisher.run(), work())


async def until_shown(is_shown: Callable[[], Awaitable[bool]]) -> None:
    """Ask again until the answer is yes; raises NotShown at the deadline."""
    await _until(is_shown, NotShown(" ".join((NotShown.__doc__ or "").split())))


async def _until(is_so: Callable[[], Awaitable[bool]], error: Exception) -> None:
    def give_up(_: RetryCallState) -> None:
        raise error

    retrying = AsyncRetrying(
        retry=retry_if_result(lambda yes: not yes),
        wait=wait_fixed(0.05),
        stop=stop_after_delay(SHOWN_TIMEOUT_S),
        retry_error_callback=give_up,
    )
    await retrying(is_so)
