"""Server-sent events: the ledger as it grows, for many clients, each at its own pace.

A stream holds one page at a time and reads the next when the last one is written. What wakes it
is one announcement for all of them, so a client that waits costs the database nothing.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from api.auth.principal import lapsed
from api.consistent_reads import Reading, Shared
from api.problems import Problem
from ledger.runtime.reconnect import first_to_end
from projections.announcements import Announcement
from projections.feed import Feed, FeedPage
from projections.queries import ViewsUnavailable

EVENT_STREAM: Final = "text/event-stream"
ABORT: Final = "ledger.abort"
"""In the state of a connection: what ends it at once, with whatever it still has to send."""

MAX_STREAMS: Final = 200
MAX_READS: Final = 2
"""At once, so that streams can't take the connections that the views are read with."""
PAGE: Final = 200
CHUNK: Final = 32 * 1024
HEARTBEAT_S: Final = 15.0
WRITE_TIMEOUT_S: Final = 10.0
FAREWELL_TIMEOUT_S: Final = 1.0
"""Shorter, because a process that stops waits for it."""
LIFE_S: Final = 3600.0
"""A stream ends then, and its client comes back where it was: with a key that is still good."""
SILENCE_S: Final = 5.0
"""Without any announcement for so long the ledger is looked at, once for all streams."""
RETRY_S: Final = 1.0


class Streams:
    """The streams of one process: how many there are, what wakes them, and what ends them."""

    def __init__(self, feed: Feed, reading: Reading) -> None:
        self._feed = feed
        self._reading = reading
        self._shared: Shared[FeedPage] = Shared()
        self._turn = asyncio.Semaphore(MAX_READS)
        self._grown = asyncio.Event()
        self._stopped = asyncio.Event()
        self._head = 0
        self._silent = True
        self.count = 0

    async def open(
        self, after: int, type_: str | None, min_position: int, *, head_only: bool
    ) -> Response:
        """A stream from after a position on; raises Problem, and ViewsUnavailable at its start."""
        if self.count >= MAX_STREAMS:
            raise Problem(
                "too-many-streams", f"{self.count} streams are open here: come back later"
            )

        async def query() -> tuple[FeedPage, int]:
            page = await self.page(after, type_)
            return page, page.head

        page, _ = await self._reading.read_at_least(min_position, query)
        return EventStream(self, page, type_) if not head_only else Response(None, 200, _HEADERS)

    async def page(self, after: int, type_: str | None) -> FeedPage:
        """The page after a position, read once for all streams that want it."""
        return await self._shared.read((after, type_), lambda: self._read(after, type_))

    async def _read(self, after: int, type_: str | None) -> FeedPage:
        async with self._turn:
            page = await self._feed.page(after, PAGE, type_)
        self._reach(page.head)
        return page

    async def beyond(self, position: int) -> bool:
        """Whether the ledger grew beyond a position; False after HEARTBEAT_S."""
        with suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_S):
                while self._head <= position:
                    await self._grown.wait()
        return self._head > position

    def announced(self, announcement: Announcement) -> None:
        """The ledger goes at least so far."""
        self._silent = False
        self._reach(announcement.position)

    def _reach(self, head: int) -> None:
        if head > self._head:
            self._head = head
            self._grown.set()
            self._grown = asyncio.Event()

    async def run(self) -> None:
        """Look at the ledger when nothing is announced, for as long as the process runs."""
        while True:
            self._silent = True
            await asyncio.sleep(SILENCE_S)
            if self._silent and self.count:
                with suppress(ViewsUnavailable):
                    self._reach(await self._feed.head())

    @contextmanager
    def counted(self) -> Iterator[None]:
        """One more stream, for as long as it is open."""
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1

    def stop(self) -> None:
        """End all streams: the process is about to stop."""
        self._stopped.set()

    async def over(self) -> None:
        """Return when a stream that begins now has to end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LIFE_S):
                await self._stopped.wait()


_HEADERS: Final = {
    "Content-Type": EVENT_STREAM,
    "Cache-Control": "no-store",
    "Vary": "Accept",
    "X-Accel-Buffering": "no",
}


class EventStream(Response):
    """A page and all that comes after it, until the client or this process ends it."""

    def __init__(self, streams: Streams, first: FeedPage, type_: str | None) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)
        self._streams = streams
        self._first = first
        self._type = type_

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream; a client that takes nothing for WRITE_TIMEOUT_S is cut off."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            with self._streams.counted():
                await _send(send, start)
                await first_to_end(
                    self._follow(send), _gone(receive), self._streams.over(), lapsed(scope)
                )
                await _send(send, {"type": "http.response.body", "body": b""}, FAREWELL_TIMEOUT_S)
        except TimeoutError:
            scope["state"][ABORT]()
            await _gone(receive)

    async def _follow(self, send: Send) -> None:
        page = self._first
        await _write(send, b"retry: %d\n\n" % (RETRY_S * 1000))
        while True:
            for chunk in _chunks(page):
                await _write(send, chunk)
            while page.is_last and not await self._streams.beyond(page.scanned_to):
                await _write(send, _seen(page))
            page = await self._next(page.scanned_to)

    async def _next(self, after: int) -> FeedPage:
        while True:
            try:
                return await self._streams.page(after, self._type)
            except ViewsUnavailable:
                await asyncio.sleep(RETRY_S)


def _chunks(page: FeedPage) -> Iterator[bytes]:
    """The events of a page, some at a time: a chunk is what a slow client has here at most."""
    chunk = b""
    for event in page.events:
        chunk += b"id: %d\ndata: %s\n\n" % (event.position, event.body)
        if len(chunk) >= CHUNK:
            yield chunk
            chunk = b""
    if chunk or not page.events:
        yield chunk or _seen(page)


def _seen(page: FeedPage) -> bytes:
    """A heartbeat: no event, but how far a filter has looked, for when the client comes back."""
    return b": all up to here\nid: %d\n\n" % page.scanned_to


async def _write(send: Send, body: bytes) -> None:
    await _send(send, {"type": "http.response.body", "body": body, "more_body": True})


async def _send(send: Send, message: Message, timeout_s: float | None = None) -> None:
    async with asyncio.timeout(timeout_s or WRITE_TIMEOUT_S):
        await send(message)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
