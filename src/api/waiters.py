"""Waiting for the views: for the outcome of one event, or for a position. Nothing is polled."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

from projections.announcements import Announcement, Outcome

MAX_WAITS: Final = 10_000

Waited = asyncio.Future[Outcome | None]


class Waiting:
    """Who waits for what. Beyond MAX_WAITS, and while the process stops, nobody waits."""

    def __init__(self) -> None:
        self._outcomes: dict[UUID, list[Waited]] = {}
        self._positions: dict[asyncio.Future[None], int] = {}
        self._count = 0
        self._stopped = False

    @contextmanager
    def outcome_of(self, event_id: UUID) -> Iterator[Waited]:
        """The coming outcome of an event that is yet to be submitted; None if nobody may wait."""
        outcome: Waited = asyncio.get_running_loop().create_future()
        if self._stopped or self._count >= MAX_WAITS:
            outcome.set_result(None)
        self._outcomes.setdefault(event_id, []).append(outcome)
        self._count += 1
        try:
            yield outcome
        finally:
            self._count -= 1
            self._forget(event_id, outcome)

    def _forget(self, event_id: UUID, outcome: Waited) -> None:
        waited = self._outcomes[event_id]
        waited.remove(outcome)
        if not waited:
            del self._outcomes[event_id]

    async def position(self, position: int, timeout_s: float) -> None:
        """Return when `position` has been announced, or after `timeout_s`."""
        if self._stopped or len(self._positions) >= MAX_WAITS:
            return
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._positions[reached] = position
        try:
            await asyncio.wait((reached,), timeout=timeout_s)
        finally:
            del self._positions[reached]

    def announced(self, announcement: Announcement) -> None:
        """Wake those who waited for this."""
        if self._outcomes:
            for outcome in announcement.outcomes:
                for waited in self._outcomes.get(outcome.event_id, ()):
                    if not waited.done():
                        waited.set_result(outcome)
        for reached, position in self._positions.items():
            if position <= announcement.position and not reached.done():
                reached.set_result(None)

    def stop(self) -> None:
        """End all waiting: the process is about to stop."""
        self._stopped = True
        for outcomes in self._outcomes.values():
            for outcome in outcomes:
                if not outcome.done():
                    outcome.set_result(None)
        for reached in self._positions:
            if not reached.done():
                reached.set_result(None)
