"""How much one client may ask for: so many requests a second, and so many at once."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from api.problems import Problem

BURST_S: Final = 1.0
"""What a client saved up counts for so long: it may ask a second's worth at one moment."""
MAX_KEPT: Final = 10_000
_ROUNDING_S: Final = 1e-6


class Limits:
    """The requests of each client of this process; a limit of 0 is none.

    The rate is a token bucket, kept as the one moment at which it will be full again (GCRA).
    """

    def __init__(
        self, rate_per_s: float, concurrency: int, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate_per_s = rate_per_s
        self._concurrency = concurrency
        self._now_s = now_s
        self._full_at_s: dict[str, float] = {}
        self._under_way: dict[str, int] = {}

    @contextmanager
    def request_of(self, client: str) -> Iterator[None]:
        """One request, from its head to the end of its answer; raises Problem (RFC 6585, 4)."""
        under_way = self._under_way.get(client, 0)
        if self._concurrency and under_way >= self._concurrency:
            raise _too_many(f"{under_way} requests of this client are under way already", 1)
        if self._rate_per_s:
            self._take(client)
        self._under_way[client] = under_way + 1
        try:
            yield
        finally:
            self._leave(client)

    def _take(self, client: str) -> None:
        now_s = self._now_s()
        full_at_s = max(now_s, self._full_at_s.pop(client, now_s)) + 1 / self._rate_per_s
        late_s = full_at_s - now_s - max(BURST_S, 1 / self._rate_per_s)
        if late_s > _ROUNDING_S:
            self._full_at_s[client] = full_at_s - 1 / self._rate_per_s
            detail = f"this client may send {self._rate_per_s:g} requests a second"
            raise _too_many(detail, math.ceil(late_s))
        if len(self._full_at_s) >= MAX_KEPT:
            del self._full_at_s[next(iter(self._full_at_s))]
        self._full_at_s[client] = full_at_s

    def _leave(self, client: str) -> None:
        left = self._under_way[client] - 1
        if left:
            self._under_way[client] = left
        else:
            del self._under_way[client]


def _too_many(detail: str, retry_after_s: int) -> Problem:
    return Problem("too-many-requests", detail, headers={"Retry-After": str(retry_after_s)})
