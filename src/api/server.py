"""Serving the API: uvicorn's settings, limits on request heads, and a graceful shutdown."""

import asyncio
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from api.app import App
from api.http.middleware import PROBLEMS, new_request_id
from api.http.problems import CLOSE, Problem
from api.http.responses import problem_response
from api.reads.event_stream import ABORT
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
    """A connection that bounds request heads in size and time, and answers errors with problems.

    uvicorn leaves both open: it reads a head of any size, and waits for one for ever.
    """

    _in_head = False
    _refused = False
    _head_size = 0
    _timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time in which the first request head must be here."""
        super().connection_made(transport)
        self._timeout = self.loop.call_later(HEAD_TIMEOUT_S, self._time_out)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel what is left to do."""
        self._cancel_timeout()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a head that has not ended yet."""
        if self._refused:
            return
        super().data_received(data)
        if self._in_head and not self._refused and not self.transport.is_closing():
            self._head_size += len(data)
            if self._head_size > MAX_HEAD:
                self._refuse("head-too-large", f"path and headers have over {MAX_HEAD} bytes")
            elif self._timeout is None:
                self._timeout = self.loop.call_later(HEAD_TIMEOUT_S, self._time_out)

    def on_message_begin(self) -> None:
        """Start a request, and give its handlers a way to cut the connection."""
        self._in_head = True
        super().on_message_begin()
        self.scope["state"][ABORT] = self.transport.abort

    def on_headers_complete(self) -> None:
        """End the head; raises HeadTooLarge, which uvicorn takes to `send_400_response`."""
        self._in_head = False
        self._head_size = 0
        self._cancel_timeout()
        if len(self.headers) > MAX_HEADERS:
            raise HeadTooLarge
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that the parser could not read; uvicorn calls this."""
        if len(self.headers or ()) > MAX_HEADERS:
            self._refuse("head-too-large", f"there are over {MAX_HEADERS} headers")
        else:
            self._refuse("bad-request", "this is not HTTP/1.1")

    def _time_out(self) -> None:
        self._timeout = None
        self._refuse("head-too-slow", f"path and headers must be here within {HEAD_TIMEOUT_S:g} s")

    def _cancel_timeout(self) -> None:
        if self._timeout:
            self._timeout.cancel()
            self._timeout = None

    def _refuse(self, kind: str, detail: str) -> None:
        """Answer and close; only close where the answer to an earlier request is under way."""
        if self.cycle is None or self.cycle.response_complete:
            headers = {**CLOSE, "X-Request-Id": new_request_id().decode()}
            response = problem_response(Problem(kind, detail, headers=headers), "")
            PROBLEMS.labels(kind).inc()
            head = [STATUS_LINE[response.status_code]]
            head += [b"%s: %s\r\n" % header for header in response.raw_headers]
            self.transport.write(b"".join((*head, b"\r\n", response.body)))
            self._refused = True
            self._cancel_timeout()
            # Closing with bytes unread would reset the connection, and the answer with it.
            self.transport.write_eof()
            self.loop.call_later(LINGER_S, self.transport.close)
        else:
            self.transport.close()


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
        """Leave signals to `run`: uvicorn's own way ends the process by the signal."""
        yield


async def run(app: App, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, or until a background task fails."""
    raise_file_limit()
    server = Server(app, host, port)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    await first_to_end(server.serve(), *app.background_tasks())


def raise_file_limit() -> None:
    """Let this process open up to MAX_FILES files, as far as the system allows it to.

    A connection is a file, and a shell allows 1,024: as many idle clients would lock out all
    others, and the process from the broker.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
