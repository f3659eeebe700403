"""Reads of the views at a position or later, waiting for announcements, and a cache of products.

A product's page is served from the cache only while announcements come in, and only if it holds at
every position that this process has shown to anybody: a client that saw its order completed never
reads older stock.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, Final, TypeVar
from uuid import UUID

from msgspec import Struct
from prometheus_client import Counter

from api.http.problems import Problem, beyond_head
from ledger.runtime.cache import BoundedDict
from projections.announcements import Announcement, Announcements, Outcome
from projections.queries import Feed

MAX_WAITERS: Final = 10_000
MIN_POSITION_WAIT_S: Final = 2.0
MAX_PAGES: Final = 10_000
# How old a page can be if announcements stop unnoticed.
MAX_AGE_S: Final = 1.0

CACHE_READS: Final = Counter(
    "ledger_product_cache_reads",
    "Reads of one product, by result: hit if the cache had the page, else miss",
    ["result"],
    registry=None,
)
HITS: Final = CACHE_READS.labels("hit")
MISSES: Final = CACHE_READS.labels("miss")

T = TypeVar("T")
Query = Callable[[], Awaitable[tuple[T, int]]]
OutcomeFuture = asyncio.Future[Outcome | None]


class Waiters:
    """Requests that wait for the outcome of an event or for a position. Nothing is polled.

    Beyond MAX_WAITERS, and while the process stops, nobody waits.
    """

    def __init__(self) -> None:
        self._outcomes: dict[UUID, list[OutcomeFuture]] = {}
        self._positions: dict[asyncio.Future[None], int] = {}
        self._outcome_count = 0
        self._stopped = False

    @contextmanager
    def outcome_of(self, event_id: UUID) -> Iterator[OutcomeFuture]:
        """A future of the outcome of an event that is yet to be submitted; None if nobody waits."""
        future: OutcomeFuture = asyncio.get_running_loop().create_future()
        if self._stopped or self._outcome_count >= MAX_WAITERS:
            future.set_result(None)
        self._outcomes.setdefault(event_id, []).append(future)
        self._outcome_count += 1
        try:
            yield future
        finally:
            self._outcome_count -= 1
            futures = self._outcomes[event_id]
            futures.remove(future)
            if not futures:
                del self._outcomes[event_id]

    async def position(self, position: int, timeout_s: float) -> None:
        """Return when `position` has been announced, or after `timeout_s`."""
        if self._stopped or len(self._positions) >= MAX_WAITERS:
            return
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._positions[reached] = position
        try:
            await asyncio.wait((reached,), timeout=timeout_s)
        finally:
            del self._positions[reached]

    def announced(self, announcement: Announcement) -> None:
        """Wake those who wait for an outcome or a position of this announcement."""
        if self._outcomes:  # a batch of a thousand outcomes is seldom waited for
            for outcome in announcement.outcomes:
                for future in self._outcomes.get(outcome.event_id, ()):
                    _wake(future, outcome)
        for reached, position in self._positions.items():
            if position <= announcement.position:
                _wake(reached, None)

    def stop(self) -> None:
        """Wake all: the process is about to stop, and its clients must get their answers."""
        self._stopped = True
        for future in chain.from_iterable(self._outcomes.values()):
            _wake(future, None)
        for reached in self._positions:
            _wake(reached, None)


def _wake(future: asyncio.Future[Any], result: Outcome | None) -> None:
    if not future.done():
        future.set_result(result)


class ConsistentReads:
    """Every read of a view goes through here.

    `latest_position` is the latest one that any answer showed: the product cache serves nothing
    older.
    """

    def __init__(self, waiters: Waiters, feed: Feed) -> None:
        self._waiters = waiters
        self._feed = feed
        self.latest_position = 0

    async def read(self, query: Query[T]) -> tuple[T, int]:
        """The answer of the query, and the position it holds at."""
        answer, position = await query()
        self.latest_position = max(self.latest_position, position)
        return answer, position

    async def read_at_least(self, min_position: int, query: Query[T]) -> tuple[T, int]:
        """As `read`, but not older than `min_position`.

        Raises Problem if that takes too long, or if the ledger has not come to that position.
        """
        answer, position = await self.read(query)
        if position < min_position:
            await self._waiters.position(min_position, MIN_POSITION_WAIT_S)
            answer, position = await self.read(query)
        if position < min_position:
            # Asked only now: the client may know a position that was recorded a moment ago.
            head = await self._feed.head()
            if head.position < min_position:
                raise beyond_head("min_position", head.position, head.ledger_id)
            raise Problem(
                "views-behind",
                f"the views are at position {position}, {min_position - position} behind",
                position=position,
                min_position=min_position,
            )
        return answer, position


class ProductPage(Struct, frozen=True, gc=False):
    """One product as bytes; `position` is that of the views it was read at."""

    body: bytes
    etag: str
    position: int
    expires_at: float


class ProductCache:
    """Pages by product id, at most MAX_PAGES, dropped when an announcement says they changed."""

    def __init__(self, announcements: Announcements, reads: ConsistentReads) -> None:
        self._announcements = announcements
        self._reads = reads
        self._pages = BoundedDict[UUID, ProductPage](MAX_PAGES)
        self.generation = 0

    def get(self, product_id: UUID) -> tuple[ProductPage, int] | None:
        """The page, and the position it holds at; None if it must be read anew."""
        page = self._pages.get(product_id)
        if page and self._announcements.connected:
            # A page that no announcement dropped still holds at the last announced position.
            position = max(page.position, self._announcements.position)
            is_fresh = asyncio.get_running_loop().time() <= page.expires_at
            if is_fresh and self._reads.latest_position <= position:
                HITS.inc()
                return page, position
        MISSES.inc()
        return None

    def put(self, product_id: UUID, page: ProductPage, generation: int) -> None:
        """Add a page, unless something may have changed since it was read.

        `generation` is the one from before the read: a reset in between may have hidden a change.
        """
        if generation != self.generation or page.position < self._announcements.position:
            return
        self._pages[product_id] = page

    def announced(self, announcement: Announcement) -> None:
        """Drop the products that changed."""
        for product_id in announcement.products:
            self._pages.pop(product_id, None)

    def reset(self) -> None:
        """Drop all pages: announcements may have been missed."""
        self.generation += 1
        self._pages.clear()
