"""Serving the API: sockets, the process's limits, and a graceful shutdown."""

import asyncio
import errno
import ipaddress
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Final

from starlette.types import ASGIApp

from api.app import App
from api.http.connection import SWEEP_S, ClientConnection, Connections
from ledger.runtime.reconnect import end, first_to_end

log = logging.getLogger(__name__)

# The kernel takes at most net.core.somaxconn (4,096 by default).
BACKLOG: Final = 4096
# In one turn of the event loop, so that those who are connected are served in between.
ACCEPTS_A_TURN: Final = 256
# How long to wait with new connections when there is no room and nobody to hang up on.
ACCEPT_PAUSE_S: Final = 0.1
MAX_FILES: Final = 65_536
# For all but clients: database, broker, logs.
RESERVED_FILES: Final = 64
# Requests under way may take this long to finish once the server is told to stop.
STOP_TIMEOUT_S: Final = 8.0
STOP_POLL_S: Final = 0.02
# What the kernel holds for one client who sends and takes nothing, or nothing but acknowledgements.
SEND_BUFFER: Final = 128 * 1024
RECEIVE_BUFFER: Final = 128 * 1024
UNACKNOWLEDGED_MS: Final = 30_000

_NO_ROOM: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class CannotListen(Exception):
    """The address can't be listened on; the text says why."""


def any_host(_: bytes) -> bool:
    """Allow every Host."""
    return True


@lru_cache(maxsize=1024)
def local_host(host: bytes) -> bool:
    """Allow the hosts that no page of the web can have: addresses, and names without a dot.

    A page can give its own name the address of this machine once it is loaded (DNS rebinding), and
    the browser lets it talk to us as to its own server. The Host header is the page's name then.
    """
    name = host.decode("latin-1").lower()
    if name.startswith("["):
        return True
    name = name.partition(":")[0].removesuffix(".")
    if "." not in name or name.endswith(".localhost"):
        return True
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return True


class Server:
    """Listens on a host and port until `stop`. Port 0 takes a free one.

    `allows_host` says which Host headers are answered. Raises CannotListen.
    """

    def __init__(
        self, app: ASGIApp, host: str, port: int, allows_host: Callable[[bytes], bool] = any_host
    ) -> None:
        self.connections = Connections(app, allows_host)
        self._loop = asyncio.get_running_loop()
        self._listeners = listen(host, port)
        self._stopped = asyncio.Event()
        self._opening: set[asyncio.Task[object]] = set()
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = MAX_FILES if soft == resource.RLIM_INFINITY else soft
        self._max_connections = max(files - RESERVED_FILES, 1)

    @property
    def port(self) -> int:
        """The port it listens on."""
        port: int = self._listeners[0].getsockname()[1]
        return port

    def stop(self) -> None:
        """Take no more connections, finish the requests under way, and return from `serve`."""
        self._stopped.set()

    async def serve(self) -> None:
        """Serve until `stop`. However this ends, it leaves no connection and no task behind."""
        connections = self.connections
        self._start_accepting()
        try:
            while not self._stopped.is_set():
                connections.sweep()
                with suppress(TimeoutError):
                    async with asyncio.timeout(SWEEP_S):
                        await self._stopped.wait()
            self._stop_listening()
            connections.stopping = True
            for connection in list(connections.open):
                connection.stop()
            deadline = self._loop.time() + STOP_TIMEOUT_S
            while connections.open and self._loop.time() < deadline:
                connections.sweep()
                await asyncio.sleep(STOP_POLL_S)
        finally:
            self._stop_listening()
            for connection in list(connections.open):
                connection.transport.abort()
            await end([*connections.tasks, *self._opening])
            while connections.open:  # noqa: ASYNC110  # for a turn of the event loop or two
                await asyncio.sleep(0)

    def _start_accepting(self) -> None:
        for listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener)

    def _stop_accepting(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener)

    def _stop_listening(self) -> None:
        self._stop_accepting()
        while self._listeners:
            self._listeners.pop().close()

    def _accept(self, listener: socket.socket) -> None:
        """Take as many clients as wait, up to ACCEPTS_A_TURN.

        One in a turn, as the event loop would do it, lets new clients wait for as many turns as
        there are before them, and a turn is long while the others are busy.
        """
        for taken in range(ACCEPTS_A_TURN):
            count = len(self.connections.open) + len(self._opening)
            if count >= self._max_connections:
                if not taken:  # else nobody may be waiting
                    self._make_room(f"{count} connections are open, and no more files are allowed")
                return
            try:
                accepted, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    continue  # this one client has gone
                self._make_room(os.strerror(error.errno))
                return
            accepted.setblocking(False)
            task = self._loop.create_task(
                self._loop.connect_accepted_socket(
                    lambda: ClientConnection(self.connections), accepted
                )
            )
            self._opening.add(task)
            task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[object]) -> None:
        self._opening.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.info("a client had gone before it was taken in: %s", error)

    def _make_room(self, why: str) -> None:
        """Hang up on who is not served, or leave new clients in the backlog for a moment."""
        if not self.connections.make_room():
            log.warning("no new connections for %g s: %s", ACCEPT_PAUSE_S, why)
        # What was ended frees its file in the next turn of the event loop.
        self._stop_accepting()
        self._loop.call_later(ACCEPT_PAUSE_S, self._start_accepting)


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on all addresses of a host; raises CannotListen."""
    listeners: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            listener = socket.socket(family, kind, protocol)
            listeners.append(listener)
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Connections inherit these.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            if sys.platform == "linux":
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address[0], port, *address[2:]))
            listener.listen(BACKLOG)
            # A name with several addresses has one port.
            port = listener.getsockname()[1]
    except OSError as error:
        for listener in listeners:
            listener.close()
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise CannotListen(f"can't listen on port {port} of {host}: {why}") from error
    return listeners


async def run(
    app: App, host: str, port: int, allows_host: Callable[[bytes], bool] = any_host
) -> None:
    """Serve until SIGTERM or SIGINT, or until a background task fails; raises CannotListen."""
    raise_file_limit()
    server = Server(app, host, port, allows_host)

    def stop() -> None:
        app.stop_waiting()
        server.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
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
