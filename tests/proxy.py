"""A way to a server of this machine that fails in the ways that networks do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final, Literal

COMMIT: Final = b"\x03COMMIT"
"""COM_QUERY with COMMIT, as the client of MySQL's protocol sends it."""

BASIC_ACK: Final = b"\x00\x3c\x00\x50"
"""Class 60, method 80 of AMQP 0-9-1: the consumer's ack."""

CHUNK: Final = 65_536
TRICKLE_BYTES: Final = 16
ANSWER_S: Final = 1.0
"""How long an answer that is to be lost is waited for: not everything has one."""

Direction = Literal["up", "down"]
"""`up` is towards the server."""


@dataclass(eq=False)
class _Connection:
    """One client's connection and the one to the server that stands for it."""

    from_client: asyncio.StreamReader
    to_client: asyncio.StreamWriter
    from_server: asyncio.StreamReader
    to_server: asyncio.StreamWriter
    answers: asyncio.Task[None] | None = None
    half_closed: Direction | None = None

    def ends(self, direction: Direction) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Where to read and where to write for this direction."""
        if direction == "up":
            return self.from_client, self.to_server
        return self.from_server, self.to_client

    def reset(self) -> None:
        """End both sides at once; what was under way is lost."""
        self.to_client.transport.abort()
        self.to_server.transport.abort()


class Proxy:
    """Passes bytes on to a port of this machine, as well as it was told to."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._opening = asyncio.Lock()
        self._connections: set[_Connection] = set()
        self._served: set[asyncio.Task[None]] = set()
        self._gates = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._left: dict[Direction, int] = {}
        self._pattern: bytes | None = None
        self._delivered = False
        self._delay_s = 0.0
        self._chunk = CHUNK
        self.port = 0
        self.lost = 0

    async def heal(self) -> None:
        """Open the way, at first and again. Bytes that were only held up arrive now."""
        for gate in self._gates.values():
            gate.set()
        self._left, self._pattern = {}, None
        self._delay_s, self._chunk = 0.0, CHUNK
        for connection in self._connections:
            if connection.half_closed:
                connection.reset()
        async with self._opening:
            await self._open()

    async def _open(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """End every connection, and refuse new ones."""
        if self._server:
            self._server.close()
            self._server = None
        self.reset()

    def reset(self) -> None:
        """End every connection; new ones are served."""
        for connection in self._connections:
            connection.reset()

    def stall(self, *directions: Direction) -> None:
        """Keep connections open, and pass nothing on, in both directions or in one."""
        for direction in directions or ("up", "down"):
            self._gates[direction].clear()

    def half_close(self, direction: Direction) -> None:
        """Tell the receivers that nothing more will come; the other direction goes on."""
        for connection in self._connections:
            connection.half_closed = direction
            with suppress(OSError):
                connection.ends(direction)[1].write_eof()

    def delay(self, seconds: float) -> None:
        """Hold up every piece for so long."""
        self._delay_s = seconds

    def trickle(self, pause_s: float) -> None:
        """Pass on a few bytes at a time, with a pause before each."""
        self._delay_s, self._chunk = pause_s, TRICKLE_BYTES

    def cut_after(self, count: int, direction: Direction) -> None:
        """Pass on so many bytes more in this direction, of all connections; reset the next one."""
        self._left[direction] = count

    def lose(self, pattern: bytes, *, delivered: bool) -> None:
        """Reset the connection that next sends this to the server.

        The server gets it, and its answer is lost, or the server does not get it.
        """
        self._pattern, self._delivered = pattern, delivered

    async def close(self) -> None:
        """End every connection for good."""
        self.cut()
        for gate in self._gates.values():
            gate.set()
        for task in self._served:
            task.cancel()
        await asyncio.gather(*self._served, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.ensure_future(self._serve(reader, writer))
        self._served.add(serving)
        serving.add_done_callback(self._served.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection(reader, writer, *there)
        if self._server is None:
            connection.reset()
            return
        self._connections.add(connection)
        connection.answers = asyncio.create_task(self._pass_on(connection, "down"))
        try:
            await self._pass_on(connection, "up")
            await asyncio.gather(connection.answers, return_exceptions=True)
        finally:
            connection.answers.cancel()
            connection.reset()
            self._connections.discard(connection)

    async def _pass_on(self, connection: _Connection, direction: Direction) -> None:
        reader, writer = connection.ends(direction)
        try:
            while data := await reader.read(self._chunk):
                await self._gates[direction].wait()
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                if connection.half_closed == direction:
                    continue
                if direction == "up" and self._pattern and self._pattern in data:
                    await self._lose(connection, data)
                elif not self._spend(direction, data, writer):
                    connection.reset()
                await writer.drain()
            writer.write_eof()
        except OSError:
            connection.reset()

    def _spend(self, direction: Direction, data: bytes, writer: asyncio.StreamWriter) -> bool:
        """Pass on what may pass; whether that was all."""
        left = self._left.get(direction)
        if left is None or left >= len(data):
            if left is not None:
                self._left[direction] = left - len(data)
            writer.write(data)
            return True
        del self._left[direction]
        writer.write(data[:left])
        return False

    async def _lose(self, connection: _Connection, data: bytes) -> None:
        self._pattern = None
        if self._delivered and connection.answers:
            connection.half_closed = "down"
            connection.answers.cancel()
            await asyncio.gather(connection.answers, return_exceptions=True)
            connection.to_server.write(data)
            with suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    await connection.from_server.read(1)
        connection.reset()
        self.lost += 1


@asynccontextmanager
async def open_proxy(target_port: int) -> AsyncIterator[Proxy]:
    """A proxy on a port of its own."""
    proxy = Proxy(target_port)
    await proxy.heal()
    try:
        yield proxy
    finally:
        await proxy.close()
