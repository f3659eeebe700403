"""The proxy of the tests fails as it is told to, and in no other way."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from tests.harness import DEADLINE_S

from .proxy import Direction, Proxy, open_proxy

SOON_S = 0.2
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Server:
    """Keeps each connection it gets for the test to play."""

    def __init__(self, proxy: Proxy, accepted: asyncio.Queue[Ends]) -> None:
        self.proxy = proxy
        self._accepted = accepted
        self._ends: list[Ends] = []

    async def connect(self) -> tuple[Ends, Ends]:
        """A connection through the proxy: the client's end and the server's."""
        client = await asyncio.open_connection("127.0.0.1", self.proxy.port)
        self._ends += [client, await self._accepted.get()]
        return client, self._ends[-1]

    def end(self) -> None:
        """End all that is open."""
        for _, writer in self._ends:
            writer.transport.abort()


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    """A server with a proxy before it."""
    accepted: asyncio.Queue[Ends] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accepted.put((reader, writer))

    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with asyncio.timeout(DEADLINE_S), listening, open_proxy(port) as proxy:
        server = Server(proxy, accepted)
        yield server
        server.end()


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Proxy, Ends, Ends]]:
    """A proxy, the client's end of a connection through it, and the server's."""
    async with serving() as server:
        client, there = await server.connect()
        yield server.proxy, client, there


async def silent(reader: asyncio.StreamReader) -> bool:
    """Whether nothing comes for a moment."""
    try:
        async with asyncio.timeout(SOON_S):
            await reader.read(1)
    except TimeoutError:
        return True
    return False


async def broken(reader: asyncio.StreamReader) -> bool:
    """Whether the connection ends, as a reset or as an orderly end."""
    try:
        return await reader.read(1) == b""
    except ConnectionError:
        return True


async def test_it_passes_on_what_it_gets_and_ends_when_one_side_does() -> None:
    async with connected() as (_, client, server):
        client[1].write(b"ask")
        assert await server[0].readexactly(3) == b"ask"
        client[1].write_eof()
        assert await server[0].read() == b""
        server[1].write(b"answer")
        server[1].close()
        assert await client[0].read() == b"answer"


async def test_reset_ends_connections_and_cut_refuses_new_ones() -> None:
    async with serving() as server:
        client, there = await server.connect()
        server.proxy.reset()
        assert await broken(client[0])
        assert await broken(there[0])
        again, _ = await server.connect()
        server.proxy.cut()
        assert await broken(again[0])
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", server.proxy.port)
        await server.proxy.heal()
        await server.connect()


async def test_two_who_mend_what_was_cut_at_once_do_not_both_open_the_way() -> None:
    async with serving() as server:
        server.proxy.cut()
        await asyncio.gather(server.proxy.heal(), server.proxy.heal())
        await server.connect()


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_direction_that_is_stalled_holds_up_its_bytes_alone(direction: Direction) -> None:
    async with connected() as (proxy, client, server):
        ends = (client, server) if direction == "up" else (server, client)
        (back, sender), (receiver, answerer) = ends
        proxy.stall(direction)
        sender.write(b"a")
        answerer.write(b"b")
        assert await back.readexactly(1) == b"b"
        assert await silent(receiver)
        await proxy.heal()
        assert await receiver.readexactly(1) == b"a"


async def test_a_half_closed_connection_goes_on_in_the_other_direction() -> None:
    async with connected() as (proxy, client, server):
        proxy.half_close("down")
        assert await client[0].read() == b""
        client[1].write(b"still")
        assert await server[0].readexactly(5) == b"still"
        await proxy.heal()
        assert await broken(server[0])


async def test_it_delays_trickles_and_cuts_after_so_many_bytes() -> None:
    async with connected() as (proxy, client, server):
        proxy.delay(SOON_S)
        began = time.monotonic()
        client[1].write(b"late")
        assert await server[0].readexactly(4) == b"late"
        assert time.monotonic() - began >= SOON_S
        proxy.trickle(0.001)
        client[1].write(b"x" * 100)
        assert await server[0].readexactly(100) == b"x" * 100
        await proxy.heal()
        proxy.cut_after(3, "up")
        client[1].write(b"abcdef")
        with suppress(ConnectionError):
            assert await server[0].read(100) in (b"abc", b"")
        assert await broken(client[0])


@pytest.mark.parametrize("delivered", [True, False])
async def test_it_loses_a_message_or_its_answer(delivered: bool) -> None:
    async with connected() as (proxy, client, server):
        proxy.lose(b"COMMIT", delivered=delivered)
        client[1].write(b"COMMIT")
        if delivered:
            assert await server[0].readexactly(6) == b"COMMIT"
            server[1].write(b"done")
        assert await broken(client[0])
        assert proxy.lost == 1
