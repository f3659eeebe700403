"""Orders that were accepted here and that no view shows yet, so that a GET finds them at once."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from struct import Struct as Layout
from typing import Final
from uuid import UUID

from ledger.core.events import OrderPlaced
from ledger.eventlog.records import Submitted
from ledger.messaging.publisher import InboxFull
from ledger.runtime.timestamps import SECOND_US, now_us
from projections.announcements import Announcement
from projections.queries import ViewsUnavailable

log = logging.getLogger(__name__)

MAX_PENDING: Final = 1_000_000
CHUNK: Final = 500
SWEEP_S: Final = 30.0
SWEEP_MAX: Final = 1_000
_LAYOUT: Final = Layout(">QI16s16s")

Shown = Callable[[Sequence[UUID]], Awaitable[set[UUID]]]
"""Which of these orders the view shows."""


class Pending:
    """Placed orders by id, in the order they came; each leaves with its outcome.

    An announcement that was missed would leave an order here for ever: `run` asks the view about
    all of them after a reset, and about the oldest now and then. Orders are kept as bytes, which
    the garbage collector never has to walk.
    """

    def __init__(self) -> None:
        self._placed: dict[bytes, bytes] = {}
        self._reset = asyncio.Event()

    def __len__(self) -> int:
        return len(self._placed)

    def add(self, event: Submitted, placed: OrderPlaced) -> None:
        """Keep a placed order that is about to be submitted; raises InboxFull."""
        if len(self._placed) >= MAX_PENDING:
            raise InboxFull(f"{MAX_PENDING} orders are waiting to be decided")
        self._placed[event.stream_id.bytes] = _LAYOUT.pack(
            event.occurred_at_us,
            placed.quantity,
            placed.customer_id.bytes,
            placed.product_id.bytes,
        )

    def drop(self, order_id: UUID) -> None:
        """Forget an order whose submission failed."""
        self._placed.pop(order_id.bytes, None)

    def get(self, order_id: UUID) -> tuple[OrderPlaced, int] | None:
        """The order and when it was placed."""
        packed = self._placed.get(order_id.bytes)
        if packed is None:
            return None
        occurred_at_us, quantity, customer_id, product_id = _LAYOUT.unpack(packed)
        placed = OrderPlaced(UUID(bytes=customer_id), UUID(bytes=product_id), quantity)
        return placed, occurred_at_us

    def announced(self, announcement: Announcement) -> None:
        """Forget what was decided."""
        if self._placed:
            for outcome in announcement.outcomes:
                self._placed.pop(outcome.stream_id.bytes, None)

    def reset(self) -> None:
        """Announcements may have been missed."""
        self._reset.set()

    async def run(self, shown: Shown) -> None:
        """Forget what the views show and no announcement told, for as long as the process runs."""
        while True:
            everything = await self._woken()
            try:
                await self._check(self._suspects(everything), shown)
            except ViewsUnavailable as error:
                log.warning("%d pending orders can't be checked: %s", len(self._placed), error)
                self._reset.set()
                await asyncio.sleep(1)

    async def _woken(self) -> bool:
        try:
            async with asyncio.timeout(SWEEP_S):
                await self._reset.wait()
        except TimeoutError:
            return False
        self._reset.clear()
        return True

    def _suspects(self, everything: bool) -> list[UUID]:
        if everything:
            return [UUID(bytes=order_id) for order_id in self._placed]
        old_us = now_us() - int(SWEEP_S * SECOND_US)
        oldest = islice(self._placed.items(), SWEEP_MAX)
        return [
            UUID(bytes=order_id)
            for order_id, packed in oldest
            if _LAYOUT.unpack(packed)[0] < old_us
        ]

    async def _check(self, order_ids: Sequence[UUID], shown: Shown) -> None:
        for start in range(0, len(order_ids), CHUNK):
            for order_id in await shown(order_ids[start : start + CHUNK]):
                self.drop(order_id)
