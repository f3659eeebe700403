"""`python -m bench.overload`: ten times as many orders as can be taken, and what became of each.

Every order names a customer of its own, who does not exist, so that it can be found in the views
whether it was answered or not. The load is open: orders are due at a constant rate whatever the
answers take, over connections that are there before it begins.
"""

import asyncio
import contextlib
import json
import time
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from math import inf
from multiprocessing import get_context
from typing import Annotated, Any, Final
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import typer
import uvloop
from msgspec import Struct
from msgspec.structs import asdict
from rich.console import Console
from sqlalchemy.ext.asyncio import AsyncEngine

from api.server import raise_file_limit
from bench.system import servers, system
from cli.commands.status import read_status
from cli.settings import Settings
from ledger.runtime.database import make_engine
from tests.harness import eventually

OPENED_AT_ONCE: Final = 100
PACE_S: Final = 0.005
# Longer than the API takes for its last answer.
ANSWERS_TIMEOUT_S: Final = 30.0
SATURATION_S: Final = 3.0
SATURATION_CONNECTIONS: Final = 64
TIMES: Final = 10
DECIDED_TIMEOUT_S: Final = 300.0
QUANTILES: Final = (0.5, 0.99, 1.0)
out = Console(width=100)
_HEAD: Final = (
    b"POST /api/v1/orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
)


class Offer(Struct, frozen=True):
    """The load: orders a second (`inf`: as fast as they are answered), for how long, from whom."""

    rate: float
    duration_s: float
    connections: int


class Answers(Struct, frozen=True):
    """What each order was answered, by its number, and how long the answers took, in seconds.

    `dropped` were due while all connections were busy, and never sent.
    """

    answers: dict[int, str]
    accepted_s: list[float]
    refused_s: list[float]
    dropped: int


class Result(Struct, frozen=True):
    """The answers compared with the ledger.

    `lost`: 202, and no order. `no_recorded`: 503 "no", and an order. `unknown_recorded`: 503
    "unknown", and an order. `unanswered_recorded`: the connection broke, or nothing came, and an
    order. Half of the answers, 99 in a hundred and all took no longer than the times say.
    """

    sent: int
    dropped: int
    answers: dict[str, int]
    accepted_per_s: float
    accepted_ms: tuple[float, ...]
    refused_ms: tuple[float, ...]
    lost: int
    doubled: int
    no_recorded: int
    unknown_recorded: int
    unanswered_recorded: int
    refused: int


class _Connection(asyncio.Protocol):
    """A kept connection with at most one order under way."""

    def __init__(self, load: "_Load") -> None:
        self._load = load
        self._received = b""
        self._sent_s = 0.0
        self._number = -1
        self.opened = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._transport.write(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")

    def send(self, number: int, request: bytes) -> None:
        """Send one order."""
        self._number, self._sent_s = number, time.monotonic()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, _, body = self._received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if not length or len(body) < int(length):
            return
        self._received = b""
        if not self.opened.done():
            self.opened.set_result(None)
        else:
            answer = head[9:12].decode()
            if answer != "202":
                answer += f" {json.loads(body).get('accepted')}"
            self._load.answered(self._number, answer, time.monotonic() - self._sent_s)
        self._load.idle.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(ConnectionError("the API closed a new connection"))
        if self in self._load.idle:
            self._load.idle.remove(self)


class _Load:
    def __init__(self, url: str, marker: int, product_id: str, offer: Offer) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "", address.port or 80
        self._offer = offer
        self._marker, self._product_id = marker, product_id
        self.idle: deque[_Connection] = deque()
        self.sent = 0
        self.answers: dict[int, str] = {}
        self.accepted_s: list[float] = []
        self.refused_s: list[float] = []

    def answered(self, number: int, answer: str, took_s: float) -> None:
        self.answers[number] = answer
        (self.accepted_s if answer == "202" else self.refused_s).append(took_s)

    async def run(self) -> Answers:
        offer = self._offer
        for start in range(0, offer.connections, OPENED_AT_ONCE):
            count = min(OPENED_AT_ONCE, offer.connections - start)
            await asyncio.gather(*[self._open() for _ in range(count)])
        began_s, due, dropped = time.monotonic(), 0, 0
        while (elapsed_s := time.monotonic() - began_s) < offer.duration_s:
            # Without a rate: one for each connection that is free.
            count = int(offer.rate * elapsed_s) - due if offer.rate < inf else len(self.idle)
            due += count
            for _ in range(min(count, len(self.idle))):
                self._send(self.idle.popleft())
            dropped = due - self.sent
            await asyncio.sleep(PACE_S if offer.rate < inf else 0)
        with contextlib.suppress(AssertionError):
            await eventually(self._all_answered, "all answers", ANSWERS_TIMEOUT_S)
        answers = {number: self.answers.get(number, "none") for number in range(self.sent)}
        return Answers(answers, self.accepted_s, self.refused_s, dropped)

    async def _all_answered(self) -> bool:
        return len(self.answers) == self.sent

    async def _open(self) -> None:
        """Open a connection; the API has accepted it once it has answered on it."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: _Connection(self), self._host, self._port
        )
        await connection.opened

    def _send(self, connection: _Connection) -> None:
        number, self.sent = self.sent, self.sent + 1
        customer_id = customer_of(self._marker, number)
        body = b'{"customer_id":"%b","product_id":"%b"}' % (
            str(customer_id).encode(),
            self._product_id.encode(),
        )
        connection.send(number, b"%bContent-Length: %d\r\n\r\n%b" % (_HEAD, len(body), body))


def customer_of(marker: int, number: int) -> UUID:
    """The customer of an order: a valid UUID that nobody else makes."""
    return UUID(int=marker << 32 | number, version=4)


def send_all(url: str, marker: int, product_id: str, offer: Offer) -> Answers:
    """Send the load from this process."""
    raise_file_limit()
    return uvloop.run(_Load(url, marker, product_id, offer).run())


async def offered(url: str, settings: Settings, offer: Offer) -> Result:
    """Offer the load from a process of its own, wait until all is decided, and compare."""
    marker, product_id = uuid4().int >> 64 << 32, str(uuid4())
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        answers = await loop.run_in_executor(process, send_all, url, marker, product_id, offer)

    async def all_decided() -> bool:
        status = await read_status(settings)
        return status.inbox_messages == 0 and all(view.lag == 0 for view in status.views)

    await eventually(all_decided, "all orders are decided", DECIDED_TIMEOUT_S)
    engine = make_engine(settings.db_url("projector"))
    try:
        recorded = await orders_by_customer(engine, product_id)
    finally:
        await engine.dispose()
    return compared(answers, offer, marker, recorded)


async def orders_by_customer(engine: AsyncEngine, product_id: str) -> dict[bytes, int]:
    """The number of orders of each customer for this product."""
    async with engine.connect() as connection:
        found = await connection.exec_driver_sql(
            "SELECT customer_id, COUNT(*) FROM orders WHERE product_id = %s GROUP BY customer_id",
            (UUID(product_id).bytes,),
        )
        rows: Any = found.all()
    return {bytes(customer_id): count for customer_id, count in rows}


def compared(answers: Answers, offer: Offer, marker: int, recorded: dict[bytes, int]) -> Result:
    """What became of each order, by its answer."""
    found: Counter[str] = Counter()
    doubled = lost = 0
    for number, answer in answers.answers.items():
        orders = recorded.get(customer_of(marker, number).bytes, 0)
        found[answer] += bool(orders)
        doubled += orders > 1
        lost += answer == "202" and not orders
    kinds = Counter(answers.answers.values())
    return Result(
        len(answers.answers),
        answers.dropped,
        dict(kinds),
        kinds["202"] / offer.duration_s,
        _quantiles_ms(answers.accepted_s),
        _quantiles_ms(answers.refused_s),
        lost,
        doubled,
        found["503 no"],
        found["503 unknown"],
        found["none"],
        sum(count for kind, count in kinds.items() if kind.startswith("503")),
    )


def _quantiles_ms(values_s: list[float]) -> tuple[float, ...]:
    last = len(values_s) - 1
    return tuple(
        round(1000 * sorted(values_s)[int(share * last)], 1) for share in QUANTILES if values_s
    )


async def measure(seconds: float, connections: int) -> Result:
    """Find out what one API process can take, and offer ten times as much."""
    with servers() as running:
        async with system(running, "writer", "projector", "api") as ledger:
            closed = Offer(inf, SATURATION_S, SATURATION_CONNECTIONS)
            most = await offered(ledger.url, ledger.settings, closed)
            out.print(f"saturation: {most.accepted_per_s:.0f} orders/s")
            offer = Offer(TIMES * most.accepted_per_s, seconds, connections)
            return await offered(ledger.url, ledger.settings, offer)


def main(
    seconds: Annotated[float, typer.Option(help="how long the load lasts")] = 60,
    connections: Annotated[int, typer.Option(help="connections at most")] = 8_000,
) -> None:
    """Offer ten times as many orders as can be taken; print what became of them, as JSON."""
    result = asyncio.run(measure(seconds, connections))
    out.print_json(json.dumps(asdict(result)))
    if result.lost or result.doubled or result.no_recorded:
        raise typer.Exit(1)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
