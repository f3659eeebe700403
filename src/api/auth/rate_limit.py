"""Rate limit: how many requests a client may send a second, and how many at once."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from api.http.problems import Problem
from ledger.runtime.cache import BoundedDict

# A client may send a second's worth of requests at one moment.
BURST_S: Final = 1.0
MAX_CLIENTS: Final = 10_000
# 1 / rate is seldom exact in binary; without this the last request of a burst would be refused.
_ROUNDING_S: Final = 1e-6


class RateLimit:
    """The requests of each client of this process; a limit of 0 is none.

    The rate is a token bucket, kept as the one moment at which it will be full again (GCRA).
    """

    def __init__(
        self, rate_per_s: float, concurrency: int, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate_per_s = rate_per_s
        self._concurrency = concurrency
        self._now_s = now_s
        self._full_at_s = BoundedDict[str, float](MAX_CLIENTS)
        self._running: dict[str, int] = {}

    @contextmanager
    def request(self, client: str) -> Iterator[None]:
        """One request, from its head to the end of its answer; raises Problem (RFC 6585, 4)."""
        running = self._running.get(client, 0)
        if self._concurrency and running >= self._concurrency:
            raise _too_many(f"{running} requests of this client are under way already", 1)
        if self._rate_per_s:
            now_s, token_s = self._now_s(), 1 / self._rate_per_s
            full_at_s = max(now_s, self._full_at_s.get(client, now_s)) + token_s
            late_s = full_at_s - now_s - max(BURST_S, token_s)
            if late_s > _ROUNDING_S:
                detail = f"this client may send {self._rate_per_s:g} requests a second"
                raise _too_many(detail, math.ceil(late_s))
            # Not set before: a refused request costs nothing.
            self._full_at_s.renew(client, full_at_s)
        self._running[client] = running + 1
        try:
            yield
        finally:
            if self._running[client] > 1:
                self._running[client] -= 1
            else:
                del self._running[client]


def _too_many(detail: str, retry_after_s: int) -> Problem:
    return Problem("too-many-requests", detail, headers={"Retry-After": str(retry_after_s)})
