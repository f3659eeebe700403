"""The HTTP server around an application made for its tests, on the event loop of the product."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import uvloop
from starlette.types import Receive, Scope, Send

from api.server import Server, any_host
from tests.harness import DEADLINE_S

HOST = b"Host: x\r\n"


class Echo:
    """Answers with what it was asked; some paths do it in a peculiar way.

    `seen` has the scopes of all requests, `gate` holds back the answers of /wait.
    """

    def __init__(self) -> None:
        self.seen: list[Scope] = []
        self.gate = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        self.seen.append(scope)
        path, body = scope["path"], b""
        if path == "/fail":
            raise RuntimeError("this is what fails")
        if path not in ("/early", "/refuse"):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    break
                body += message["body"]
                if not message["more_body"]:
                    break
        if path == "/wait":
            await self.gate.wait()
        if path == "/large":
            body = b"x" * int(scope["query_string"])
        if path in ("/stream", "/endless"):
            await stream(receive, send, has_end=path == "/stream")
            return
        if path != "/large":
            body = json.dumps({"method": scope["method"], "body": body.decode("latin-1")}).encode()
        headers = [(b"content-length", b"%d" % len(body))]
        if path == "/refuse":
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if path == "/half":
            await send({"type": "http.response.body", "body": body[:5], "more_body": True})
            raise RuntimeError("the rest is missing")
        await send({"type": "http.response.body", "body": body})


async def stream(receive: Receive, send: Send, *, has_end: bool) -> None:
    """Answer without a length: a few parts, or one before and one after the client has left."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(3):
        await send({"type": "http.response.body", "body": b"part ", "more_body": True})
    if not has_end:
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.body", "body": b"last", "more_body": True})
    await send({"type": "http.response.body", "body": b""})


class Answer(NamedTuple):
    """An answer, parsed."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> str:
        """The kind of the problem, which must be whole: media type, request id and all."""
        assert self.headers["content-type"] == "application/problem+json"
        assert self.headers["x-request-id"]
        assert self.headers["x-content-type-options"] == "nosniff"
        assert self.headers["cache-control"] == "no-store"
        content = json.loads(self.body)
        assert content["status"] == self.status
        assert content["detail"]
        return str(content["type"]).removeprefix("/problems/")

    @property
    def instance(self) -> str:
        """The path that the problem names."""
        return str(json.loads(self.body)["instance"])


def parse_answers(data: bytes) -> list[Answer]:
    """All answers in what a server said; raises ValueError for what is none."""
    answers = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            while True:
                size, _, data = data.partition(b"\r\n")
                chunk, data = data[: int(size, 16)], data[int(size, 16) + 2 :]
                body += chunk
                if not chunk:
                    break
        elif "content-length" in headers:
            length = int(headers["content-length"])
            body, data = data[:length], data[length:]
        elif not first.startswith("HTTP/1.1 100"):
            body, data = data, b""
        answers.append(Answer(int(first.split()[1]), headers, body))
    return answers


class Client:
    """A connection, spoken by hand."""

    def __init__(self, port: int, *, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(DEADLINE_S)
        try:
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise

    def send(self, data: bytes) -> "Client":
        """Send all of it."""
        self.socket.sendall(data)
        return self

    def send_end(self) -> "Client":
        """Send nothing more."""
        self.socket.shutdown(socket.SHUT_WR)
        return self

    def read(self) -> bytes:
        """All that comes until the server hangs up."""
        parts = []
        with self.socket:
            while part := self.socket.recv(1 << 16):
                parts.append(part)
        return b"".join(parts)

    def answers(self) -> list[Answer]:
        """All answers until the server hangs up."""
        return parse_answers(self.read())

    def read_answer(self) -> Answer:
        """The next answer, which must have a length; the connection stays open."""
        received = b""
        while b"\r\n\r\n" not in received:
            part = self.socket.recv(1 << 16)
            assert part, f"the server hung up after {received!r}"
            received += part
        head = received.partition(b"\r\n\r\n")[0].lower()
        length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0] or b"0")
        while len(received) < len(head) + 4 + length:
            part = self.socket.recv(1 << 16)
            assert part
            received += part
        (answer,) = parse_answers(received)
        return answer


class Served:
    """A server that runs in a thread of its own, with what a test wants to know of it."""

    def __init__(self, server: Server, app: Echo) -> None:
        self.server = server
        self.app = app
        self.port = server.port
        self.clients: list[Client] = []
        self._loop = asyncio.get_running_loop()

    def connect(self, *, receive_buffer: int = 0) -> Client:
        """A new connection to it, which is closed at the latest when the server has ended."""
        client = Client(self.port, receive_buffer=receive_buffer)
        self.clients.append(client)
        return client

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function in the server's event loop."""
        self._loop.call_soon_threadsafe(function, *args)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of a coroutine that runs in the server's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE_S)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until a condition holds."""
        until = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < until, f"not in time: {what}"
            time.sleep(0.002)


@contextmanager
def served(allows_host: Callable[[bytes], bool] = any_host) -> Iterator[Served]:
    """A server on a free port, which leaves neither connection nor task behind."""
    started: list[Served] = []
    ready = threading.Event()

    async def serve() -> None:
        app = Echo()
        server = Server(app, "127.0.0.1", 0, allows_host)
        started.append(Served(server, app))
        ready.set()
        await server.serve()
        assert not server.connections.open
        assert all(task.done() for task in server.connections.tasks)

    errors: list[BaseException] = []

    def run() -> None:
        try:
            uvloop.run(serve())
        except BaseException as error:
            errors.append(error)
            raise
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(DEADLINE_S)
    try:
        yield started[0]
    finally:
        for client in started[0].clients:
            client.socket.close()
        started[0].call(started[0].app.gate.set)
        started[0].call(started[0].server.stop)
        thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert not errors
