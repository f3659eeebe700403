"""A way to a server that loses one message at a chosen moment, or is cut altogether."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

COMMIT: Final = b"\x03COMMIT"
"""COM_QUERY with COMMIT, as the client of MySQL's protocol sends it."""

BASIC_ACK: Final = b"\x00\x3c\x00\x50"
"""Class 60, method 80 of AMQP 0-9-1: the consumer's ack."""


class Proxy:
    """Passes bytes on to a port of this machine."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._open = asyncio.Event()
        self._open.set()
        self._is_cut = False
        self._pattern: bytes | None = None
        self._delivered = False
        self._ways: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.lost = 0

    def lose(self, pattern: bytes, *, delivered: bool) -> None:
        """Cut the connection that next sends this to the server.

        The server gets it, and its answer is lost, or the server does not get it.
        """
        self._pattern, self._delivered = pattern, delivered

    def cut(self) -> None:
        """End every connection, and every new one at once."""
        self._is_cut = True
        for way in self._ways:
            way.transport.abort()

    def stall(self) -> None:
        """Keep connections open, and pass nothing on."""
        self._open.clear()

    def heal(self) -> None:
        """Open the way again."""
        self._is_cut = False
        self._open.set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        if self._is_cut:
            writer.transport.abort()
            return
        there_reader, there = await asyncio.open_connection("127.0.0.1", self._target_port)
        answers = asyncio.create_task(self._pass_on(there_reader, writer))
        self._ways |= {writer, there}
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._open.wait()
                loses = self._pattern is not None and self._pattern in data
                if loses:
                    self._pattern = None
                    await self._lose(data, there_reader, there, writer, answers)
                    break
                there.write(data)
                await there.drain()
        there.close()
        await answers
        self._ways -= {writer, there}

    async def _lose(
        self,
        data: bytes,
        there_reader: asyncio.StreamReader,
        there: asyncio.StreamWriter,
        writer: asyncio.StreamWriter,
        answers: asyncio.Task[None],
    ) -> None:
        if self._delivered:
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)
            there.write(data)
            await there_reader.read(1)
        writer.transport.abort()
        self.lost += 1

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def open_proxy(target_port: int) -> AsyncIterator[Proxy]:
    """A proxy on a port of its own."""
    proxy = Proxy(target_port)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.heal()
        proxy.cut()
