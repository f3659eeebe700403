"""Rendered products, dropped as soon as an announcement says that they changed.

A page is served only while announcements come in, and only if it holds at every position that
this process has shown to anybody: a client that saw its order completed never reads older stock.
"""

import asyncio
from typing import Final
from uuid import UUID

from msgspec import Struct

from api.consistent_reads import Reading
from api.metrics import HITS, MISSES
from projections.announcements import Announcement, Announcements

MAX_PAGES: Final = 10_000
MAX_AGE_S: Final = 1.0
"""Bounds how old a page can be if announcements stop unnoticed."""


class Page(Struct, frozen=True, gc=False):
    """One product as bytes; `position` is that of the views it was read at."""

    body: bytes
    etag: bytes
    position: int
    expires_at: float


class ProductCache:
    """Pages by product id in its usual form."""

    def __init__(self, announcements: Announcements, reading: Reading) -> None:
        self._announcements = announcements
        self._reading = reading
        self._pages: dict[str, Page] = {}
        self.generation = 0

    def get(self, product_id: str) -> tuple[Page, int] | None:
        """The page, and the position it holds at; None if it must be read anew."""
        page = self._pages.get(product_id)
        if page is None or not self._announcements.connected:
            MISSES.inc()
            return None
        position = max(page.position, self._announcements.position)
        if self._reading.seen > position or asyncio.get_running_loop().time() > page.expires_at:
            MISSES.inc()
            return None
        HITS.inc()
        return page, position

    def put(self, product_id: UUID, page: Page, generation: int) -> None:
        """Keep a page, unless something may have changed since it was read.

        `generation` is the one from before the read: a reset in between may have hidden a change.
        """
        if generation != self.generation or page.position < self._announcements.position:
            return
        if len(self._pages) >= MAX_PAGES:
            del self._pages[next(iter(self._pages))]
        self._pages[str(product_id)] = page

    def announced(self, announcement: Announcement) -> None:
        """Drop what changed."""
        for product_id in announcement.products:
            self._pages.pop(str(product_id), None)

    def reset(self) -> None:
        """Announcements may have been missed."""
        self.generation += 1
        self._pages.clear()
