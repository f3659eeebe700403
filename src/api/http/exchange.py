"""A request and its answer, between the application (ASGI) and the connection that they use.

`connection` parses requests and bounds what a client may do; how an answer is framed is here.
"""

import asyncio
import time
from collections.abc import Awaitable, Iterator
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, Protocol

from starlette.types import Message, Scope

from api.http.middleware import PROBLEMS, REQUEST_ID, request_id_of
from api.http.problems import CLOSE, Problem
from api.http.responses import path_reference, problem_response

STATUS_LINES: Final = {
    int(status): f"HTTP/1.1 {status} {status.phrase}\r\n".encode() for status in HTTPStatus
}
WITHOUT_BODY: Final = frozenset((204, 304))
HEAD_END: Final = b"\r\n\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Refused(Exception):
    """The client sent what can't be served: it is answered with a problem, and hung up on."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail

    def answer(self, raw_path: bytes, request_id: bytes, *, is_bodiless: bool = False) -> bytes:
        """The answer, whole; `is_bodiless`: without its body, as HEAD is answered.

        `raw_path` is that of the request, empty if the client did not get so far.
        """
        PROBLEMS.labels(self.kind).inc()
        headers = {
            **CLOSE,
            "X-Request-Id": request_id.decode(),
            "X-Content-Type-Options": "nosniff",
        }
        problem = Problem(self.kind, self.detail, headers=headers)
        response = problem_response(problem, path_reference(raw_path))
        head = head_of(response.status_code, response.raw_headers)
        return head if is_bodiless else head + bytes(response.body)


class Done(Awaitable[None]):
    """Awaiting it takes no turn of the event loop."""

    def __await__(self) -> Iterator[Any]:  # type: ignore[override]  # what a generator needs, too
        """Return at once."""
        return iter(())


DONE: Final = Done()


def head_of(status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
    """The head of an answer, with the time."""
    lines = [b"%b: %b\r\n" % header for header in headers]
    return b"".join((STATUS_LINES[status], date_line(int(time.time())), *lines, b"\r\n"))


@lru_cache(maxsize=1)
def date_line(second: int) -> bytes:
    """The header `Date` of this second."""
    return f"date: {formatdate(second, usegmt=True)}\r\n".encode()


class AnsweredConnection(Protocol):
    """What an exchange needs of its connection."""

    transport: asyncio.Transport
    lost: bool
    is_full: bool
    has_ended: bool

    @property
    def is_stopping(self) -> bool:
        """Whether the next answer is the last one."""
        ...

    async def has_room(self) -> None:
        """Return when there is room for more of the answer, or nobody who wants it."""

    def go_on(self) -> None:
        """Receive more, as some of the body was taken."""

    def answered(self, exchange: "Exchange", *, keep_alive: bool) -> None:
        """Go on after an answer."""


class Exchange:
    """A request and its answer, as ASGI's `receive` and `send`.

    `received`: the body is here as a whole. `answered`: nothing more of the answer will come.
    `broken`: why the rest of the request can't be read. `awaits_end`: the application waits for the
    client to leave, with an answer under way that may have no end.
    """

    def __init__(self, connection: AnsweredConnection, scope: Scope, *, keep_alive: bool) -> None:
        self.scope = scope
        self.body = bytearray()
        self.received = False
        self.answered = False
        self.broken: Refused | None = None
        self.awaits_end = False
        self._connection = connection
        self._keep_alive = keep_alive
        self._is_http10 = scope["http_version"] == "1.0"
        self._is_bodiless = scope["method"] == "HEAD"
        self._is_chunked = False
        self._has_length = True
        # The client waits for 100 Continue before it sends the body (RFC 9110, 10.1.1).
        self.expects = False
        self._delivered = False
        self.started = False
        self._head = b""
        self._waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Have `receive` look again."""
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> Message:
        """The next part of the body; after the last one, that the client has gone.

        Whoever shuts down its side still gets an answer that has an end. Where the answer has begun
        without a length, nobody could tell such a client from one that has gone: it has gone.
        """
        connection = self._connection
        if self.expects and not self.started:
            self.expects = False
            if not self.body and not self.received:
                connection.transport.write(CONTINUE)
        while not (self.body or (self.received and not self._delivered)):
            if connection.lost or self.answered or self.broken:
                return {"type": "http.disconnect"}
            if self.started and not self._has_length:
                if connection.has_ended:
                    return {"type": "http.disconnect"}
                if not self.awaits_end:
                    self.awaits_end = True
                    connection.go_on()  # which may find the end at once
                    continue
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        body, self.body = bytes(self.body), bytearray()
        self._delivered = is_last = self.received
        if not is_last:
            connection.go_on()  # which may receive more of it, even the last part, at once
        return {"type": "http.request", "body": body, "more_body": not is_last}

    def send(self, message: Message) -> Awaitable[None]:
        """Write a part of the answer; what is returned ends when there is room for more."""
        connection = self._connection
        if self.answered or connection.lost:
            return DONE
        if message["type"] == "http.response.start":
            if self.broken:
                # What is wrong with the request says more than that its body ended early.
                self.refuse(self.broken)
            else:
                self._start(message["status"], message["headers"])
            return DONE
        body, more = message.get("body", b""), message.get("more_body", False)
        if self._is_bodiless:
            body = b""
        elif self._is_chunked:
            end = b"" if more else b"0\r\n\r\n"
            body = b"%x\r\n%b\r\n%b" % (len(body), body, end) if body else end
        if self._head or body:
            connection.transport.write(self._head + body)
            self._head = b""
        if more:
            return connection.has_room() if connection.is_full else DONE
        self.answered = True
        connection.answered(self, keep_alive=self._keep_alive)
        return DONE

    def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        names = dict(headers)
        headers = list(headers)
        if status in WITHOUT_BODY:
            self._is_bodiless = True
        elif b"content-length" not in names and not self._is_bodiless:
            self._has_length = False
            if self._is_http10:
                self._keep_alive = False
            else:
                self._is_chunked = True
                headers.append((b"transfer-encoding", b"chunked"))
        if names.get(b"connection") == b"close":
            self._keep_alive = False
        # A client that waits for 100 Continue may send the body all the same: there is no telling.
        elif self.expects or not self._keep_alive or self._connection.is_stopping:
            self._keep_alive = False
            headers.append((b"connection", b"close"))
        elif self._is_http10:
            headers.append((b"connection", b"keep-alive"))
        self._head = head_of(status, headers)

    def refuse(self, refusal: Refused) -> None:
        """Answer with the refusal, and hang up."""
        self.started = self.answered = True
        scope = self.scope
        request_id = scope.get(REQUEST_ID) or request_id_of(scope["headers"])
        answer = refusal.answer(scope["raw_path"], request_id, is_bodiless=self._is_bodiless)
        self._connection.transport.write(answer)
        self._connection.answered(self, keep_alive=False)
