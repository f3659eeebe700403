"""Server-sent events: the ledger as it grows, for many clients, each at its own pace.

A stream holds one page at a time and reads the next when the last one is written. All streams are
woken by one announcement, so a client that waits costs the database nothing.
"""

import asyncio
from contextlib import suppress
from typing import Final

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from api.auth.guard import credential_ended
from api.http.problems import Problem
from api.reads.consistent_reads import ConsistentReads
from ledger.runtime.cache import SingleFlight
from ledger.runtime.reconnect import first_to_end
from projections.announcements import Announcement
from projections.queries import Feed, FeedPage, ViewsUnavailable

EVENT_STREAM: Final = "text/event-stream"
# Key in the state of a connection: a function that ends it at once, with what is still to be sent.
ABORT: Final = "ledger.abort"

MAX_STREAMS: Final = 200
# At once, so that streams can't take the database connections that the views are read with.
MAX_READS: Final = 2
PAGE: Final = 200
CHUNK: Final = 32 * 1024
HEARTBEAT_S: Final = 15.0
WRITE_TIMEOUT_S: Final = 10.0
# Shorter than WRITE_TIMEOUT_S, because a process that stops waits for it.
LAST_WRITE_TIMEOUT_S: Final = 1.0
# After so long without any announcement the ledger is looked at, once for all streams.
SILENCE_S: Final = 5.0
RETRY_S: Final = 1.0

_HEADERS: Final = {
    "Content-Type": EVENT_STREAM,
    "Cache-Control": "no-store",
    "Vary": "Accept",
    # nginx buffers an answer unless this tells it not to.
    "X-Accel-Buffering": "no",
}


class EventStreams:
    """The streams of one process: they share reads and wake-ups, and end when it stops."""

    def __init__(self, feed: Feed, reads: ConsistentReads) -> None:
        self._feed = feed
        self._reads = reads
        self._pages = SingleFlight[tuple[int, str | None], FeedPage]()
        self._turns = asyncio.Semaphore(MAX_READS)
        self._head = 0
        self._head_moved = asyncio.Event()
        self._announced_lately = False
        # Set when the process is about to stop: all streams end then.
        self.stopped = asyncio.Event()
        self.count = 0

    async def open(
        self, after: int, type_: str | None, min_position: int, *, head_only: bool
    ) -> Response:
        """A stream of the events after a position; raises Problem, and ViewsUnavailable."""
        if self.count >= MAX_STREAMS:
            raise Problem(
                "too-many-streams", f"{self.count} streams are open here: come back later"
            )

        async def query() -> tuple[FeedPage, int]:
            page = await self.page(after, type_)
            return page, page.head

        page, _ = await self._reads.read_at_least(min_position, query)
        return EventStream(self, page, type_) if not head_only else Response(None, 200, _HEADERS)

    async def page(self, after: int, type_: str | None) -> FeedPage:
        """The page after a position, read once for all streams that want it."""
        return await self._pages.join_next((after, type_), lambda: self._read(after, type_))

    async def _read(self, after: int, type_: str | None) -> FeedPage:
        async with self._turns:
            page = await self._feed.page(after, PAGE, type_)
        self._move_head(page.head)
        return page

    async def grows_beyond(self, position: int) -> bool:
        """True as soon as the ledger goes beyond a position; False after HEARTBEAT_S."""
        with suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_S):
                while self._head <= position:
                    await self._head_moved.wait()
        return self._head > position

    def announced(self, announcement: Announcement) -> None:
        """Wake the streams: the ledger goes at least to the announced position."""
        self._announced_lately = True
        self._move_head(announcement.position)

    def _move_head(self, head: int) -> None:
        if head > self._head:
            self._head = head
            # Those who wait now are woken; the next ones wait for the next event.
            self._head_moved.set()
            self._head_moved = asyncio.Event()

    async def run(self) -> None:
        """Look at the ledger when nothing is announced, for as long as the process runs.

        The projector may be away while the ledger grows.
        """
        while True:
            self._announced_lately = False
            await asyncio.sleep(SILENCE_S)
            if self.count and not self._announced_lately:
                with suppress(ViewsUnavailable):
                    self._move_head(await self._feed.head())


class EventStream(Response):
    """A page of the ledger and all that comes after it, until client or process ends it."""

    def __init__(self, streams: EventStreams, first: FeedPage, type_: str | None) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)
        self._streams = streams
        self._first = first
        self._type = type_

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream; a client that takes nothing for WRITE_TIMEOUT_S is cut off."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        self._streams.count += 1
        try:
            await _send(send, start)
            await first_to_end(
                self._write_events(send),
                _disconnected(receive),
                self._streams.stopped.wait(),
                credential_ended(scope),
            )
            last = {"type": "http.response.body", "body": b""}
            await _send(send, last, LAST_WRITE_TIMEOUT_S)
        except TimeoutError:
            scope["state"][ABORT]()
            await _disconnected(receive)
        finally:
            self._streams.count -= 1

    async def _write_events(self, send: Send) -> None:
        await _write(send, b"retry: %d\n\n" % (RETRY_S * 1000))
        page = self._first
        while True:
            # A chunk is the most that a slow client has in this process's memory.
            chunk = b"" if page.events else _heartbeat(page)
            for event in page.events:
                chunk += b"id: %d\ndata: %s\n\n" % (event.position, event.body)
                if len(chunk) >= CHUNK:
                    await _write(send, chunk)
                    chunk = b""
            if chunk:
                await _write(send, chunk)
            while page.is_last and not await self._streams.grows_beyond(page.scanned_to):
                await _write(send, _heartbeat(page))
            page = await self._page_after(page.scanned_to)

    async def _page_after(self, position: int) -> FeedPage:
        while True:
            try:
                return await self._streams.page(position, self._type)
            except ViewsUnavailable:
                await asyncio.sleep(RETRY_S)


def _heartbeat(page: FeedPage) -> bytes:
    """No event, but how far a filter has looked, for when the client reconnects."""
    return b": all up to here\nid: %d\n\n" % page.scanned_to


async def _write(send: Send, body: bytes) -> None:
    await _send(send, {"type": "http.response.body", "body": body, "more_body": True})


async def _send(send: Send, message: Message, timeout_s: float | None = None) -> None:
    async with asyncio.timeout(timeout_s or WRITE_TIMEOUT_S):
        await send(message)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
