"""Announcements: what the projector says after each commit, and the listener of the API."""

import logging
from collections.abc import Callable
from typing import Final
from uuid import UUID

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from msgspec import DecodeError, Struct
from msgspec.json import Decoder, Encoder

from ledger.core.events import TYPE_OF, OrderCancelRefused, OrderFailed, SubmissionRefused
from ledger.eventlog.codec import payload_of, uuid_of
from ledger.eventlog.decisions import Decision
from ledger.eventlog.identity import HeadWatch, SeenHead
from ledger.messaging.rabbitmq import Connection, subscribe, until_closed
from ledger.messaging.topology import ANNOUNCED_EXCHANGE

log = logging.getLogger(__name__)

MAX_WAITING: Final = 10_000


class Outcome(Struct, frozen=True):
    """The outcome of one submitted event, which the views show now.

    `event_id` is the submitted event's. `type` is that of the decided event, or the submitted
    one's own where nothing had to be decided; `reason` says why it was refused, if it was.
    """

    event_id: UUID
    stream_id: UUID
    position: int
    type: str
    reason: str | None = None


class Announcement(Struct, frozen=True):
    """The views went from `after` to `position`, with these outcomes.

    `products` are the keys of the rows that changed in announced views. An idle projector repeats
    where it is (`after` equal to `position`), so that a listener notices what it missed.
    `ledger_id` and the `hash` at `position` tell of which ledger it speaks, where they are known;
    `foreign` says that the projector knows of another one on this virtual host.
    """

    after: int
    position: int
    outcomes: list[Outcome] = []
    products: list[UUID] = []
    ledger_id: UUID | None = None
    hash: bytes = b""
    foreign: str | None = None

    @property
    def seen(self) -> SeenHead | None:
        """The head that it names, if it names one."""
        if self.ledger_id is None or not self.hash:
            return None
        return SeenHead(self.ledger_id, self.position, self.hash)


_WITH_REASON: Final = tuple(
    TYPE_OF[payload] for payload in (OrderFailed, OrderCancelRefused, SubmissionRefused)
)
encode_announcement: Final = Encoder().encode
_decode = Decoder(Announcement).decode


def outcome_of(decision: Decision) -> Outcome:
    """The outcome of a decision."""
    record = decision.outcome
    return Outcome(
        uuid_of(decision.cause.event_id),
        uuid_of(record.stream_id),
        record.position,
        record.type,
        payload_of(record).reason.value if record.type in _WITH_REASON else None,  # type: ignore[union-attr]
    )


class Announcements:
    """Listens to the projector, on an exclusive queue of its own.

    An announcement may get lost, here or on the way: then the callbacks of `on_reset` are called.
    `watch` hears of every head that is announced. What another ledger's projector says, as its id
    tells, goes to nobody else.
    """

    def __init__(
        self, connection: Connection, instance: str, watch: HeadWatch | None = None
    ) -> None:
        self._watch = watch
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
        """Call this whenever an announcement may have been missed: caches are stale then."""
        self._resets.append(callback)

    async def run(self) -> None:
        """Listen, for as long as the process runs."""
        await self._connection.keep_channel("announcements", self._listen)

    async def _listen(self, channel: AbstractChannel) -> None:
        name = f"ledger.api.{self._instance}"
        await subscribe(channel, name, ANNOUNCED_EXCHANGE, self._receive, MAX_WAITING)
        self._reset(connected=True)
        try:
            await until_closed(channel)
        finally:
            self._reset(connected=False)

    def forget(self) -> None:
        """Forget what was announced: the ledger has gone back."""
        self.position = 0
        self._reset(connected=self.connected)

    def _reset(self, *, connected: bool) -> None:
        self.connected = connected
        for callback in self._resets:
            callback()

    async def _receive(self, message: AbstractIncomingMessage) -> None:
        try:
            announcement = _decode(message.body)
        except DecodeError:
            log.exception("announcements: can't read one; is another version running?")
            return
        if self._watch:
            self._watch.hear(announcement.seen)
            self._watch.hear_of_foreign(announcement.foreign)
            known = self._watch.head
            if announcement.ledger_id and known and announcement.ledger_id != known.ledger_id:
                return
        if announcement.after > self.position:
            self._reset(connected=True)
        self.position = max(self.position, announcement.position)
        for callback in self._subscribers:
            callback(announcement)
