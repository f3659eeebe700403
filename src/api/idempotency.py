"""`Idempotency-Key`: the same key makes the same event, so a retry can't be decided twice.

Ids are derived from the key, and the writer decides an event id once for ever. What is kept here
only makes retries quick and complete; losing it loses no promise.
"""

import re
import time
from typing import Final, NamedTuple
from uuid import UUID, uuid5

from msgspec import Struct
from starlette.requests import Request
from uuid_utils.compat import uuid7

from api.problems import Problem, invalid
from ledger.core.events import Submitted, SubmittedPayload
from projections.announcements import Announcement, Outcome

MAX_KEY: Final = 255
MAX_KEPT: Final = 10_000
_VISIBLE: Final = re.compile(rb"[!-~]{1,%d}" % MAX_KEY).fullmatch
_NAMESPACE: Final = UUID("5d0f4f0e-6f0c-5a6b-9a57-3f8f4e6c1d27")


class Draft(NamedTuple):
    """An event that is to be submitted, and whether its id comes from a client's key."""

    event: Submitted
    keyed: bool


class Kept(Struct):
    """What is known of an event whose id comes from a key."""

    event: Submitted
    confirmed: bool = False
    outcome: Outcome | None = None


def draft(
    request: Request, route: str, payload: SubmittedPayload, stream_id: UUID | None = None
) -> Draft:
    """The event of a request; without `stream_id` it starts a new stream."""
    now_us = time.time_ns() // 1000
    key = _key(request)
    if key is None:
        return Draft(Submitted(uuid7(), stream_id or uuid7(), now_us, payload), False)
    name = f"{route}\n{stream_id or ''}\n{key}\n"
    event_id, new_id = uuid5(_NAMESPACE, f"{name}event"), uuid5(_NAMESPACE, f"{name}resource")
    return Draft(Submitted(event_id, stream_id or new_id, now_us, payload), True)


def _key(request: Request) -> str | None:
    value: bytes | None = dict(request.scope["headers"]).get(b"idempotency-key")
    if value is None:
        return None
    if not _VISIBLE(value):
        raise invalid(
            "Idempotency-Key", f"must be 1 to {MAX_KEY} visible ASCII characters", MAX_KEY
        )
    return value.decode("ascii")


def key_reused() -> Problem:
    """The key came before, with another body."""
    return Problem("key-reused", "this Idempotency-Key came with another body: use a new key")


class Keys:
    """The events of recent keys, the oldest forgotten first."""

    def __init__(self) -> None:
        self._kept: dict[UUID, Kept] = {}

    def knows(self, event: Submitted) -> bool:
        """Whether the event's key came before, as far as this process remembers."""
        return event.event_id in self._kept

    def claim(self, event: Submitted) -> Kept:
        """What is kept of the event's key; raises Problem when the body was another one."""
        kept = self._kept.get(event.event_id)
        if kept is None:
            if len(self._kept) >= MAX_KEPT:
                del self._kept[next(iter(self._kept))]
            kept = self._kept[event.event_id] = Kept(event)
        if kept.event.payload != event.payload:
            raise key_reused()
        return kept

    def announced(self, announcement: Announcement) -> None:
        """Keep the outcomes of the events that are kept."""
        if self._kept:
            for outcome in announcement.outcomes:
                if kept := self._kept.get(outcome.event_id):
                    kept.outcome = outcome
