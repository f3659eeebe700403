"""Announcements: what the projector says after each commit, and the listener of the API."""

import logging
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Final
from uuid import UUID

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from msgspec import DecodeError, Struct
from msgspec.json import Decoder, Encoder

from ledger.core.events import TYPE_OF, OrderCancelRefused, OrderFailed, Recorded, SubmissionRefused
from ledger.messaging.rabbitmq import Connection, subscribe, until_closed
from ledger.messaging.topology import ANNOUNCED_EXCHANGE

log = logging.getLogger(__name__)

MAX_WAITING: Final = 10_000


class Outcome(Struct, frozen=True):
    """What came of one submitted event, now that the views show it.

    `event_id` is the submitted event's. `type` is that of the decided event, or the submitted
    one's own where nothing had to be decided; `reason` says why it was refused, if it was.
    """

    event_id: UUID
    stream_id: UUID
    position: int
    type: str
    reason: str | None = None


class Announcement(Struct, frozen=True):
    """The views went from `after` to `position`, with these outcomes and changed products.

    An idle projector repeats where it is (`after` equal to `position`), so that whoever missed
    something learns of it.
    """

    after: int
    position: int
    outcomes: list[Outcome] = []
    products: list[UUID] = []


encode: Final = Encoder().encode
_decode = Decoder(Announcement).decode


def outcomes(events: Sequence[Recorded]) -> list[Outcome]:
    """The outcome of each submission among contiguous events, the first of which is one."""
    found: list[Outcome] = []
    for event, following in zip_longest(events, events[1:]):
        if not event.cause_position:
            event_id = event.event_id
        if following is None or not following.cause_position:
            found.append(_outcome(event, event_id))
    return found


def _outcome(event: Recorded, event_id: UUID) -> Outcome:
    refused = isinstance(event.payload, OrderFailed | OrderCancelRefused | SubmissionRefused)
    return Outcome(
        event_id,
        event.stream_id,
        event.position,
        TYPE_OF[type(event.payload)],
        event.payload.reason.value if refused else None,  # type: ignore[union-attr]
    )


class Announcements:
    """Listens to the projector, on an exclusive queue of its own.

    An announcement may be lost, here or on the way; `on_reset` tells that one may have been.
    """

    def __init__(self, connection: Connection, instance: str) -> None:
        self._connection = connection
        self._instance = instance
        self._subscribers: list[Callable[[Announcement], None]] = []
        self._resets: list[Callable[[], None]] = []
        self.position = 0
        self.connected = False

    def subscribe(self, callback: Callable[[Announcement], None]) -> None:
        """Call this with each announcement, in order."""
        self._subscribers.append(callback)

    def on_reset(self, callback: Callable[[], None]) -> None:
        """Call this whenever something may have been missed: what was built from it is stale."""
        self._resets.append(callback)

    async def run(self) -> None:
        """Listen, for as long as the process runs."""
        await self._connection.keep_channel("announcements", self._listen)

    async def _listen(self, channel: AbstractChannel) -> None:
        name = f"ledger.api.{self._instance}"
        await subscribe(channel, name, ANNOUNCED_EXCHANGE, self._hear, MAX_WAITING)
        self._reset(connected=True)
        try:
            await until_closed(channel)
        finally:
            self._reset(connected=False)

    def _reset(self, *, connected: bool) -> None:
        self.connected = connected
        for callback in self._resets:
            callback()

    async def _hear(self, message: AbstractIncomingMessage) -> None:
        try:
            announcement = _decode(message.body)
        except DecodeError:
            log.exception("announcements: can't read one; is another version running?")
            return
        if announcement.after > self.position:
            self._reset(connected=True)
        self.position = max(self.position, announcement.position)
        for callback in self._subscribers:
            callback(announcement)
