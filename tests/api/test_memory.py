"""The memory of an API process: bounded, and not used when it may be wrong."""

import asyncio
from collections.abc import Sequence
from uuid import UUID, uuid4

import pytest

from api.reads.consistent_reads import (
    MAX_AGE_S,
    ConsistentReads,
    ProductCache,
    ProductPage,
    Waiters,
)
from api.reads.pending import PendingOrders
from ledger.core.events import OrderPlaced
from ledger.eventlog.records import Submitted
from ledger.messaging.publisher import InboxFull
from ledger.messaging.rabbitmq import Connection
from projections.announcements import Announcement, Announcements, Outcome
from tests.harness import eventually

PRODUCT = uuid4()


def outcome(event_id: UUID, stream_id: UUID | None = None) -> Outcome:
    return Outcome(event_id, stream_id or uuid4(), 7, "order.completed")


def placed() -> Submitted:
    return Submitted(uuid4(), uuid4(), 1_700_000_000_000_001, OrderPlaced(uuid4(), uuid4(), 3))


class TestPending:
    """An order is here from before it is submitted until its outcome is announced."""

    def add(self, pending: PendingOrders) -> Submitted:
        event = placed()
        assert isinstance(event.payload, OrderPlaced)
        pending.add(event, event.payload)
        return event

    def test_an_added_order_is_found(self) -> None:
        pending = PendingOrders()
        event = self.add(pending)
        assert pending.get(event.stream_id) == (event.payload, event.occurred_at_us)

    def test_an_outcome_removes_its_order(self) -> None:
        pending = PendingOrders()
        event, other = self.add(pending), self.add(pending)
        pending.announced(Announcement(1, 2, [outcome(event.event_id, event.stream_id)]))
        assert pending.get(event.stream_id) is None
        assert pending.get(other.stream_id)

    def test_orders_beyond_the_limit_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("api.reads.pending.MAX_PENDING", 2)
        pending = PendingOrders()
        first = self.add(pending)
        self.add(pending)
        with pytest.raises(InboxFull):
            self.add(pending)
        pending.remove(first.stream_id)
        self.add(pending)

    async def test_after_a_reset_orders_that_the_view_shows_are_removed(self) -> None:
        pending, asked = PendingOrders(), list[UUID]()
        shown, hidden = self.add(pending), self.add(pending)

        async def show(order_ids: Sequence[UUID]) -> set[UUID]:
            asked.extend(order_ids)
            return {shown.stream_id}

        async def one_is_left() -> bool:
            return len(pending) == 1

        running = asyncio.create_task(pending.run(show))
        pending.reset()
        await eventually(one_is_left, "one order is left")
        running.cancel()
        assert asked == [shown.stream_id, hidden.stream_id]
        assert pending.get(hidden.stream_id)


class TestWaiters:
    """No request waits for ever, and none leaves anything behind."""

    async def test_an_outcome_wakes_all_requests_that_wait_for_it_and_no_others(self) -> None:
        waiters, event_id = Waiters(), uuid4()
        with (
            waiters.outcome_of(event_id) as one,
            waiters.outcome_of(event_id) as two,
            waiters.outcome_of(uuid4()) as other,
        ):
            waiters.announced(Announcement(1, 2, [outcome(event_id)]))
            assert (await one) == (await two) == outcome(event_id, one.result().stream_id)  # type: ignore[union-attr]
            assert not other.done()

    async def test_a_request_that_gave_up_leaves_nothing_behind(self) -> None:
        waiters, event_id = Waiters(), uuid4()
        with waiters.outcome_of(event_id):
            pass
        waiters.announced(Announcement(1, 2, [outcome(event_id)]))
        with waiters.outcome_of(event_id) as again:
            assert not again.done()

    async def test_requests_beyond_the_limit_do_not_wait(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("api.reads.consistent_reads.MAX_WAITERS", 1)
        waiters = Waiters()
        with waiters.outcome_of(uuid4()) as one, waiters.outcome_of(uuid4()) as two:
            assert not one.done()
            assert two.result() is None

    async def test_a_position_wakes_requests_that_wait_for_it_or_less(self) -> None:
        waiters = Waiters()
        waits = [asyncio.create_task(waiters.position(n, 20)) for n in (5, 7, 8)]
        await asyncio.sleep(0)
        waiters.announced(Announcement(4, 7))
        await asyncio.gather(*waits[:2])
        assert not waits[2].done()
        waiters.stop()
        await waits[2]

    async def test_stopping_ends_all_waiting(self) -> None:
        waiters = Waiters()
        with waiters.outcome_of(uuid4()) as before:
            waiters.stop()
            assert before.result() is None
        with waiters.outcome_of(uuid4()) as after:
            assert after.result() is None


class TestProductCache:
    """A page is served only if no announcement, and nothing this process showed, is newer."""

    @pytest.fixture
    def announcements(self) -> Announcements:
        """A listener that nobody talks to; connected, as far as it says."""
        heard = Announcements(Connection("amqp://127.0.0.1:1", "test"), "test")
        heard.connected = True
        heard.position = 10
        return heard

    @pytest.fixture
    def reads(self) -> ConsistentReads:
        return ConsistentReads(Waiters(), None)  # type: ignore[arg-type]

    @pytest.fixture
    def cache(self, announcements: Announcements, reads: ConsistentReads) -> ProductCache:
        return ProductCache(announcements, reads)

    def page(self, position: int, age_s: float = 0) -> ProductPage:
        now = asyncio.get_running_loop().time()
        return ProductPage(b"{}", '"1"', position, now + MAX_AGE_S - age_s)

    async def test_a_page_is_served_as_of_the_last_announcement(
        self, cache: ProductCache, announcements: Announcements
    ) -> None:
        page = self.page(10)
        cache.put(PRODUCT, page, cache.generation)
        announcements.position = 15
        assert cache.get(PRODUCT) == (page, 15)

    async def test_a_change_drops_the_page(self, cache: ProductCache) -> None:
        cache.put(PRODUCT, self.page(10), cache.generation)
        cache.announced(Announcement(10, 11, [], [PRODUCT]))
        assert cache.get(PRODUCT) is None

    async def test_a_row_read_before_the_last_announcement_is_not_kept(
        self, cache: ProductCache, announcements: Announcements
    ) -> None:
        announcements.position = 11
        cache.put(PRODUCT, self.page(10), cache.generation)
        assert cache.get(PRODUCT) is None

    async def test_a_row_read_before_a_reset_is_not_kept(self, cache: ProductCache) -> None:
        generation = cache.generation
        cache.reset()
        cache.put(PRODUCT, self.page(10), generation)
        assert cache.get(PRODUCT) is None

    async def test_a_reset_drops_all(self, cache: ProductCache) -> None:
        cache.put(PRODUCT, self.page(10), cache.generation)
        cache.reset()
        assert cache.get(PRODUCT) is None

    async def test_nothing_is_served_while_announcements_are_away(
        self, cache: ProductCache, announcements: Announcements
    ) -> None:
        cache.put(PRODUCT, self.page(10), cache.generation)
        announcements.connected = False
        assert cache.get(PRODUCT) is None

    async def test_a_page_older_than_a_position_shown_before_is_not_served(
        self, cache: ProductCache, reads: ConsistentReads, announcements: Announcements
    ) -> None:
        cache.put(PRODUCT, self.page(10), cache.generation)
        reads.latest_position = 11
        assert cache.get(PRODUCT) is None
        announcements.position = 11
        assert cache.get(PRODUCT) is not None

    async def test_after_a_start_a_page_is_served_before_the_first_announcement(
        self, cache: ProductCache, reads: ConsistentReads, announcements: Announcements
    ) -> None:
        announcements.position = 0
        reads.latest_position = 10
        cache.put(PRODUCT, self.page(10), cache.generation)
        assert cache.get(PRODUCT) is not None

    async def test_a_page_past_its_age_is_not_served(self, cache: ProductCache) -> None:
        cache.put(PRODUCT, self.page(10, age_s=MAX_AGE_S + 0.1), cache.generation)
        assert cache.get(PRODUCT) is None

    async def test_pages_are_bounded(
        self,
        announcements: Announcements,
        reads: ConsistentReads,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("api.reads.consistent_reads.MAX_PAGES", 2)
        cache = ProductCache(announcements, reads)
        ids = [uuid4() for _ in range(3)]
        for product_id in ids:
            cache.put(product_id, self.page(10), cache.generation)
        assert [cache.get(i) is not None for i in ids] == [False, True, True]
