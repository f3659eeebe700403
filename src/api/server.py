"""Serving the API: uvicorn's settings, and a clean end on SIGTERM."""

import asyncio
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn

from api.app import App
from api.http_protocol import Protocol
from ledger.runtime.reconnect import first_to_end

KEEP_ALIVE_S: Final = 75
BACKLOG: Final = 2048
MAX_FILES: Final = 65_536
STOP_TIMEOUT_S: Final = 8
"""Requests under way may take this long to finish once the server is told to stop."""


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
