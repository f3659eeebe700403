"""What each client may have: orders a second, orders at once, and its turn at work that takes long.

An order counts as one wherever it comes, alone or in a batch; so does any other request.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from api.http.problems import Problem
from ledger.runtime.cache import BoundedDict

# A client may send a second's worth of orders at one moment.
BURST_S: Final = 1.0
MAX_CLIENTS: Final = 10_000
# 1 / rate is seldom exact in binary; without this the last request of a burst would be refused.
_ROUNDING_S: Final = 1e-6
# Who wait for a turn: of one client, of one address (behind a proxy all strangers have the same),
# and of all clients or of all addresses.
MAX_WAITING_OF_CLIENT: Final = 100
MAX_WAITING_OF_ADDRESS: Final = 500
MAX_WAITING: Final = 1_000


class Client(NamedTuple):
    """Whose share a request is of: the holder of a key or token, or an address if not `known`."""

    name: str
    known: bool


class RateLimit:
    """The rate and the concurrency of each client of this process; a limit of 0 is none.

    The rate is a token bucket, kept as the one moment at which it will be full again (GCRA). How
    many orders a body has is known once it is read. So a batch is let in like one order and then
    charged in full: its client is in debt until the rate has made up for it, and what it sends
    meanwhile is refused before it costs anything.
    """

    def __init__(
        self, rate_per_s: float, concurrency: int, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._token_s = 1 / rate_per_s if rate_per_s else 0.0
        self._burst_s = max(BURST_S, self._token_s)
        self._concurrency = concurrency
        self._now_s = now_s
        self._full_at_s = BoundedDict[str, float](MAX_CLIENTS)
        self._running: dict[str, int] = {}

    def request(self, client: str) -> "RequestShare":
        """One request, to be entered from its head to the end of its answer."""
        return RequestShare(self, client)

    def start(self, client: str) -> None:
        """Count a request as one order; raises Problem (RFC 6585, 4)."""
        running = self._running.get(client, 0)
        if self._concurrency and running >= self._concurrency:
            raise _too_many(f"{running} orders and requests of this client are under way", 1)
        self.charge(client, 1)
        self._running[client] = running + 1

    def more(self, client: str, orders: int) -> None:
        """Count further orders of a request that was started; raises Problem."""
        running = self._running[client]
        # A batch that is larger than the limit is taken if its client has nothing else under way.
        if self._concurrency and running > 1 and running + orders > self._concurrency:
            detail = f"{running - 1} orders of this client are under way, {orders + 1} are too many"
            raise _too_many(detail, 1)
        self.charge(client, orders)
        self._running[client] = running + orders

    def charge(self, client: str, orders: int) -> None:
        """Take from the client's rate; raises Problem if it is in debt, and takes nothing then."""
        if not self._token_s:
            return
        now_s = self._now_s()
        full_at_s = max(now_s, self._full_at_s.get(client, now_s))
        late_s = full_at_s + min(orders, 1) * self._token_s - now_s - self._burst_s
        if late_s > _ROUNDING_S:
            detail = f"this client may send {1 / self._token_s:g} orders and requests a second"
            raise _too_many(detail, math.ceil(late_s))
        if orders:
            self._full_at_s.renew(client, full_at_s + orders * self._token_s)

    def end(self, client: str, orders: int) -> None:
        """Count orders no more as under way."""
        running = self._running[client] - orders
        if running:
            self._running[client] = running
        else:
            del self._running[client]


class RequestShare:
    """A request as part of what its client may have; entering it raises Problem."""

    __slots__ = ("_client", "_orders", "_rate_limit")

    def __init__(self, rate_limit: RateLimit, client: str) -> None:
        self._rate_limit = rate_limit
        self._client = client
        self._orders = 1

    def __enter__(self) -> "RequestShare":
        self._rate_limit.start(self._client)
        return self

    def __exit__(self, *_: object) -> None:
        self._rate_limit.end(self._client, self._orders)

    def refuse_in_debt(self) -> None:
        """Raises Problem if other orders of the client have used its rate up meanwhile."""
        self._rate_limit.charge(self._client, 0)

    def weigh(self, orders: int) -> None:
        """Count the orders that the request turned out to have; raises Problem."""
        if orders > 1:
            self._rate_limit.more(self._client, orders - 1)
            self._orders = orders


class NoTurn(Exception):
    """The client's turn did not come, or too many wait for theirs."""


class Turns:
    """Work that takes long, `at_once` at a time, for one client after the other.

    So a client that asks for much waits for itself, and the others don't wait for it. Clients that
    are known by a key or token go first. Those that are not, told apart by their addresses, have
    at most `strangers_at_once` under way.
    """

    def __init__(
        self, at_once: int, timeout_s: float, strangers_at_once: int | None = None
    ) -> None:
        self.at_once = at_once
        self.timeout_s = timeout_s
        self._strangers_at_once = at_once if strangers_at_once is None else strangers_at_once
        self._known = _Line(MAX_WAITING_OF_CLIENT)
        self._strangers = _Line(MAX_WAITING_OF_ADDRESS)

    @asynccontextmanager
    async def turn(self, client: Client) -> AsyncIterator[None]:
        """Wait for the client's turn, which lasts as long as the block.

        Raises NoTurn if the turn does not come in time, or too many wait already, of this client or
        of all.
        """
        line = self._known if client.known else self._strangers
        started = line.join(client.name)
        self._start()
        try:
            try:
                async with asyncio.timeout(self.timeout_s):
                    await started
            except TimeoutError:
                raise NoTurn(f"the turn did not come within {self.timeout_s:g} s") from None
            yield
        finally:
            if started.cancelled():
                line.leave(client.name, started)
            else:
                line.running -= 1
                self._start()

    def _start(self) -> None:
        while self._known.running + self._strangers.running < self.at_once:
            if self._known.clients:
                self._known.start()
            elif self._strangers.clients and self._strangers.running < self._strangers_at_once:
                self._strangers.start()
            else:
                return


class _Line:
    """Those who wait, by client; the first client has the next turn, and then goes to the end."""

    def __init__(self, max_of_client: int) -> None:
        self._max_of_client = max_of_client
        self.clients: dict[str, deque[asyncio.Future[None]]] = {}
        self.running = 0
        self._waiting = 0

    def join(self, client: str) -> asyncio.Future[None]:
        """A future that is done when the client's turn has come."""
        waiting = self.clients.get(client)
        if waiting and len(waiting) >= self._max_of_client:
            raise NoTurn(f"{len(waiting)} requests of this client wait for their turn")
        if self._waiting >= MAX_WAITING:
            raise NoTurn(f"{self._waiting} requests wait for their turn")
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.clients.setdefault(client, deque()).append(started)
        self._waiting += 1
        return started

    def leave(self, client: str, started: asyncio.Future[None]) -> None:
        """Wait no more."""
        waiting = self.clients.get(client, deque())
        if started in waiting:
            waiting.remove(started)
            self._waiting -= 1
            if not waiting:
                del self.clients[client]

    def start(self) -> None:
        """Give the next client its turn."""
        client = next(iter(self.clients))
        waiting = self.clients.pop(client)
        started = waiting.popleft()
        if waiting:
            self.clients[client] = waiting
        self._waiting -= 1
        if not started.done():
            self.running += 1
            started.set_result(None)


def _too_many(detail: str, retry_after_s: int) -> Problem:
    return Problem("too-many-requests", detail, headers={"Retry-After": str(retry_after_s)})
