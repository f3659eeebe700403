"""Server-sent events: the ledger as it grows, for many clients, each at its own pace.

A stream holds one page at a time and reads the next when the last one is written. All streams are
woken by one announcement, so a client that waits costs the database nothing.

What is sent is events alone: readers that know less than the standard take a blank line for an
event without data. So what is not an event, comments and `retry`, is a line without one.
"""

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.auth.guard import credential_ended
from api.auth.rate_limit import Client
from api.http.parameters import LAST_EVENT_ID
from api.http.problems import Problem, beyond_head
from api.http.responses import problem_response
from api.reads.consistent_reads import ConsistentReads
from ledger.runtime.cache import SingleFlight
from ledger.runtime.reconnect import first_to_end
from projections.announcements import Announcement
from projections.queries import MAX_SCAN, Feed, FeedFilter, FeedPage, ViewsUnavailable

EVENT_STREAM: Final = "text/event-stream"

MAX_STREAMS: Final = 200
# Of one API key or token, so that it can't take all of them.
MAX_STREAMS_OF_CLIENT: Final = 50
# At once, so that streams can't take the database connections that the views are read with.
MAX_READS: Final = 2
PAGE: Final = 200
CHUNK: Final = 32 * 1024
HEARTBEAT_S: Final = 15.0
# How often the ledger's end is looked at, once for all streams: the projector, which announces it,
# may be away, and a restore takes the ledger back.
LOOK_S: Final = 5.0
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
        self._pages = SingleFlight[tuple[int, FeedFilter], FeedPage]()
        self._turns = asyncio.Semaphore(MAX_READS)
        self._head = 0
        self._head_moved = asyncio.Event()
        # Set when the process is about to stop: all streams end then.
        self.stopped = asyncio.Event()
        self._counts = Counter[Client]()

    @property
    def count(self) -> int:
        """The number of streams that are open or about to be."""
        return self._counts.total()

    async def open(
        self,
        client: Client,
        after: int,
        cursor: str,
        only: FeedFilter,
        min_position: int,
        *,
        head_only: bool,
    ) -> Response:
        """A stream of the events after a position, which the parameter `cursor` named.

        It counts from here on, as its first page may take a while; what is returned must be called.
        Raises Problem, for a position beyond the ledger's end too, and ViewsUnavailable.
        """
        self._count(client)
        try:
            page = await self._first_page(after, cursor, only, min_position)
        except BaseException:
            self.ended(client)
            raise
        stream = EventStream(self, client, page, after, only)
        if not head_only:
            return stream
        self.ended(client)
        head = Response(None, 200)
        # Without the length 0 of this answer: that of GET has none (RFC 9110, 9.3.2).
        head.raw_headers = stream.raw_headers
        return head

    def _count(self, client: Client) -> None:
        if self.count >= MAX_STREAMS:
            raise Problem(
                "too-many-streams", f"{self.count} streams are open here: come back later"
            )
        # Strangers are not told apart: an API that asks nobody for a key may be behind a proxy.
        if client.known and self._counts[client] >= MAX_STREAMS_OF_CLIENT:
            detail = f"{MAX_STREAMS_OF_CLIENT} streams of this client are open here: close one"
            raise Problem("too-many-requests", detail, headers={"Retry-After": "1"})
        self._counts[client] += 1

    def ended(self, client: Client) -> None:
        """Count a stream of the client no more."""
        self._counts[client] -= 1
        if not self._counts[client]:
            del self._counts[client]

    async def _first_page(
        self, after: int, cursor: str, only: FeedFilter, min_position: int
    ) -> FeedPage:
        async def query() -> tuple[FeedPage, int]:
            page = await self.page(after, only)
            return page, page.head

        page, _ = await self._reads.read_at_least(min_position, query)
        if after > page.head:
            raise beyond_head(cursor, page.head, page.ledger_id)
        return page

    async def page(self, after: int, only: FeedFilter) -> FeedPage:
        """The page after a position, read once for all streams that want it."""
        return await self._pages.join_next((after, only), lambda: self._read(after, only))

    async def _read(self, after: int, only: FeedFilter) -> FeedPage:
        async with self._turns:
            known = self._head
            page = await self._feed.page(after, PAGE, only)
        self._head_read(page.head, known)
        return page

    async def head_differs(self, position: int) -> bool:
        """True as soon as the ledger ends elsewhere than at a position; False after HEARTBEAT_S."""
        with suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_S):
                while self._head == position:
                    await self._head_moved.wait()
        return self._head != position

    def announced(self, announcement: Announcement) -> None:
        """Wake the streams: the ledger goes at least to the announced position."""
        self._move_head(max(announcement.position, self._head))

    def _head_read(self, head: int, known: int) -> None:
        """Note the end that was read when the ledger was known to go at least to `known`."""
        # It goes back only where it was read after all that is known of it.
        self._move_head(head if head < known == self._head else max(head, self._head))

    def _move_head(self, head: int) -> None:
        if head != self._head:
            self._head = head
            # Those who wait now are woken; the next ones wait for the next event.
            self._head_moved.set()
            self._head_moved = asyncio.Event()

    async def run(self) -> None:
        """Look where the ledger ends while there are streams, for as long as the process runs."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._counts:
                known = self._head
                with suppress(ViewsUnavailable):
                    self._head_read((await self._feed.head()).position, known)


class EventStream(Response):
    """A page of the ledger and all that comes after it, until client or process ends it."""

    def __init__(
        self, streams: EventStreams, client: Client, first: FeedPage, after: int, only: FeedFilter
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)
        self._streams = streams
        self._client = client
        self._first = first
        self._after = after
        self._only = only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream; the server ends the connection of a client that does not take what is sent."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            await send(start)
            await first_to_end(
                self._write_events(send, scope["path"]),
                _disconnected(receive),
                self._streams.stopped.wait(),
                credential_ended(scope),
            )
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._streams.ended(self._client)

    async def _write_events(self, send: Send, path: str) -> None:
        """Write what there is and what comes, until the ledger is another one or goes back."""
        await _write(send, b"retry: %d\n" % (RETRY_S * 1000))
        now = asyncio.get_running_loop().time
        written_at = now()
        page, sent_to = self._first, self._after
        while True:
            # A chunk is the most that a slow client has in this process's memory.
            chunk = b""
            for event in page.events:
                chunk += _event(event.type, event.position, event.body)
                sent_to = event.position
                if len(chunk) >= CHUNK:
                    await _write(send, chunk)
                    chunk = b""
            if page.scanned_to - sent_to >= MAX_SCAN:
                # A client that comes back need not wait until all this was looked at again.
                sent_to = page.scanned_to
                chunk += _event("position", sent_to, b'{"position":%d}' % sent_to)
            if not chunk and now() - written_at >= HEARTBEAT_S:
                chunk = _HEARTBEAT
            if chunk:
                await _write(send, chunk)
                written_at = now()
            while page.is_last and not await self._streams.head_differs(page.scanned_to):
                await _write(send, _HEARTBEAT)
                written_at = now()
            after = page.scanned_to
            page = await self._page_after(after)
            if page.head < after or page.ledger_id != self._first.ledger_id:
                problem = beyond_head(LAST_EVENT_ID.name, page.head, page.ledger_id)
                body = bytes(problem_response(problem, path).body)
                await _write(send, _event("problem", None, body))
                return

    async def _page_after(self, position: int) -> FeedPage:
        while True:
            try:
                return await self._streams.page(position, self._only)
            except ViewsUnavailable:
                await asyncio.sleep(RETRY_S)


_HEARTBEAT: Final = b": nothing new\n"


def _event(name: str, position: int | None, data: bytes) -> bytes:
    id_line = b"" if position is None else b"id: %d\n" % position
    return b"event: %s\n%sdata: %s\n\n" % (name.encode(), id_line, data)


async def _write(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
