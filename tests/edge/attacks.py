"""Strangers who do what no client should do, from many connections at once, and what it costs.

`python -m tests.edge.attacks --seconds 120` attacks a stack of its own in which keys are required,
while somebody with a key goes on ordering, and prints what that client and the processes saw, and
what each attack was answered.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import secrets
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from api.auth.principal import Scope
from api.server import raise_file_limit
from cli.commands.keys import create
from tests.harness import Stack, eventually, start_stack
from tests.ledger.pipeline import beside
from tests.packages import require_program
from tests.private_servers import start_servers

ROOT: Final = Path(__file__).parents[2]
ORDERS_PER_S: Final = 20
# A stranger gives up so long after the server should have.
PATIENCE_S: Final = 40.0
FLOOD_BYTES: Final = 16 * 1024 * 1024
BLOCK: Final = b"x" * 65536
HOST: Final = b"Host: localhost\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
JSON: Final = b"Content-Type: application/json\r\n"
RESET: Final = struct.pack("ii", 1, 0)
STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
# Received, to be sent and set aside, of one socket (ss(8), --memory).
SOCKET_BYTES: Final = re.compile(r"pid=(\d+).*skmem:\(r(\d+),.*,f(\d+),w(\d+)")
SOCKETS_EVERY_S: Final = 0.5


class Answers(asyncio.StreamReader):
    """What a stranger receives; each status in it is counted, whoever reads the rest."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts
        self._seen = b""

    def feed_data(self, data: bytes) -> None:
        """Count the statuses that have come, also one that came in two parts."""
        self._seen += data
        end = 0
        for found in STATUS.finditer(self._seen):
            self._counts[found[1].decode()] += 1
            end = found.end()
        self._seen = self._seen[max(end, len(self._seen) - len(b"HTTP/1.1 200")) :]
        super().feed_data(data)


class Stranger:
    """One connection of somebody without a key."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *parts: bytes, pause_s: float = 0) -> None:
        """Send parts, with a pause after each."""
        for part in parts:
            self._writer.write(part)
            await self._writer.drain()
            if pause_s:
                await asyncio.sleep(pause_s)

    async def flood(self, block: bytes) -> None:
        """Send a block again and again, up to FLOOD_BYTES."""
        for _ in range(FLOOD_BYTES // len(block)):
            await self.send(block)

    async def read(self) -> bytes:
        """All that comes until the server hangs up."""
        return await self._reader.read()

    async def read_some(self) -> bytes:
        """What comes next."""
        return await self._reader.read(65536)

    def send_end(self) -> None:
        """Send no more."""
        self._writer.write_eof()

    def reset(self) -> None:
        """Leave without a word."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._writer.transport.abort()


@contextlib.asynccontextmanager
async def stranger(port: int, counts: Counter[str]) -> AsyncIterator[Stranger]:
    """A connection of a stranger, which is closed at the end; its answers are counted."""
    loop, reader = asyncio.get_running_loop(), Answers(counts)
    transport, protocol = await loop.create_connection(
        lambda: asyncio.StreamReaderProtocol(reader), "127.0.0.1", port
    )
    try:
        yield Stranger(reader, asyncio.StreamWriter(transport, protocol, reader, loop))
    finally:
        transport.abort()


Attack = Callable[[int, Counter[str]], Awaitable[None]]
ATTACKS: Final[dict[str, Attack]] = {}


def attack(function: Callable[[Stranger], Awaitable[None]]) -> None:
    """Make an attack over one connection known."""

    async def on_port(port: int, counts: Counter[str]) -> None:
        async with stranger(port, counts) as one:
            await function(one)

    ATTACKS[function.__name__] = on_port


def get(path: bytes = b"/health/live", headers: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\n%b%b\r\n" % (path, HOST, headers)


def post(body: bytes, path: bytes = b"/api/v1/orders", headers: bytes = b"") -> bytes:
    head = b"POST %b HTTP/1.1\r\n%b%b%b" % (path, HOST, JSON, headers)
    return b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)


def post_head(path: bytes = b"/api/v1/orders", headers: bytes = CHUNKED) -> bytes:
    return b"POST %b HTTP/1.1\r\n%b%b%b\r\n" % (path, HOST, JSON, headers)


@attack
async def nothing(one: Stranger) -> None:
    await one.read()


@attack
async def slow_head(one: Stranger) -> None:
    for byte in get() * 10:
        await one.send(bytes([byte]), pause_s=0.5)


@attack
async def slow_body(one: Stranger) -> None:
    await one.send(post_head(headers=b"Content-Length: 1000\r\n"))
    await one.send(*[b"x"] * 100, pause_s=0.5)


@attack
async def a_byte_after_an_answer(one: Stranger) -> None:
    await one.send(get())
    await one.read_some()
    await one.send(b"G")
    await one.read()


@attack
async def half_a_trailer(one: Stranger) -> None:
    await one.send(post_head(), b"1\r\n{\r\n0\r\nx: y")
    await one.read()


@attack
async def trailers_without_end(one: Stranger) -> None:
    await one.send(post_head(), b"1\r\n{\r\n0\r\n")
    await one.flood(b"x: %b\r\n" % BLOCK[:1000] * 64)


@attack
async def trailers_after_404(one: Stranger) -> None:
    await one.send(post_head(b"/nowhere"), b"1\r\n{\r\n0\r\n")
    await one.flood(b"x: y\r\n" * 10_000)


@attack
async def chunk_extensions(one: Stranger) -> None:
    await one.send(post_head(b"/nowhere"))
    await one.flood(b"1;" + BLOCK)


@attack
async def tiny_chunks(one: Stranger) -> None:
    await one.send(post_head())
    await one.flood(b"1\r\nx\r\n" * 10_000)


@attack
async def pipelined(one: Stranger) -> None:
    await one.flood(get() * 1000)


@attack
async def pipelined_and_read(one: Stranger) -> None:
    await one.send(get() * 2000 + get(headers=b"Connection: close\r\n"))
    await one.read()


@attack
async def large_answers_unread(one: Stranger) -> None:
    await one.send(get(b"/openapi.json") * 200)
    await asyncio.sleep(PATIENCE_S)


@attack
async def upgrade_with_a_body(one: Stranger) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    await one.send(post(get(b"/openapi.json") * 50, headers=upgrade))
    await one.read()


@attack
async def half_closed(one: Stranger) -> None:
    await one.send(post(b"{}") * 20)
    one.send_end()
    await one.read()


@attack
async def byte_by_byte(one: Stranger) -> None:
    await one.send(*[bytes([byte]) for byte in get() * 5], pause_s=0.002)


@attack
async def huge_length(one: Stranger) -> None:
    await one.send(post_head(headers=b"Content-Length: 99999999999\r\n"))
    await one.flood(BLOCK)


@attack
async def expects_and_sends_nothing(one: Stranger) -> None:
    await one.send(post_head(headers=b"Content-Length: 10\r\nExpect: 100-continue\r\n"))
    await one.read()


@attack
async def leaves_at_once(one: Stranger) -> None:
    one.reset()


@attack
async def leaves_in_the_answer(one: Stranger) -> None:
    await one.send(get(b"/openapi.json"))
    await one.read_some()
    one.reset()


@attack
async def garbage(one: Stranger) -> None:
    await one.send(random.randbytes(random.randint(1, 70_000)))
    await one.read()


@attack
async def mutated(one: Stranger) -> None:
    data = bytearray(post(b'{"orders": []}', b"/api/v1/orders/batch") * 3)
    for _ in range(random.randint(1, 5)):
        data[random.randrange(len(data))] = random.randrange(256)
    await one.send(bytes(data))
    one.send_end()
    await one.read()


@attack
async def unread_stream(one: Stranger) -> None:
    await one.send(get(b"/api/v1/events", b"Accept: text/event-stream\r\n"))
    await asyncio.sleep(PATIENCE_S / 4)


@attack
async def many_names(one: Stranger) -> None:
    names = b",".join(b'"%d":1' % n for n in range(20_000))
    await one.send(post(b"{%b}" % names, b"/api/v1/orders/batch", b"Connection: close\r\n"))
    await one.read()


@attack
async def deep(one: Stranger) -> None:
    await one.send(post(b"[" * 60_000, headers=b"Connection: close\r\n"))
    await one.read()


@attack
async def long_number(one: Stranger) -> None:
    body = b'{"quantity": %b}' % (b"9" * 60_000)
    await one.send(post(body, headers=b"Connection: close\r\n"))
    await one.read()


@attack
async def long_path(one: Stranger) -> None:
    await one.send(get(b"/" + BLOCK))
    await one.read()


@attack
async def many_headers(one: Stranger) -> None:
    await one.flood(get(headers=b"x: y\r\n" * 90) * 20)


@attack
async def made_up_keys(one: Stranger) -> None:
    for _ in range(50):
        key = b"Authorization: Bearer lk_%b_%b\r\n" % (
            secrets.token_hex(4).encode(),
            secrets.token_hex(20).encode(),
        )
        await one.send(get(b"/api/v1/orders", key))
        await one.read_some()


async def many_connections(port: int, counts: Counter[str]) -> None:
    """Fifty that say nothing, at once."""
    async with contextlib.AsyncExitStack() as opened:
        for _ in range(50):
            await opened.enter_async_context(stranger(port, counts))
        await asyncio.sleep(2)


ATTACKS["many_connections"] = many_connections


async def attack_all(
    port: int, seconds: float, connections: int, seed: int
) -> dict[str, Counter[str]]:
    """Attack from so many connections at once; of each attack, how often it ended how, and how
    many answers of each status it got."""
    chance, until = random.Random(seed), time.monotonic() + seconds
    made = {name: Counter[str]() for name in ATTACKS}

    async def go_on() -> None:
        while (left := until - time.monotonic()) > 0:
            name = chance.choice(list(ATTACKS))
            try:
                async with asyncio.timeout(min(left, PATIENCE_S)):
                    await ATTACKS[name](port, made[name])
                made[name]["ended"] += 1
            except TimeoutError:
                made[name]["stayed"] += 1
            except OSError:
                made[name]["cut off"] += 1

    await asyncio.gather(*[go_on() for _ in range(connections)])
    return made


@dataclass
class Figures:
    """What the client with a key and the processes saw: milliseconds, and bytes."""

    kept_ms: list[float] = field(default_factory=list)
    new_ms: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    order_ids: list[str] = field(default_factory=list)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    socket_bytes: dict[str, int] = field(default_factory=dict)
    attacks: dict[str, dict[str, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"orders answered 202: {len(self.order_ids)}; else {dict(self.refused)}"]
        for name, times in (("kept", self.kept_ms), ("new", self.new_ms)):
            if times:
                cuts = statistics.quantiles(times, n=100, method="inclusive")
                lines.append(
                    f"{name} connections: p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms,"
                    f" slowest {max(times):.1f} ms"
                )
        lines += [
            f"{name}: at most {size >> 20} MiB, and {self.socket_bytes.get(name, 0) >> 10:,} KiB"
            " in the kernel for its TCP connections"
            for name, size in self.peak_bytes.items()
        ]
        for name, counts in sorted(self.attacks.items()):
            shown = ", ".join(f"{count} × {what}" for what, count in sorted(counts.items()))
            lines.append(f"  {name}: {shown or 'not made'}")
        return "\n".join(lines)


async def attacked(stack: Stack, key: str, seconds: float, connections: int, seed: int) -> Figures:
    """Attack a stack while a client with a key places ORDERS_PER_S orders; what came of it."""
    figures = Figures()
    attackers = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", __spec__.name, "--port", str(stack.settings.api_port), "--seed", str(seed)),
        *("--seconds", str(seconds), "--connections", str(connections)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with beside(_measure_sockets(figures, stack)):
            kept = await asyncio.open_connection("127.0.0.1", stack.settings.api_port)
            began, count = time.monotonic(), 0
            while attackers.returncode is None and time.monotonic() - began < seconds:
                await _order(figures, stack, key, None if count % 2 else kept)
                _measure_memory(figures, stack)
                count += 1
                await asyncio.sleep(max(0, began + count / ORDERS_PER_S - time.monotonic()))
        kept[1].close()
        said, _ = await attackers.communicate()
        figures.attacks = json.loads(said)
    finally:
        if attackers.returncode is None:
            attackers.kill()
            await attackers.wait()
    return figures


async def _order(
    figures: Figures,
    stack: Stack,
    key: str,
    kept: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None,
) -> None:
    body = json.dumps({"customer_id": str(_uuid()), "product_id": str(_uuid())}).encode()
    began = time.perf_counter()
    reader, writer = kept or await asyncio.open_connection("127.0.0.1", stack.settings.api_port)
    writer.write(post(body, headers=b"Authorization: Bearer %b\r\n" % key.encode()))
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
    answer = json.loads(await reader.readexactly(length))
    (figures.kept_ms if kept else figures.new_ms).append((time.perf_counter() - began) * 1000)
    if kept is None:
        writer.close()
    if head[9:12] == "202":
        figures.order_ids.append(answer["order_id"])
    else:
        figures.refused[f"{head[9:12]} {answer['type']}"] += 1


def _uuid() -> str:
    text = secrets.token_hex(16)
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-8{text[17:20]}-{text[20:]}"


def _measure_memory(figures: Figures, stack: Stack) -> None:
    for name, process in stack.processes.items():
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        figures.peak_bytes[name] = max(figures.peak_bytes.get(name, 0), pages * 4096)


async def _measure_sockets(figures: Figures, stack: Stack) -> None:
    """Measure until cancelled what the kernel holds for each process, over all its connections."""
    command = (require_program("ss", "iproute2"), "-tmpnHO")
    while True:
        listing = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, check=True
        )
        sums = Counter[int]()
        for pid, *sizes in SOCKET_BYTES.findall(listing.stdout):
            sums[int(pid)] += sum(map(int, sizes))
        for name, process in stack.processes.items():
            most = figures.socket_bytes.get(name, 0)
            figures.socket_bytes[name] = max(most, sums[process.pid])
        await asyncio.sleep(SOCKETS_EVERY_S)


def count_connections(stack: Stack) -> int:
    """How many connections of clients the API has."""
    port = f":{stack.settings.api_port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(line.split()[1].endswith(port) and line.split()[3] == "01" for line in lines)


async def main(seconds: float, connections: int, seed: int) -> None:
    """Attack a stack of its own."""
    with (
        tempfile.TemporaryDirectory() as home,
        start_servers(Path(home), with_management=True) as servers,
    ):
        stack = await start_stack(servers, auth="required")
        try:
            _, key = await create(stack.settings, "attacked", (Scope.ORDERS_WRITE,))
            figures = await attacked(stack, str(key), seconds, connections, seed)
            sys.stdout.write(f"seed {seed}\n{figures}\n")

            async def all_gone() -> bool:
                return count_connections(stack) == 0

            await eventually(all_gone, "the API has no connection of a stranger any more")
        finally:
            await stack.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, help="only attack what serves here")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    asked = parser.parse_args()
    raise_file_limit()
    if asked.port:
        random.seed(asked.seed)
        made = asyncio.run(attack_all(asked.port, asked.seconds, asked.connections, asked.seed))
        sys.stdout.write(json.dumps(made))
    else:
        asyncio.run(main(asked.seconds, asked.connections, asked.seed))
