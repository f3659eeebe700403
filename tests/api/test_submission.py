"""Idempotency keys and preferences, as far as they can be tested without a server."""

import asyncio
from collections.abc import Sequence
from uuid import UUID

import pytest
from starlette.requests import Request

from api.http.parameters import MAX_WAIT_S, Call
from api.http.problems import Problem
from api.reads.consistent_reads import ConsistentReads, Waiters
from api.reads.pending import PendingOrders
from api.submission import (
    IdempotencyKey,
    Preference,
    RememberedKey,
    RememberedKeys,
    Submission,
    Submissions,
    idempotency_key,
    new_ids,
    preference_of,
)
from ledger.core.events import CustomerRegistered, OrderPlaced
from ledger.eventlog.records import Submitted
from ledger.messaging.publisher import InboxUnavailable

SOME_ID = UUID("43e8ff2f-5d48-498f-a569-ca2cf9f7fae3")


def call(**headers: str) -> Call[None]:
    """A request with these headers."""
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Call(Request({"type": "http", "headers": raw}), dict(raw), {}, {}, None)


@pytest.mark.parametrize(
    ("header", "default", "expected"),
    [
        ("wait=5", 0, Preference(5, wait=True)),
        ("wait=0", 2, Preference(0, wait=True)),
        ("Wait=5", 0, Preference(5, wait=True)),
        ("respond-async, wait=10", 2, Preference(10, wait=True, respond_async=True)),
        ("wait=10; foo=bar", 2, Preference(10, wait=True)),
        ('wait="7"', 2, Preference(7, wait=True)),
        ("respond-async", 2, Preference(0, respond_async=True)),
        ("wait=31", 0, Preference(MAX_WAIT_S, wait=True)),
        (f"wait={'9' * 500}", 0, Preference(MAX_WAIT_S, wait=True)),
        ("wait=3, wait=9", 0, Preference(3, wait=True)),
        ("wait=-1", 2, Preference(2)),
        ("wait=soon", 2, Preference(2)),
        ("wait", 2, Preference(2)),
        ("return=minimal", 2, Preference(2)),
        (",;=,", 0, Preference(0)),
        ('foo="a,wait=9"', 2, Preference(2)),
        ('foo="a\\",wait=9", wait=5', 2, Preference(5, wait=True)),
        ('foo=";", wait=5', 2, Preference(5, wait=True)),
        ('wait="9;8"', 2, Preference(2)),
        ('foo="a, wait=9', 2, Preference(2)),
        (";wait=9", 2, Preference(2)),
    ],
)
def test_a_preference_is_read_and_what_is_no_preference_is_passed_over(
    header: str, default: int, expected: Preference
) -> None:
    assert preference_of(call(prefer=header), default) == expected


def test_without_a_preference_the_default_counts() -> None:
    assert preference_of(call(), 2) == Preference(2)


@pytest.mark.parametrize(
    ("preference", "decided", "applied"),
    [
        (Preference(5, wait=True), True, {"Preference-Applied": "wait=5"}),
        (Preference(5, wait=True), False, {}),
        (Preference(0, wait=True), False, {"Preference-Applied": "wait=0"}),
        (Preference(0, respond_async=True), False, {"Preference-Applied": "respond-async"}),
        (Preference(5, True, True), True, {"Preference-Applied": "wait=5"}),
        (Preference(5, True, True), False, {"Preference-Applied": "respond-async"}),
        (Preference(2), True, {}),
        (Preference(2), False, {}),
    ],
)
def test_a_preference_is_named_if_it_was_stated_and_honoured(
    preference: Preference, decided: bool, applied: dict[str, str]
) -> None:
    assert preference.applied(decided) == applied


def key_of(
    value: str, route: str = "POST /customers", stream_id: UUID | None = None
) -> IdempotencyKey:
    """The idempotency key of a request for one event."""
    key = idempotency_key(call(idempotency_key=value), route, stream_id)
    assert key
    return key


def registered(value: str) -> tuple[Submitted, ...]:
    """The events of a registration with this key."""
    return (Submitted(*new_ids(key_of(value)), 0, CustomerRegistered("ann")),)


def batch_key() -> IdempotencyKey:
    """The idempotency key of a batch."""
    key = idempotency_key(call(idempotency_key="b"), "POST /orders/batch", is_batch=True)
    assert key
    return key


def batch(count: int) -> tuple[Submitted, ...]:
    """The events of a batch of orders with one key, whatever their number."""
    placed = OrderPlaced(SOME_ID, SOME_ID)
    return tuple(Submitted(*new_ids(batch_key(), i), 0, placed) for i in range(count))


def test_a_key_derives_the_same_ids_on_every_process_and_for_ever() -> None:
    """Golden: ids that change would let a retry after an upgrade be decided twice."""
    event_id, stream_id = new_ids(key_of("k-1"))
    assert event_id == UUID("8d5082b3-0327-533f-b3f0-f61ff7666807")
    assert stream_id == UUID("d3c59fd8-177e-56de-9a74-5f01e4295fab")


def test_derived_ids_differ_by_route_by_stream_and_by_key() -> None:
    ids = {
        new_ids(key_of(value, route, stream_id))[0]
        for value in ("a", "b")
        for route in ("POST /customers", "POST /products")
        for stream_id in (None, SOME_ID, UUID(int=1))
    }
    assert len(ids) == 12


def test_without_a_key_ids_are_new_each_time() -> None:
    assert idempotency_key(call(), "POST /customers") is None
    assert len({*new_ids(None), *new_ids(None)}) == 4


def test_a_request_is_looked_up_by_its_event() -> None:
    events = registered("k-1")
    assert key_of("k-1").lookup_ids(events) == [[events[0].event_id]]


def test_a_batch_is_looked_up_by_one_event_more_than_it_has() -> None:
    """Where the ledger has that one, the key came with a longer batch."""
    shorter, longer = batch(2), batch(3)
    assert batch_key().lookup_ids(shorter) == [[event.event_id for event in longer]]


def test_a_retry_gets_the_events_of_the_first_try() -> None:
    keys, first = RememberedKeys(), registered("a")
    keys.remember(first)
    assert keys.remember(registered("a")).events is first


def test_the_oldest_keys_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.submission.MAX_REMEMBERED", 2)
    keys = RememberedKeys()
    remembered = {value: keys.remember(registered(value)) for value in "abc"}
    assert [keys.remember(registered(v)) is remembered[v] for v in "cba"] == [True, True, False]


def test_a_batch_counts_as_all_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.submission.MAX_REMEMBERED", 10)
    keys, small = RememberedKeys(), registered("a")
    remembered = keys.remember(small)
    keys.remember(batch(10))
    assert keys.remember(small) is not remembered


class StubPublisher:
    """An inbox that confirms when the test lets it, or is away."""

    def __init__(self) -> None:
        self.published: list[Sequence[Submitted]] = []
        self.begun, self.answers = asyncio.Event(), asyncio.Event()
        self.away = False

    async def submit(self, events: Sequence[Submitted]) -> None:
        self.published.append(events)
        self.begun.set()
        await self.answers.wait()
        if self.away:
            raise InboxUnavailable("away")


class TestStates:
    """A keyed submission whose decision nobody waits for, and of which the ledger knows nothing."""

    @pytest.fixture
    def publisher(self) -> StubPublisher:
        return StubPublisher()

    @pytest.fixture
    def submissions(self, publisher: StubPublisher, monkeypatch: pytest.MonkeyPatch) -> Submissions:
        async def nothing_found(*_: object) -> None:
            pass

        monkeypatch.setattr(Submissions, "_look_up", nothing_found)
        waiters = Waiters()
        return Submissions(
            publisher,  # type: ignore[arg-type]
            PendingOrders(),
            None,
            waiters,
            ConsistentReads(waiters, None),  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
        )

    def submit(self, submissions: Submissions, username: str = "ann") -> asyncio.Task[Submission]:
        key = key_of("k-1")
        event = Submitted(*new_ids(key), 0, CustomerRegistered(username))
        return asyncio.create_task(submissions.submit((event,), Preference(0), key))

    async def test_a_confirmed_submission_is_replayed_and_not_published_again(
        self, submissions: Submissions, publisher: StubPublisher
    ) -> None:
        publisher.answers.set()
        first, again = await self.submit(submissions), await self.submit(submissions)
        assert (first.replayed, again.replayed) == (False, True)
        assert again.events == first.events
        assert publisher.published == [first.events]

    async def test_requests_at_once_publish_one_event_and_share_its_confirm(
        self, submissions: Submissions, publisher: StubPublisher
    ) -> None:
        tasks = [self.submit(submissions) for _ in range(10)]
        await asyncio.sleep(0)
        publisher.answers.set()
        answers = await asyncio.gather(*tasks)
        assert [answer.replayed for answer in answers] == [False] + [True] * 9
        assert len(publisher.published) == 1

    async def test_requests_at_once_share_a_failure_and_a_retry_publishes_the_same_event(
        self, submissions: Submissions, publisher: StubPublisher
    ) -> None:
        publisher.away = True
        publisher.answers.set()
        tasks = [self.submit(submissions) for _ in range(10)]
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(error) for error in errors} == {InboxUnavailable}
        publisher.away = False
        retry = await self.submit(submissions)
        assert not retry.replayed
        assert publisher.published == [retry.events] * 2

    async def test_another_body_is_refused_while_the_first_is_being_confirmed(
        self, submissions: Submissions, publisher: StubPublisher
    ) -> None:
        first, other = self.submit(submissions), self.submit(submissions, "bob")
        await asyncio.sleep(0)
        publisher.answers.set()
        assert (await first).events[0].payload == CustomerRegistered("ann")
        with pytest.raises(Problem, match="came with another body"):
            await other
        assert len(publisher.published) == 1

    @pytest.mark.parametrize("decided", [True, False])
    async def test_a_first_try_that_was_decided_since_the_look_up_is_no_reason_to_refuse_a_retry(
        self,
        submissions: Submissions,
        publisher: StubPublisher,
        monkeypatch: pytest.MonkeyPatch,
        decided: bool,
    ) -> None:
        looks = 0

        async def decided_meanwhile(_: Submissions, remembered: RememberedKey, *__: object) -> None:
            nonlocal looks
            looks += 1
            remembered.confirmed = decided and looks > 1

        async def refuse() -> None:
            raise Problem("precondition-failed", "it is what the first try made of it")

        monkeypatch.setattr(Submissions, "_look_up", decided_meanwhile)
        key = key_of("k-1")
        event = Submitted(*new_ids(key), 0, CustomerRegistered("ann"))
        retry = submissions.submit((event,), Preference(0), key, refuse)
        if decided:
            await retry
        else:
            with pytest.raises(Problem, match="first try"):
                await retry
        assert publisher.published == []

    async def test_a_client_that_hangs_up_does_not_stop_the_publish(
        self, submissions: Submissions, publisher: StubPublisher
    ) -> None:
        first = self.submit(submissions)
        await publisher.begun.wait()
        first.cancel()
        publisher.answers.set()
        assert (await self.submit(submissions)).replayed
        assert len(publisher.published) == 1
