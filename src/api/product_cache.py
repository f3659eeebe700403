"""Rendered products, dropped as soon as an announcement says that they changed.

A page is served only while announcements come in, and only if it holds at every position that
this process has shown to anybody: a client that saw its order completed never reads older stock.
"""

import asyncio
from typing import Final
from uuid import UUID

from msgspec import Struct

from api.consistent_reads import ConsistentReads
from api.metrics import HITS, MISSES
from ledger.runtime.cache import BoundedDict
from projections.announcements import Announcement, Announcements

MAX_PAGES: Final = 10_000
# How old a page can be if announcements stop unnoticed.
MAX_AGE_S: Final = 1.0


class ProductPage(Struct, frozen=True, gc=False):
    """One product as bytes; `position` is that of the views it was read at."""

    body: bytes
    etag: bytes
    position: int
    expires_at: float


class ProductCache:
    """Pages by product id, at most MAX_PAGES."""

    def __init__(self, announcements: Announcements, reads: ConsistentReads) -> None:
        self._announcements = announcements
        self._reads = reads
        self._pages = BoundedDict[UUID, ProductPage](MAX_PAGES)
        self.generation = 0

    def get(self, product_id: UUID) -> tuple[ProductPage, int] | None:
        """The page, and the position it holds at; None if it must be read anew."""
        page = self._pages.get(product_id)
        if page is None or not self._announcements.connected:
            MISSES.inc()
            return None
        # A page that no announcement dropped still holds at the last announced position.
        position = max(page.position, self._announcements.position)
        if (
            self._reads.latest_position > position
            or asyncio.get_running_loop().time() > page.expires_at
        ):
            MISSES.inc()
            return None
        HITS.inc()
        return page, position

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
