"""One HTTP/1.1 connection: each of its states has a deadline, and all that it holds has a bound.

    idle ──first byte──> head ──blank line──> serving ──answer sent, body read──> idle
                          │                      │
                          └──────refused─────────┴──> closing ──> closed

idle     Nothing of a request is here. Ends after KEEP_ALIVE_S.
head     A part of a request's head is here. Refused after HEAD_TIMEOUT_S.
serving  The application works on a request, whose own deadlines hold. What it leaves unread of the
         body is thrown away for DISCARD_TIMEOUT_S after the answer. Nothing of the next request is
         parsed meanwhile, so what a client pipelines is bytes, and few. A client that shuts down
         its side gets its answer, but for one that may have no end: that ends then.
closing  All was said. What still arrives is thrown away for LINGER_S: closing a socket with unread
         bytes resets it, and the answer with it (RFC 9112, 9.6).

In any of them a client that does not take its answer is cut off, by MIN_WRITE_RATE.

The bytes are parsed by llhttp (httptools). The rest is by hand, because none of the servers that
were tried has all these limits: docs/explanation/http-server.md compares them.
"""

import asyncio
import fcntl
import heapq
import logging
import re
import socket
import struct
import sys
from collections import Counter, deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import httptools
import prometheus_client
from starlette.types import ASGIApp, Scope

from api.http.exchange import HEAD_END, Exchange, Refused
from api.http.middleware import METHODS, request_id_of

log = logging.getLogger(__name__)

KEEP_ALIVE_S: Final = 75.0
HEAD_TIMEOUT_S: Final = 10.0
DISCARD_TIMEOUT_S: Final = 1.0
LINGER_S: Final = 2.0
WRITE_TIMEOUT_S: Final = 10.0
# Bytes a second that a client must take of its answer, after WRITE_TIMEOUT_S.
MIN_WRITE_RATE: Final = 8 * 1024
SWEEP_S: Final = 0.25
REPORT_S: Final = 10.0

# Bytes of path and query; RFC 9112, 3 asks for at least 8,000.
MAX_TARGET: Final = 8 * 1024
MAX_HEAD: Final = 32 * 1024
MAX_HEADERS: Final = 100
# A name has at most 253 characters (RFC 1035, 2.3.4), and a port five: the values are remembered.
MAX_HOST: Final = 260
# Chunk sizes, chunk extensions and trailers, besides some bytes for each byte of the body.
MAX_FRAMING: Final = 16 * 1024
FRAMING_PER_BYTE: Final = 8
# A chunked body is parsed in pieces of this size: one can hide few requests behind its end.
CHUNKED_PIECE: Final = 1024
# A body that the application has not taken yet; more is left in the socket.
MAX_UNREAD_BODY: Final = 64 * 1024
# Many a client reads no answer before it has sent its body, so too large a one is taken as well.
MAX_DISCARD: Final = 4 * 1024 * 1024
# Of an answer: beyond this the application waits until the client took some.
WRITE_BUFFER: Final = 64 * 1024
# A body up to this size counts as nothing: orders are taken, however many uploads are under way.
SMALL_BODY: Final = 16 * 1024
# To make room, so much of the open connections is ended at once, and no more than so many.
ENDED_PART: Final = 8
MAX_ENDED: Final = 256
# What all connections hold together; beyond it, who holds for the longest time is cut off.
MAX_UNSENT: Final = 64 * 1024 * 1024
MAX_UNPARSED: Final = 32 * 1024 * 1024
MAX_UPLOADS: Final = 64 * 1024 * 1024

FOREVER: Final = float("inf")
ASGI: Final = {"version": "3.0", "spec_version": "2.4"}
HEAD_RULE: Final = f"path and headers have over {MAX_HEAD} bytes"
FRAMING_RULE: Final = "there is too much around the body: chunk extensions, trailer fields"
TARGET_RULE: Final = "the target must be a path, such as /orders, or an http URI without user"
HOST_RULE: Final = "one Host header must name the host, and perhaps a port (RFC 9112, 3.2)"
# An abort with this set resets the connection: the kernel keeps nothing for who takes nothing.
RESET: Final = struct.pack("ii", 1, 0)
# Asks Linux for the bytes that are in a socket and not on their way (linux/sockios.h).
SIOCOUTQNSD: Final = 0x894B

_HOST: Final = re.compile(
    rb"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]+)(:[0-9]{0,5})?"
).fullmatch
_REQUEST_LINE: Final = re.compile(
    rb"(?:\r\n)*[!#$%&'*+.^_`|~0-9A-Za-z-]+ (\S+) HTTP/1\.[01]\r\n"
).match
_PART_OF_LINE: Final = re.compile(rb"[ -~]+\r?").fullmatch
_ABSOLUTE_FORM: Final = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE).fullmatch
_ENCODED_SLASH: Final = re.compile(rb"%2[fF]")

ENDED: Final = prometheus_client.Counter(
    "ledger_http_connections_ended",
    "Connections that this process ended: idle, slow-head, unread-body, slow-reader, memory (they"
    " held too much together), no-room (for new ones), failed (half an answer)",
    ["reason"],
    registry=None,
)
OPEN: Final = prometheus_client.Gauge(
    "ledger_http_connections", "Connections of clients that are open", registry=None
)


@lru_cache(maxsize=1024)
def is_host(value: bytes) -> bool:
    """Whether a Host field names a host, and perhaps a port (RFC 9110, 7.2)."""
    return _HOST(value) is not None


def decoded_path(raw_path: bytes) -> str:
    """The path that is looked up: decoded, and without the slash that every path may end with.

    An encoded slash stays encoded, as it is a part of a segment (RFC 3986, 2.2). Raises Refused.
    """
    if b"%" in raw_path:
        raw_path = unquote_to_bytes(_ENCODED_SLASH.sub(b"%252F", raw_path))
    try:
        path = raw_path.decode()
    except UnicodeDecodeError:
        raise Refused("bad-request", "the path must be percent-encoded UTF-8") from None
    return path[:-1] if path.endswith("/") and len(path) > 1 else path


class Budget:
    """Bytes of one sort that connections hold, together at most `limit`.

    Beyond it, the one that holds for the longest time is cut off: a client that wants something
    else than to hold has what it wants by then.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sizes: dict[ClientConnection, int] = {}
        self._total = 0

    def hold(self, connection: "ClientConnection", size: int) -> None:
        """Set what a connection holds."""
        self._total += size - self._sizes.get(connection, 0)
        self._sizes[connection] = size
        while self._total > self._limit:
            oldest = next(iter(self._sizes))
            self.release(oldest)
            oldest.cut("memory")

    def release(self, connection: "ClientConnection") -> None:
        """Say that a connection holds nothing."""
        self._total -= self._sizes.pop(connection, 0)


class Connections:
    """All connections of a server: what they share, and what they may hold together."""

    def __init__(self, app: ASGIApp, allows_host: Callable[[bytes], bool]) -> None:
        self.app = app
        self.allows_host = allows_host
        self.loop = asyncio.get_running_loop()
        self.open: set[ClientConnection] = set()
        self.stopping = False
        self.tasks: set[asyncio.Task[None]] = set()
        self.unsent = Budget(MAX_UNSENT)
        self.unparsed = Budget(MAX_UNPARSED)
        self.uploads = Budget(MAX_UPLOADS)
        self._ended = Counter[str]()
        self._report_at = 0.0

    def sweep(self) -> None:
        """End what is past its deadline, and log now and then what was ended and why."""
        now = self.loop.time()
        for connection in [c for c in self.open if c.deadline < now or c.write_deadline < now]:
            connection.expire(now)
        OPEN.set(len(self.open))
        if self._ended and now > self._report_at:
            self._report_at = now + REPORT_S
            reasons = ", ".join(f"{reason} {count}" for reason, count in self._ended.most_common())
            log.warning("ended connections of clients: %s", reasons)
            self._ended.clear()

    def count_ended(self, reason: str) -> None:
        """Count a connection that we end. Idle ones are nothing to log."""
        ENDED.labels(reason).inc()
        if reason != "idle":
            self._ended[reason] += 1

    def make_room(self) -> bool:
        """End some connections that nobody works for; returns whether there were any.

        Those that are idle go first, and of those and the others the ones whose time is over first;
        who has not taken the last answer yet goes last.
        """
        unused = (connection for connection in self.open if connection.is_unused)
        count = min(MAX_ENDED, 1 + len(self.open) // ENDED_PART)
        first = heapq.nsmallest(2 * count, unused, key=lambda c: (not c.idle, c.deadline))
        first.sort(key=ClientConnection.has_unsent)
        for connection in first[:count]:
            connection.make_room()
        return bool(first)


class ClientConnection(asyncio.Protocol):
    """One client. Its requests are answered one after the other."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self.transport: asyncio.Transport
        self.lost = False
        # Whether the answer is full: more of it has to wait until the client takes some.
        self.is_full = False
        # The client sends no more.
        self.has_ended = False
        # Neither means serving, or closing.
        self.idle = False
        self._in_head = True
        # When to call `expire`, in seconds of the loop's clock.
        self.deadline = connections.loop.time() + HEAD_TIMEOUT_S
        self.write_deadline = FOREVER
        self._parser: Any = httptools.HttpRequestParser(self)
        # What is being served, what was parsed behind it, and that whose body is being read.
        self._current: Exchange | None = None
        self._next: deque[Exchange | Refused] = deque()
        self._reading: Exchange | None = None
        # Received, and parsed up to `_position`.
        self._input = b""
        self._position = 0
        self._holds_input = False
        # The parser is fed a head that was served already.
        self._repeats_head = False
        # A line whose method the parser doesn't know, until its end says whether it is a request.
        self._bad_line: bytearray | None = None
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._host: bytes | None = None
        self._expects = False
        self._head_size = 0
        # Of the body: its length if it is known, what came, what came around it, what was no use.
        self._length: int | None = 0
        self._body_size = 0
        self._framing_size = 0
        self._discarded = 0
        self._is_refused = False
        self._is_closing = False
        self._is_paused = False
        self._room: asyncio.Future[None] | None = None

    @property
    def is_stopping(self) -> bool:
        """Whether the next answer is the last one."""
        return self.connections.stopping

    @property
    def is_unused(self) -> bool:
        """Whether there is no request that is served."""
        return self._current is None and not self._is_closing

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the client in."""
        self.transport = transport
        transport.set_write_buffer_limits(WRITE_BUFFER)
        self._client = transport.get_extra_info("peername")[:2]
        self._server = transport.get_extra_info("sockname")[:2]
        self.connections.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application that nobody waits for its answer."""
        connections = self.connections
        self.lost = True
        connections.open.discard(self)
        connections.unparsed.release(self)
        connections.uploads.release(self)
        self.resume_writing()
        self._next.clear()
        if self._current:
            self._current.wake()
        # The parser and its connection keep each other alive until the garbage is collected.
        self._parser = None

    def eof_received(self) -> bool:
        """Answer what is here: a client may shut down its side and wait."""
        self.has_ended = True
        self.go_on()
        if self._current:
            self._current.wake()
        return not self._is_closing

    def pause_writing(self) -> None:
        """The client takes its answer slower than it is made: have the application wait."""
        self.is_full = True
        size = self.transport.get_write_buffer_size()
        self.write_deadline = self._write_deadline(size)
        self.connections.unsent.hold(self, size)

    def resume_writing(self) -> None:
        """There is room again."""
        self.is_full = False
        self.write_deadline = FOREVER
        self.connections.unsent.release(self)
        if self._is_closing:
            # What is left is less than a full buffer, so nobody calls when it is taken.
            self.deadline = self.connections.loop.time() + LINGER_S
        elif self._current is None:
            self._start_waiting()
        if self._room and not self._room.done():
            self._room.set_result(None)
        self.go_on()

    def _write_deadline(self, size: int) -> float:
        return self.connections.loop.time() + WRITE_TIMEOUT_S + size / MIN_WRITE_RATE

    async def has_room(self) -> None:
        """Return when there is room for more of the answer, or nobody who wants it."""
        while self.is_full and not self.lost:
            self._room = self.connections.loop.create_future()
            await self._room

    def data_received(self, data: bytes) -> None:
        """Parse what came, or throw it away."""
        if self._is_closing:
            self._discard(len(data))
            return
        self._input = self._input[self._position :] + data if self._input else data
        self._position = 0
        self.go_on()

    def go_on(self) -> None:
        """Parse and serve as far as that is possible now; leave the rest in the socket."""
        while not self._is_closing and not self.lost:
            if self._next and self._current is None and not self.is_full:
                self._serve(self._next.popleft())
            elif self._input and not self._is_waiting():
                self._parse_piece()
            else:
                break
        if self._is_closing or self.lost:
            return
        if self._input:
            self._holds_input = True
            self.connections.unparsed.hold(self, len(self._input))
        elif self._holds_input:
            self._holds_input = False
            self.connections.unparsed.release(self)
        if self.has_ended and not self._input and not self._is_refused:
            self._end_input()
            return
        waits = self._is_waiting()
        if waits and self._current and self._current.awaits_end:
            # Its end is behind what is left in the socket.
            waits = len(self._input) >= MAX_HEAD
        if waits != self._is_paused:
            self._is_paused = waits
            if waits:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def _is_waiting(self) -> bool:
        """Whether nothing may be parsed now: a request is served, or its body is not taken."""
        reading = self._reading
        if self._is_refused:
            return True
        if reading is None or reading.received:
            return self._current is not None or self.is_full
        return len(reading.body) > MAX_UNREAD_BODY

    def _take_piece(self) -> bytes:
        """The input up to the end of a head or of a body, or all if that is not to be seen."""
        data, start, reading = self._input, self._position, self._reading
        if reading is None or reading.received:
            end = data.find(HEAD_END, start)
            end = len(data) if end < 0 else end + len(HEAD_END)
            # A head that is too large is not fed to its end, so it's never served.
            end = min(end, start + MAX_HEAD + 1 - self._head_size)
        elif self._length is None:
            end = start + CHUNKED_PIECE
        else:
            end = start + self._length - self._body_size
        if end < len(data):
            self._position = end
        else:
            self._input, self._position = b"", 0
        return data[start:end]

    def _parse_piece(self) -> None:
        reading, body_size = self._reading, self._body_size
        is_head = reading is None or reading.received
        piece = self._take_piece()
        if self._bad_line is not None:
            self._refuse_line(piece)
            return
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self._parse_without_upgrade(piece, len(piece) - upgrade.args[0])
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, Refused):
                raise
            self._refuse(error.__context__)
        except httptools.HttpParserInvalidMethodError:
            # The parser had the part of the method that came before.
            self._bad_line = bytearray(b"x" if self._head_size else b"")
            self._refuse_line(piece)
        except httptools.HttpParserError as error:
            self._refuse(Refused("bad-request", f"this is not HTTP/1.1: {error}"))
        else:
            if reading is not self._reading:
                return  # the head has ended
            if is_head:
                self._head_size += len(piece)
                if self._head_size > MAX_HEAD:
                    self._refuse(Refused("head-too-large", HEAD_RULE))
            elif self._length is None:
                self._framing_size += len(piece) - (self._body_size - body_size)
                if self._framing_size > MAX_FRAMING + FRAMING_PER_BYTE * self._body_size:
                    self._refuse(Refused("head-too-large", FRAMING_RULE))

    def _refuse_line(self, piece: bytes) -> None:
        """Refuse an unknown method, or what is no request, once the first line is here."""
        assert self._bad_line is not None  # noqa: S101
        self._bad_line += piece
        self._head_size += len(piece)
        if _PART_OF_LINE(piece) and self._head_size < MAX_TARGET:
            return
        line = _REQUEST_LINE(self._bad_line)
        # They would be those of the request before.
        self._url, self._headers = line[1] if line else b"", []
        if line:
            self._refuse(Refused("unknown-method", "the method is none that is known"))
        else:
            self._refuse(Refused("bad-request", "this is not HTTP/1.1: no method comes first"))

    def _parse_without_upgrade(self, piece: bytes, rest: int) -> None:
        """Go on behind a head that asks for another protocol: none is spoken here (RFC 9110, 7.8).

        The parser stops there and leaves the body to that protocol, so another one reads it: it
        gets the part of the head that says how long the body is. `rest` bytes of the piece follow.
        """
        if rest:
            # Nothing but a piece is copied: there may be many such requests in the input.
            self._position = (self._position or len(piece)) - rest
            self._input = self._input or piece
        self._parser = httptools.HttpRequestParser(self)
        reading = self._reading
        if reading and not reading.received:
            framing = b"Transfer-Encoding: chunked"
            if self._length is not None:
                framing = b"Content-Length: %d" % self._length
            self._repeats_head = True
            self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
            self._repeats_head = False

    def on_message_begin(self) -> None:
        """Start a request. The parser calls this, and the others whose names begin like it."""
        if self._repeats_head:
            return
        if not self._in_head:
            self._in_head = True
            if self._current is None:
                self.idle = False
                self.deadline = self.connections.loop.time() + HEAD_TIMEOUT_S
        self._url, self._headers, self._host = b"", [], None
        self._expects, self._length = False, 0

    def on_url(self, url: bytes) -> None:
        """Add to the target of the request."""
        self._url += url
        if len(self._url) > MAX_TARGET:
            raise Refused("target-too-long", f"path and query have over {MAX_TARGET} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header. Fields of a trailer are none (RFC 9110, 6.5.1)."""
        if not self._in_head:
            return
        name, value = name.lower(), value.rstrip(b" \t")
        self._headers.append((name, value))
        if len(self._headers) > MAX_HEADERS:
            raise Refused("head-too-large", f"there are over {MAX_HEADERS} headers")
        if name == b"host":
            if self._host is not None or len(value) > MAX_HOST or not is_host(value):
                raise Refused("bad-request", HOST_RULE)
            self._host = value
        elif name == b"content-length":
            self._length = int(value)  # the parser has checked it
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked":
                raise Refused("unknown-coding", "the only transfer coding known here is chunked")
            self._length = None
        elif name == b"expect":
            self._expects = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        """Serve the request, or let it wait for the answers before it."""
        if self._repeats_head:
            return
        self._in_head = False
        self._head_size = self._framing_size = self._body_size = self._discarded = 0
        parser = self._parser
        method, version = parser.get_method().decode(), parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise Refused("bad-request", f"this server speaks HTTP/1.1, not HTTP/{version}")
        if version == "1.1" and self._host is None:
            raise Refused("bad-request", HOST_RULE)
        if version == "1.0" and self._length is None:
            raise Refused("bad-request", "HTTP/1.0 has no transfer codings")
        if method not in METHODS:
            raise Refused("unknown-method", f"the method {method} is not known here")
        target = self._url if self._url.startswith(b"/") else self._path_of(self._url, method)
        if self._host is not None and not self.connections.allows_host(self._host):
            raise Refused("misdirected-host", f"this is not the server of {self._host.decode()}")
        if b"#" in target:
            raise Refused("bad-request", "a fragment (#) is not sent to a server (RFC 9110, 4.2.5)")
        raw_path, _, query = target.partition(b"?")
        scope: Scope = {
            "type": "http",
            "asgi": ASGI,
            "http_version": version,
            "scheme": "http",
            "method": method,
            "path": decoded_path(raw_path),
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": self._headers,
            "client": self._client,
            "server": self._server,
        }
        exchange = self._reading = Exchange(self, scope, keep_alive=parser.should_keep_alive())
        exchange.expects = self._expects and version == "1.1"
        if self._current is None and not self.is_full:
            self._serve(exchange)
        else:
            self._next.append(exchange)

    def _path_of(self, target: bytes, method: str) -> bytes:
        """Path and query of a target that does not begin with them (RFC 9112, 3.2)."""
        if target == b"*" and method == "OPTIONS":
            return target
        form = _ABSOLUTE_FORM(target)
        if form is None:
            raise Refused("bad-request", TARGET_RULE)
        # The host of the target holds, whatever Host says (RFC 9112, 3.2.2).
        self._host = form[1]
        if len(form[1]) > MAX_HOST or not is_host(form[1]):
            raise Refused("bad-request", TARGET_RULE)
        return form[2] if form[2].startswith(b"/") else b"/" + form[2]

    def on_body(self, body: bytes) -> None:
        """Add to the body, or throw it away where the answer was given without it."""
        reading = self._reading
        assert reading is not None  # noqa: S101  # a head comes first
        self._body_size += len(body)
        if reading.answered:
            self._discard(len(body))
            return
        reading.body += body
        reading.wake()
        if self._body_size > SMALL_BODY:
            self.connections.uploads.hold(self, self._body_size)

    def on_message_complete(self) -> None:
        """End the body."""
        reading = self._reading
        assert reading is not None  # noqa: S101
        if self._parser.should_upgrade() and self._length != self._body_size:
            return  # the parser leaves out the body: `_parse_without_upgrade`
        reading.received = True
        reading.wake()
        if self._body_size > SMALL_BODY:
            self.connections.uploads.release(self)
        if reading.answered:
            self._finish()

    def _serve(self, item: Exchange | Refused) -> None:
        self.idle = False
        self.deadline = FOREVER
        if isinstance(item, Refused):
            # Nothing is parsed behind it: the method is that of its request, if it has a target.
            has_method = self._url != b"" and self._bad_line is None
            is_head = has_method and self._parser.get_method() == b"HEAD"
            path, request_id = self._refused_path(), request_id_of(self._headers)
            self.transport.write(item.answer(path, request_id, is_bodiless=is_head))
            self._close()
            return
        self._current = item
        task = self.connections.loop.create_task(self._run(item))
        self.connections.tasks.add(task)
        task.add_done_callback(self.connections.tasks.discard)

    def _refused_path(self) -> bytes:
        """The path of the request that is refused; empty if its target is none, or not all here."""
        target = self._url
        is_whole = not self._in_head or self._headers or self._bad_line
        if not is_whole and len(target) <= MAX_TARGET:
            return b""
        if form := _ABSOLUTE_FORM(target):
            target = form[2] if form[2].startswith(b"/") else b"/"
        return target.partition(b"?")[0] if target.startswith(b"/") else b""

    async def _run(self, exchange: Exchange) -> None:
        try:
            await self.connections.app(exchange.scope, exchange.receive, exchange.send)
        except Exception:
            log.exception("a request failed, and so did the application's answer to that")
        if exchange.answered or self.lost:
            return
        if exchange.started:
            # The rest of the answer is missing, and only the end of the connection says so.
            self.cut("failed")
        else:
            exchange.refuse(
                Refused("internal-error", "the request failed, and why has been logged")
            )

    def answered(self, exchange: Exchange, *, keep_alive: bool) -> None:
        """Go on after an answer: read the rest of its request, or take the next one."""
        if not keep_alive or exchange.broken or self.connections.stopping:
            self._close()
        elif exchange.received:
            self._finish()
            self.go_on()
        elif self._length is not None and self._length - self._body_size > MAX_DISCARD:
            self._close()
        else:
            self.connections.uploads.release(self)
            exchange.body = bytearray()
            self.deadline = self.connections.loop.time() + DISCARD_TIMEOUT_S
            self.go_on()

    def _finish(self) -> None:
        """Forget the request that was answered and read; the next one has its time from now."""
        self._current = None
        self._start_waiting()

    def _start_waiting(self) -> None:
        """Wait for a request, or for the rest of a head."""
        self.idle = not self._in_head
        timeout_s = KEEP_ALIVE_S if self.idle else HEAD_TIMEOUT_S
        self.deadline = self.connections.loop.time() + timeout_s

    def _end_input(self) -> None:
        """The client sends no more."""
        reading = self._reading
        # The beginning of a head that came with the end of a body is in the parser, uncounted.
        has_head = self._in_head and (self._head_size or reading)
        if (reading and not reading.received) or has_head:
            self._refuse(Refused("bad-request", "the request ended early"))
        elif self._current is None:
            self._close()

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > MAX_DISCARD:
            self.cut("unread-body")

    def _refuse(self, refusal: Refused) -> None:
        """Answer what is no request, after the answers to those before it; then hang up."""
        self._is_refused = True
        self._input, self._position = b"", 0
        reading = self._reading
        if reading and not reading.received and not self._in_head:
            # Its own answer waits for the rest of a body that can't be read.
            reading.broken = refusal
            if reading.answered:
                self._close()
            else:
                reading.wake()
        elif self._current is None and not self.is_full:
            self._serve(refusal)
        else:
            self._next.append(refusal)

    def expire(self, now: float) -> None:
        """End the state whose deadline has passed."""
        if self.write_deadline < now:
            self.cut("slow-reader")
        elif self._is_closing:
            if unsent := self.transport.get_write_buffer_size():
                self.deadline, self.write_deadline = FOREVER, self._write_deadline(unsent)
            else:
                self.transport.abort()
        elif self._current is None and self.is_full:
            # What it waits for is not read until the client takes its answers; that has its time.
            self.deadline = FOREVER
        elif self.idle:
            self.connections.count_ended("idle")
            self._close()
        elif self._current is None:
            self.connections.count_ended("slow-head")
            detail = f"path and headers must be here within {HEAD_TIMEOUT_S:g} s"
            self._refuse(Refused("head-too-slow", detail))
        else:
            self.connections.count_ended("unread-body")
            self._close()

    def stop(self) -> None:
        """Hang up if nothing is under way; otherwise the next answer is the last one."""
        if self.is_unused:
            self._close()

    def has_unsent(self) -> bool:
        """Whether the client has not taken all that was sent to it."""
        if self.transport.get_write_buffer_size():
            return True
        if sys.platform != "linux" or self.transport.is_closing():
            return False
        file = self.transport.get_extra_info("socket").fileno()
        return any(fcntl.ioctl(file, SIOCOUTQNSD, bytes(4)))

    def make_room(self) -> None:
        """End a connection that is not used, so that another client can be taken in."""
        if self.idle and not self.has_unsent():
            self.connections.count_ended("no-room")
            self._close()
        else:
            self.cut("no-room")

    def cut(self, reason: str) -> None:
        """Reset the connection: what is unsent or unread of it is gone at once."""
        if not self.transport.is_closing() or self._is_closing:
            self.connections.count_ended(reason)
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, RESET
            )
            self.transport.abort()

    def _close(self) -> None:
        """Hang up once all is sent; if the client may be sending still, throw that away first."""
        reading = self._reading
        # What came while reading was paused is still in the socket.
        lingers = self._is_refused or self._is_paused or (reading and not reading.received)
        self._is_closing = True
        self.idle = self._in_head = False
        self._current = None
        self._next.clear()
        self._input, self._position = b"", 0
        self.connections.unparsed.release(self)
        self.connections.uploads.release(self)
        self._discarded = 0
        self.deadline = self.connections.loop.time() + LINGER_S
        if self.has_ended or not lingers:
            self.transport.close()
        elif not self.transport.is_closing():
            self.transport.write_eof()
            if self._is_paused:
                self.transport.resume_reading()
