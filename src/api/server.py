"""Serving the API: uvicorn's settings, limits on request heads, and a clean end on SIGTERM."""

import asyncio
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from api.app import App
from api.event_stream import ABORT
from api.metrics import PROBLEMS
from api.middleware import new_request_id
from api.problems import CLOSE, Problem
from api.responses import problem_response
from ledger.runtime.reconnect import first_to_end

KEEP_ALIVE_S: Final = 75
BACKLOG: Final = 2048
MAX_FILES: Final = 65_536
# Requests under way may take this long to finish once the server is told to stop.
STOP_TIMEOUT_S: Final = 8
MAX_HEAD: Final = 32 * 1024
MAX_HEADERS: Final = 100
HEAD_TIMEOUT_S: Final = 10.0
LINGER_S: Final = 1.0


class HeadTooLarge(Exception):
    """There are more headers than MAX_HEADERS."""


class Protocol(HttpToolsProtocol):
    """A connection whose request heads are bounded in size and time, and errors of which are
    problems too."""

    _in_head = False
    _refused = False
    _head_size = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client that connects has to say something soon."""
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes before the end of a head."""
        if self._refused:
            return
        super().data_received(data)
        if self._in_head and not self._refused and not self.transport.is_closing():
            self._head_size += len(data)
            if self._head_size > MAX_HEAD:
                self._refuse("head-too-large", f"path and headers have over {MAX_HEAD} bytes")
            elif self._deadline is None:
                self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._too_slow)

    def on_message_begin(self) -> None:
        """A head begins."""
        self._in_head = True
        super().on_message_begin()
        self.scope["state"][ABORT] = self.transport.abort

    def on_headers_complete(self) -> None:
        """The head is here; raises HeadTooLarge, which ends in `send_400_response`."""
        self._in_head = False
        self._head_size = 0
        self._stop_clock()
        if len(self.headers) > MAX_HEADERS:
            raise HeadTooLarge
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when a request can't be parsed."""
        if len(self.headers or ()) > MAX_HEADERS:
            self._refuse("head-too-large", f"there are over {MAX_HEADERS} headers")
        else:
            self._refuse("bad-request", "this is not HTTP/1.1")

    def _too_slow(self) -> None:
        self._deadline = None
        self._refuse("head-too-slow", f"path and headers must be here within {HEAD_TIMEOUT_S:g} s")

    def _stop_clock(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, kind: str, detail: str) -> None:
        """Answer and hang up; only hang up where an answer to another request is under way."""
        if self.cycle is None or self.cycle.response_complete:
            headers = {**CLOSE, "X-Request-Id": new_request_id().decode()}
            response = problem_response(Problem(kind, detail, headers=headers), "")
            PROBLEMS.labels(kind).inc()
            head = [STATUS_LINE[response.status_code]]
            head += [b"%s: %s\r\n" % header for header in response.raw_headers]
            self.transport.write(b"".join((*head, b"\r\n", response.body)))
            self._hang_up()
        else:
            self.transport.close()

    def _hang_up(self) -> None:
        """End the answer, but read on for a moment: a close with bytes unread would reset it."""
        self._refused = True
        self._stop_clock()
        self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)


class Server(uvicorn.Server):
    """uvicorn, set up for this API. Port 0 takes a free one."""

    def __init__(self, app: App, host: str, port: int) -> None:
        self._app = app
        super().__init__(
            uvicorn.Config(
                app,
                host,
                port,
                loop="uvloop",
                http=Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=STOP_TIMEOUT_S,
            )
        )

    @property
    def port(self) -> int:
        """The port it listens on, once `started`."""
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port

    def stop(self) -> None:
        """Take no more connections, finish the requests under way, and return from `serve`."""
        self._app.stop_waiting()
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are for `run` to handle: uvicorn's way ends the process by the signal."""
        yield


async def run(app: App, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, or until a work that serving relies on fails."""
    open_more_files()
    server = Server(app, host, port)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    await first_to_end(server.serve(), *app.works())


def open_more_files() -> None:
    """Let this process open as many files as the system allows it to, within reason.

    A connection is a file, and a shell allows 1,024: so many idle clients would keep out all
    others, and the process from the broker.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
