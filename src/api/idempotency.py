"""`Idempotency-Key`: the same key makes the same events, so a retry can't be decided twice.

Ids are derived from the key, and the writer decides an event id once for ever; so the ledger is
what remembers. What is kept here only makes retries quick; losing it loses no promise.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple
from uuid import UUID, uuid5

from msgspec import Struct
from msgspec.structs import replace
from starlette.requests import Request
from uuid_utils.compat import uuid7

from api.auth.guard import owner_of, submitter_of
from api.middleware import traceparent_of
from api.parameters import MAX_IDEMPOTENCY_KEY
from api.problems import Problem, invalid
from ledger.core.events import NO_NAME, CustomerRegistered, SubmittedPayload
from ledger.eventlog.records import Submitted
from ledger.runtime.timestamps import now_us
from projections.announcements import Outcome
from projections.feed import Earlier

MAX_KEPT: Final = 10_000
_VISIBLE: Final = re.compile(rb"[!-~]{1,%d}" % MAX_IDEMPOTENCY_KEY).fullmatch
_NAMESPACE: Final = UUID("5d0f4f0e-6f0c-5a6b-9a57-3f8f4e6c1d27")


class Draft(NamedTuple):
    """The events of one request, in order. `ids` asks the ledger for what its key made before.

    It is empty without a key; with one it is the ids of the events and, of a batch, the id that
    one more event would have: where the ledger has that, the body was a longer one.
    """

    events: tuple[Submitted, ...]
    ids: tuple[UUID, ...] = ()

    @property
    def event(self) -> Submitted:
        """The only one, where a request makes one."""
        return self.events[0]


class Kept(Struct):
    """What is known of the events of a key. `outcomes` are there once the ledger told of them."""

    events: tuple[Submitted, ...]
    size: int
    confirmed: bool = False
    outcomes: tuple[Outcome, ...] = ()
    trying: asyncio.Task[None] | None = None

    def are(self, events: Sequence[Submitted]) -> bool:
        """Whether a body that makes these events is the one that came with the key.

        A name that was erased can't be compared; then the rest of the body decides.
        """
        return len(self.events) == len(events) and all(map(_are_one, self.events, events))

    def learn(self, ids: Sequence[UUID], found: Mapping[UUID, Earlier]) -> None:
        """Take over what the ledger has of the key: whatever came here, that is what counts."""
        recorded = [found[event_id] for event_id in ids if event_id in found]
        if recorded:
            self.events = tuple(earlier.event for earlier in recorded)
            self.outcomes = tuple(earlier.outcome for earlier in recorded)
            self.confirmed = True


def _are_one(kept: Submitted, event: Submitted) -> bool:
    payload = event.payload
    if isinstance(payload, CustomerRegistered) and _is_nameless(kept.payload):
        payload = replace(payload, username=NO_NAME)
    return _wish(kept, kept.payload) == _wish(event, payload)


def _is_nameless(payload: SubmittedPayload) -> bool:
    return isinstance(payload, CustomerRegistered) and payload.username == NO_NAME


def _wish(event: Submitted, payload: SubmittedPayload) -> tuple[UUID, SubmittedPayload, bool]:
    """What of an event the body decides."""
    return event.stream_id, payload, event.atomic_id is not None


def draft(
    request: Request, route: str, payload: SubmittedPayload, stream_id: UUID | None = None
) -> Draft:
    """The event of a request; without `stream_id` it starts a new stream."""
    occurred_at_us, submitter = now_us(), submitter_of(request)
    trace = traceparent_of(request.scope)
    name = _name(request, route, stream_id)
    if name is None:
        event_id, new_id = uuid7(), uuid7()
    else:
        event_id, new_id = _derived(name)
    event = Submitted(
        event_id,
        stream_id or new_id,
        occurred_at_us,
        payload,
        submitter=submitter,
        traceparent=trace,
    )
    return Draft((event,), (event_id,) if name else ())


def draft_batch(
    request: Request, route: str, payloads: Sequence[SubmittedPayload], *, atomic: bool
) -> Draft:
    """The events of a request that starts many streams, all or none of them if `atomic`."""
    occurred_at_us, submitter = now_us(), submitter_of(request)
    trace = traceparent_of(request.scope)
    name, atomic_id = _name(request, route, None), uuid7() if atomic else None
    ids = [_derived(f"{name}{i}\n") if name else (uuid7(), uuid7()) for i in range(len(payloads))]
    events = tuple(
        Submitted(
            *ids[i],
            occurred_at_us,
            payload,
            submitter=submitter,
            traceparent=trace,
            atomic_id=atomic_id,
        )
        for i, payload in enumerate(payloads)
    )
    if name is None:
        return Draft(events)
    one_more, _ = _derived(f"{name}{len(payloads)}\n")
    return Draft(events, (*(event_id for event_id, _ in ids), one_more))


def _derived(name: str) -> tuple[UUID, UUID]:
    return uuid5(_NAMESPACE, f"{name}event"), uuid5(_NAMESPACE, f"{name}resource")


def _name(request: Request, route: str, stream_id: UUID | None) -> str | None:
    """What the ids of a keyed request are derived from; each submitter's keys are its own."""
    value: bytes | None = dict(request.scope["headers"]).get(b"idempotency-key")
    if value is None:
        return None
    if not _VISIBLE(value):
        raise invalid(
            "Idempotency-Key",
            f"must be 1 to {MAX_IDEMPOTENCY_KEY} visible ASCII characters",
            MAX_IDEMPOTENCY_KEY,
        )
    return f"{owner_of(request)}{route}\n{stream_id or ''}\n{value.decode('ascii')}\n"


class Keys:
    """What recent keys made, the oldest forgotten first."""

    def __init__(self) -> None:
        self._kept: dict[UUID, Kept] = {}
        self._size = 0

    def claim(self, events: tuple[Submitted, ...]) -> Kept:
        """What is kept of the events' key."""
        kept = self._kept.get(events[0].event_id)
        if kept is None:
            kept = self._kept[events[0].event_id] = Kept(events, len(events))
            self._size += kept.size
            while self._size > MAX_KEPT and len(self._kept) > 1:
                self._forget(next(iter(self._kept)))
        return kept

    def refuse_other(self, kept: Kept, events: tuple[Submitted, ...]) -> None:
        """Raises Problem where the key came with another body.

        What the ledger had may then be only a part, so the next one has to ask the ledger anew.
        """
        if kept.are(events):
            return
        if kept.outcomes and self._kept.get(events[0].event_id) is kept:
            self._forget(events[0].event_id)
        raise Problem("key-reused", "this Idempotency-Key came with another body: use a new one")

    def _forget(self, first: UUID) -> None:
        self._size -= self._kept.pop(first).size


async def once(kept: Kept, attempt: Callable[[], Awaitable[None]]) -> bool:
    """Await one attempt that all who come meanwhile share; whether this call began it."""
    begins = kept.trying is None
    if kept.trying is None:
        kept.trying = asyncio.create_task(_attempt(kept, attempt))
    await asyncio.shield(kept.trying)
    return begins


async def _attempt(kept: Kept, attempt: Callable[[], Awaitable[None]]) -> None:
    try:
        await attempt()
    finally:
        kept.trying = None
