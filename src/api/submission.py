"""Submissions: the events of a request on their way to the ledger, and the answer about them.

A submission is in one of four states:

    new ──publish──> confirming ──ack──> confirmed ──commit──> decided
     ^                   │
     └─refused, or no ack┘

new         The handler has made the events; nothing has left this process. A check may still raise,
            and so may the publisher where it can't publish them soon: 503, `accepted: "no"`.
confirming  The events are published. If the broker refuses them it is 503 with "no", too. Without
            an ack, after all patience, it is "unknown", since they may be in the inbox for all
            that: only with an Idempotency-Key is a retry safe then.
confirmed   The broker has them on disk, so they will be decided, whatever happens. Who does not
            wait, or not long enough, gets 202 and the Location where to look.
decided     The ledger has them, with the outcome. A refusal of the fold is answered as a Problem.

With an Idempotency-Key the same request makes events with the same ids, on every process and for
ever, and the writer decides an event id once. So the ledger is what remembers; what a process
remembers besides (`RememberedKey`) makes retries quick, and losing it loses no promise. The cases:

replayed      This process confirmed the key's events, or the ledger has them. Nothing is published,
              and the answer says `Idempotency-Replayed: true`.
simultaneous  One request publishes; the others share its confirm, or its failure.
other body    The key's events, here or in the ledger, are not those of this body: 422.
lost answer   The client never saw the answer, or got 503. If the events were confirmed, the retry
              is replayed; if not, it publishes the same ids, and the writer leaves out repeats.
elsewhere     Another process has the key, too. Both may be confirmed, with different bodies, and
              the writer decides the first. So an outcome alone does not tell whose body was
              decided: who waits reads it from the ledger, with the event, and is refused if it is
              another's.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Generic, NamedTuple
from uuid import UUID, uuid5

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.responses import Response
from uuid_utils.compat import uuid7

from api.auth.guard import principal_of
from api.http.middleware import traceparent_of
from api.http.parameters import IDEMPOTENCY_KEY, IF_MATCH, PREFER, Call
from api.http.preconditions import etag_of
from api.http.problems import Problem, refused
from api.http.responses import JSON, encode, position_header, reply
from api.reads.consistent_reads import ConsistentReads, OutcomeFuture, Query, T, Waiters
from api.reads.pending import Peers, PendingOrders
from ledger.core.events import (
    MAX_DESCRIPTION,
    MAX_NAME,
    MAX_USERNAME,
    NO_NAME,
    Conditional,
    CustomerRegistered,
    OrderPlaced,
    ProductListed,
    Reason,
    SubmittedPayload,
)
from ledger.core.names import BadText, clean_description, clean_name
from ledger.eventlog.codec import decode_submitted
from ledger.eventlog.decisions import Decision
from ledger.eventlog.reader import EventReader
from ledger.eventlog.records import Submitted
from ledger.messaging.publisher import InboxUnavailable, Publisher
from ledger.runtime.cache import SingleFlight
from ledger.runtime.database import DATABASE_ERRORS
from ledger.runtime.timestamps import now_us
from projections.announcements import Outcome, outcome_of
from projections.queries import QUERY_TIMEOUT_S, Views, ViewsUnavailable
from projections.views.projection import KeyedProjection, Row

DEFAULT_WAIT_S: Final = 2
# Events of recent keys that one process remembers.
MAX_REMEMBERED: Final = 10_000
# Short, because the publish that follows has a deadline of its own.
KEY_LOOKUP_TIMEOUT_S: Final = 0.4

# Ids are derived in it for ever: with another one, a retry after an upgrade would be decided twice.
_NAMESPACE: Final = UUID("5d0f4f0e-6f0c-5a6b-9a57-3f8f4e6c1d27")
_REFUSALS: Final = frozenset({"submission.refused", "order.cancel-refused"})

Check = Callable[[], Awaitable[None]]


class Preference(Struct, frozen=True):
    """How long a client waits for the decision, and which preferences it stated."""

    wait_s: int
    wait: bool = False
    respond_async: bool = False

    def applied(self, decided: bool) -> dict[str, str]:
        """The header that names the preference that was stated and honoured (RFC 7240, 3)."""
        if self.wait and (decided or not self.wait_s):
            return {"Preference-Applied": f"wait={self.wait_s}"}
        return {"Preference-Applied": "respond-async"} if self.respond_async else {}


def preference_of(call: Call[Any], default_wait_s: int) -> Preference:
    """What the request asks for in `Prefer`, or the default of its operation."""
    stated = call.header(PREFER)
    if stated is None:
        return Preference(default_wait_s)
    if stated.wait_s is not None:
        return Preference(stated.wait_s, True, stated.respond_async)
    return Preference(0 if stated.respond_async else default_wait_s, False, stated.respond_async)


class IdempotencyKey(NamedTuple):
    """The key of a request, with all that sets it apart: sender, route, stream, header.

    `is_batch`: the request makes many events, which are numbered. `quoted` is the name that a
    key in quotes had while those still were a part of it.
    """

    name: str
    is_batch: bool
    quoted: str | None = None

    def derived_ids(self, index: int = 0) -> tuple[UUID, UUID]:
        """The id of an event of the request, and that of a stream it may start."""
        name = f"{self.name}{index}\n" if self.is_batch else self.name
        return uuid5(_NAMESPACE, f"{name}event"), uuid5(_NAMESPACE, f"{name}resource")

    def lookup_ids(self, events: Sequence[Submitted]) -> list[list[UUID]]:
        """The event ids by which the ledger tells what the key made before.

        Where it has some of the first list, the others say nothing.
        """
        ids = [event.event_id for event in events]
        if self.is_batch:
            # Where the ledger has one event more, the key came with a longer batch.
            ids.append(self.derived_ids(len(events))[0])
        if self.quoted is None:
            return [ids]
        former = IdempotencyKey(self.quoted, self.is_batch)
        return [[former.derived_ids(i)[0] for i in range(len(ids))], ids]


def idempotency_key(
    call: Call[Any], route: str, stream_id: UUID | None = None, *, is_batch: bool = False
) -> IdempotencyKey | None:
    """The `Idempotency-Key` of a request, if it has one; each submitter's keys are its own.

    `route` and `stream_id` keep apart what one key is used for; they must not change. Raises
    Problem for a key that can't be used.
    """
    value = call.header(IDEMPOTENCY_KEY)
    if value is None:
        return None
    sender = principal_of(call.request)
    # Two clients may use the same key.
    owner = f"{sender.submitter}\n{sender.customer_id or ''}\n" if sender.submitter else ""
    name = f"{owner}{route}\n{stream_id or ''}\n"
    given = call.headers[IDEMPOTENCY_KEY.wire_name].decode().strip()
    quoted = None if given == value else f"{name}{given}\n"
    return IdempotencyKey(f"{name}{value}\n", is_batch, quoted)


def new_ids(key: IdempotencyKey | None, index: int = 0) -> tuple[UUID, UUID]:
    """Ids for an event and for a stream: derived from the key, or random without one."""
    return key.derived_ids(index) if key else (uuid7(), uuid7())


class Resource(NamedTuple, Generic[Row]):
    """What the event of a request is about, and so how the request is answered.

    `view` shows it; `show` is the answer to a client that waited for the decision, `accepted` the
    one to a client that did not, with the row where a replay finds it decided. `failure` is the
    problem of a row that is there and is not what the client wanted. `default_wait_s`: how long a
    client waits for the decision that does not say.
    """

    path: str
    view: KeyedProjection[Row]
    show: Callable[[Row], Struct]
    accepted: Callable[[Submitted, Row | None], Struct]
    default_wait_s: int = DEFAULT_WAIT_S
    failure: Callable[[Row], Problem | None] = lambda _: None

    def representation(self, row: Row) -> tuple[bytes, str]:
        """The body that shows a row, and its ETag."""
        body = encode(self.show(row))
        return body, etag_of(position_of(row), body)


def position_of(row: Struct) -> int:
    """The position of the event that last changed the row of a view."""
    position: int = row.position  # type: ignore[attr-defined]  # every view has it
    return position


class RememberedKey:
    """The events of an idempotency key and how far they are, as far as this process knows.

    `confirmed`: the inbox has them. `outcome` is that of the last event, once the ledger told it.
    """

    def __init__(self, events: tuple[Submitted, ...]) -> None:
        self.events = events
        self.size = len(events)
        self.confirmed = False
        self.outcome: Outcome | None = None

    def has_body_of(self, events: Sequence[Submitted]) -> bool:
        """Whether a body that makes these events is the one that came with the key."""
        return len(self.events) == len(events) and all(map(_same_body, self.events, events))

    def learn(
        self, decisions: Sequence[Decision], encryption_keys: Mapping[bytes, bytes | None]
    ) -> None:
        """Replace what came here by what the ledger has of the key: that is what was decided."""
        if decisions:
            self.events = tuple(
                decode_submitted(decision.cause, encryption_keys) for decision in decisions
            )
            self.outcome = outcome_of(decisions[-1])
            self.confirmed = True


def _same_body(remembered: Submitted, event: Submitted) -> bool:
    payload, before = event.payload, remembered.payload
    if isinstance(payload, CustomerRegistered) and isinstance(before, CustomerRegistered):
        if before.username == NO_NAME:
            # A name that was erased since can't be compared; the rest of the body decides.
            payload = replace(payload, username=NO_NAME)
        else:
            before = replace(before, username=_as_now(clean_name, before.username, MAX_USERNAME))
    elif isinstance(payload, ProductListed) and isinstance(before, ProductListed):
        before = replace(
            before,
            name=_as_now(clean_name, before.name, MAX_NAME),
            description=_as_now(clean_description, before.description, MAX_DESCRIPTION),
        )
    return (
        # What a key in quotes made before these were read as such is a stream of another id.
        (remembered.stream_id == event.stream_id or remembered.event_id != event.event_id)
        and before == payload
        # Atomic ids are random; whether a batch is atomic is in its body.
        and (remembered.atomic_id is None) == (event.atomic_id is None)
    )


def _as_now(clean: Callable[[str, int], str], text: str, max_length: int) -> str:
    """A text that is recorded, as the API would take it now; the same body is still the same."""
    try:
        return clean(text, max_length)
    except BadText:
        return text


class RememberedKeys:
    """The idempotency keys of recent requests, the oldest forgotten first."""

    def __init__(self) -> None:
        self._by_first_id: dict[UUID, RememberedKey] = {}
        self._event_count = 0

    def remember(self, events: tuple[Submitted, ...]) -> RememberedKey:
        """The entry of the key that these events were made by, a new one if there is none."""
        remembered = self._by_first_id.get(events[0].event_id)
        if remembered is None:
            remembered = self._by_first_id[events[0].event_id] = RememberedKey(events)
            # Bounded by events, not by keys: a key may have made a thousand.
            self._event_count += remembered.size
            while self._event_count > MAX_REMEMBERED and len(self._by_first_id) > 1:
                self._forget(next(iter(self._by_first_id)))
        return remembered

    def refuse_other_body(self, remembered: RememberedKey, events: tuple[Submitted, ...]) -> None:
        """Raises Problem where the key came with another body."""
        if remembered.has_body_of(events):
            return
        first_id = events[0].event_id
        if remembered.outcome and self._by_first_id.get(first_id) is remembered:
            # What was learned is as long as the body that asked, and one event more. After a
            # shorter batch it is only a part, for which the right one must not be refused.
            self._forget(first_id)
        raise Problem(
            "key-reused", "this Idempotency-Key came with another body or If-Match: use a new one"
        )

    def _forget(self, first_id: UUID) -> None:
        self._event_count -= self._by_first_id.pop(first_id).size


class Submission(Struct, frozen=True):
    """Events that are confirmed, and the outcome of the last one if it is known to be decided."""

    events: tuple[Submitted, ...]
    outcome: Outcome | None
    preference: Preference
    replayed: bool = False

    def headers(self, decided: bool) -> dict[str, str]:
        """The headers about key and preference; `decided`: the answer shows the decision."""
        headers = self.preference.applied(decided)
        if self.replayed:
            headers["Idempotency-Replayed"] = "true"
        return headers


@dataclass(eq=False)
class Submissions:
    """The submissions of one API process."""

    publisher: Publisher
    pending: PendingOrders
    peers: Peers | None
    waiters: Waiters
    reads: ConsistentReads
    views: Views
    engine: AsyncEngine

    def __post_init__(self) -> None:
        self._keys = RememberedKeys()
        self._confirming = SingleFlight[RememberedKey, None]()

    async def submit_and_answer(
        self,
        call: Call[Any],
        route: str,
        payload: SubmittedPayload,
        resource: Resource[Row],
        stream_id: UUID | None = None,
        check: Check | None = None,
    ) -> Response:
        """Submit the only event of a request; without `stream_id` it creates its resource.

        The answer is the resource as the view shows it after the decision, else 202 and where to
        look for it. Who does not wait gets 202 from a replay as well, with what came of it. `route`
        names the request for idempotency keys, `check` is that of `submit`,
        and so is what is raised.
        """
        request, is_new = call.request, stream_id is None
        key = idempotency_key(call, route, stream_id)
        event_id, new_id = new_ids(key)
        resource_id = stream_id or new_id
        event = Submitted(
            event_id,
            resource_id,
            now_us(),
            payload,
            submitter=principal_of(request).submitter or None,
            traceparent=traceparent_of(request.scope),
        )
        if isinstance(payload, Conditional) and payload.expected_position is not None:
            expected = payload.expected_position
            check = self._refuse_outdated(call, resource, resource_id, expected, check)
        preference = preference_of(call, resource.default_wait_s)
        submission = await self.submit((event,), preference, key, check)
        # A key in quotes may have made another one, before these were read as such.
        resource_id = submission.events[0].stream_id
        row, position = None, 0
        # A view that shows a new resource proves the decision. Of a keyed one only the ledger does:
        # the key may have come elsewhere with another body.
        if submission.outcome or (preference.wait_s and is_new and not key):
            row, position = await self.read_decided(
                submission, lambda: self.views.row(resource.view, resource_id)
            )
        headers = {
            "Location": f"{resource.path}/{resource_id}",
            **submission.headers(row is not None),
            **(position_header(position) if row else {}),
        }
        if row is None or not preference.wait_s:
            return reply(202, resource.accepted(submission.events[0], row), headers)
        if problem := resource.failure(row):
            problem.headers = headers
            raise problem
        body, etag = resource.representation(row)
        status = 201 if is_new else 200
        return Response(body, status, {**headers, "ETag": etag}, JSON)

    def _refuse_outdated(
        self,
        call: Call[Any],
        resource: Resource[Row],
        key: UUID,
        expected_position: int,
        check: Check | None,
    ) -> Check:
        """A check that also refuses at once what the fold would refuse for its precondition.

        The decision is the fold's: what a view that is away or behind can't tell is submitted.
        """

        async def refuse() -> None:
            if check:
                await check()
            try:
                row, _ = await self.reads.read(lambda: self.views.row(resource.view, key))
            except ViewsUnavailable:
                return
            if row is None or position_of(row) < expected_position:
                return
            _, etag = resource.representation(row)
            if etag not in (call.header(IF_MATCH) or ()):
                raise refused(
                    Reason.PRECONDITION_FAILED,
                    f"If-Match does not name the ETag that {resource.path}/{key} has now",
                )

        return refuse

    async def submit(
        self,
        events: tuple[Submitted, ...],
        preference: Preference,
        key: IdempotencyKey | None,
        check: Check | None = None,
    ) -> Submission:
        """Have the events confirmed, and wait for their outcome as long as the client likes.

        `check` raises what keeps new events from being submitted. Raises InboxUnavailable, of which
        NotConfirmed leaves open whether the inbox has the events, and Problem for a refusal or a
        reused key.
        """
        if key:
            return await self._submit_keyed(events, preference, key, check)
        if check:
            await check()
        if not preference.wait_s:
            await self._publish(events)
            return Submission(events, None, preference)
        # Waiting starts before the publish: the outcome may be here before the confirm.
        with self.waiters.outcome_of(events[-1].event_id) as decided:
            await self._publish(events)
            outcome = await _within(preference.wait_s, decided)
        _raise_if_refused(outcome)
        return Submission(events, outcome, preference)

    async def _submit_keyed(
        self,
        events: tuple[Submitted, ...],
        preference: Preference,
        key: IdempotencyKey,
        check: Check | None,
    ) -> Submission:
        """Answer a request with a key, whose look-up and publish all requests with it share.

        A client that waits gets the outcome from the ledger, with the event, and not from the
        announcement: the key may have come elsewhere with another body.
        """
        remembered, ids = self._keys.remember(events), key.lookup_ids(events)
        replayed = remembered.confirmed or remembered in self._confirming
        with self.waiters.outcome_of(remembered.events[-1].event_id) as decided:
            if remembered.outcome is None:
                await self._confirming.join(
                    remembered, lambda: self._confirm(remembered, events, ids, check)
                )
                replayed = replayed or remembered.outcome is not None
            self._keys.refuse_other_body(remembered, events)
            if preference.wait_s and remembered.outcome is None:
                await _within(preference.wait_s, decided)
                await self._look_up(remembered, ids, QUERY_TIMEOUT_S)
                self._keys.refuse_other_body(remembered, events)
        _raise_if_refused(remembered.outcome)
        return Submission(remembered.events, remembered.outcome, preference, replayed)

    async def _confirm(
        self,
        remembered: RememberedKey,
        events: tuple[Submitted, ...],
        ids: Sequence[Sequence[UUID]],
        check: Check | None,
    ) -> None:
        """Bring the key's events from new to confirmed, or to decided if the ledger has them."""
        await self._look_up(remembered, ids, KEY_LOOKUP_TIMEOUT_S)
        # A request publishes no body but its own, even if the key came with another one before.
        if remembered.confirmed or not remembered.has_body_of(events):
            return
        if check:
            try:
                await check()
            except Problem:
                # The first try may have been decided since the look-up: what the check saw may be
                # what this very request did, and that is a success.
                await self._look_up(remembered, ids, KEY_LOOKUP_TIMEOUT_S)
                if remembered.confirmed:
                    return
                raise
        await self._publish(remembered.events)
        remembered.confirmed = True

    async def _look_up(
        self, remembered: RememberedKey, ids: Sequence[Sequence[UUID]], timeout_s: float
    ) -> None:
        """Learn what the ledger has of a key; nothing while the database is away."""
        try:
            async with asyncio.timeout(timeout_s), self.engine.connect() as connection:
                reader = EventReader(connection)
                found, keys = await reader.decisions_by_id([i.bytes for i in chain(*ids)])
        except DATABASE_ERRORS:
            return
        by_id = {decision.cause.event_id: decision for decision in found}
        decisions = ([by_id[i.bytes] for i in some if i.bytes in by_id] for some in ids)
        remembered.learn(next(filter(None, decisions), ()), keys)

    async def _publish(self, events: tuple[Submitted, ...]) -> None:
        """Have the events in the inbox, and orders among them found by a GET from now on."""
        orders = [event for event in events if isinstance(event.payload, OrderPlaced)]
        try:
            for event in orders:
                self.pending.add(event, event.payload)  # type: ignore[arg-type]  # an OrderPlaced
            await self.publisher.submit(events)
        except InboxUnavailable:
            for event in orders:
                self.pending.remove(event.stream_id)
            raise
        if self.peers and orders:
            await self.peers.publish(orders)

    async def read_decided(self, submission: Submission, query: Query[T]) -> tuple[T | None, int]:
        """The answer of a view that has the decision; None if it is away or behind.

        What was accepted is never answered with an error: the client would submit it again.
        """
        try:
            outcome, waits = submission.outcome, submission.preference.wait_s
            position = outcome.position if outcome and waits else 0
            return await self.reads.read_at_least(position, query)
        except (ViewsUnavailable, Problem):
            return None, 0


async def _within(wait_s: int, decided: OutcomeFuture) -> Outcome | None:
    try:
        async with asyncio.timeout(wait_s):
            return await decided
    except TimeoutError:
        return None


def _raise_if_refused(outcome: Outcome | None) -> None:
    """Raises Problem where the fold refused the whole submission; a failed order is a result."""
    if outcome is not None and outcome.type in _REFUSALS:
        raise refused(outcome.reason or "", f"{outcome.type} at position {outcome.position}")
