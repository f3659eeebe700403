"""Runs the peer on the same database server, and measures it with the same load."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any, Final

import httpx
from msgspec import Struct
from sqlalchemy.ext.asyncio import create_async_engine

from bench.loads import RequestStats, closed
from bench.prerequisites import ROOT, ensure_peer
from bench.resource_use import Pids, ResourceUse, Sampler, tree
from bench.system import SERVERS, Parties, WrongResult, called
from tests.harness import eventually, free_port
from tests.private_servers import Servers

WORKERS: Final = 4
CONNECTIONS: Final = 16
DRAINED_TIMEOUT_S: Final = 120
RACERS: Final = 100
SCHEMA: Final = "ledger_peer"


class PeerLoad(Struct, frozen=True):
    """One load on the peer: `orders` were decided in `duration_s`, from first request to last."""

    stats: RequestStats
    orders: int
    duration_s: float
    use: dict[str, ResourceUse]

    @property
    def orders_per_s(self) -> float:
        """Orders decided a second."""
        return self.orders / self.duration_s


class Peer:
    """The running peer."""

    def __init__(self, servers: Servers, url: str, processes: Mapping[str, Popen[bytes]]) -> None:
        self._servers = servers
        self._processes = processes
        self.url = url
        self.http = httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=30)

    def components(self) -> Mapping[str, Pids]:
        """The processes of each component, by name."""
        ours = {name: partial(tree, p.pid) for name, p in self._processes.items()}
        return {**ours, "database": partial(called, self._servers.home, SERVERS["database"])}

    async def parties(self, customers: int, products: int) -> Parties:
        """Customers ids can pay and products that are there."""
        people = [await self._create("customer", username=f"peer {n}") for n in range(customers)]
        for customer_id in people:
            deposit = {"amount": 10**9}
            await self.http.post(f"/customers/{customer_id}/deposits", json=deposit)
        things = [
            await self._create("product", name=f"Peer {n}", base_price=1, stock=10**8)
            for n in range(products)
        ]
        return Parties(people, things)

    async def _create(self, thing: str, **body: object) -> str:
        answer = await self.http.post(f"/{thing}s", json=body)
        answer.raise_for_status()
        return str(answer.json()[f"{thing}_id"])

    async def race(self) -> None:
        """The race test: of many orders for the last unit one is completed; raises WrongResult."""
        customer_id = await self._create("customer", username="race")
        product_id = await self._create("product", name="Last", base_price=100, stock=1)
        body = {"customer_id": customer_id, "product_id": product_id}
        posts = (self.http.post("/orders", json=body) for _ in range(RACERS))
        placed = [answer.json()["order_id"] for answer in await asyncio.gather(*posts)]
        await self.drained()
        shown = [(await self.http.get(f"/orders/{one}")).json()["status"] for one in placed]
        stock = (await self.http.get(f"/products/{product_id}")).json()["stock"]
        if (shown.count("COMPLETED"), shown.count("FAILED"), stock) != (1, RACERS - 1, 0):
            raise WrongResult(f"the peer lost the race: {shown.count('COMPLETED')}, stock {stock}")

    async def drained(self) -> int:
        """Wait until no order is PENDING; how many there are."""
        engine = create_async_engine(_url(self._servers, "asyncmy"))

        async def count() -> tuple[int, int]:
            async with engine.connect() as connection:
                result = await connection.exec_driver_sql(
                    "SELECT COUNT(*), COALESCE(SUM(status = 'PENDING'), 0) FROM peer_orders"
                )
                row: Any = result.one()
                return int(row[0]), int(row[1])

        async def is_drained() -> bool:
            return (await count())[1] == 0

        await eventually(is_drained, "the peer has decided all orders", DRAINED_TIMEOUT_S)
        orders, _ = await count()
        await engine.dispose()
        return orders


async def saturate(peer: Peer, parties: Parties, duration_s: int) -> PeerLoad:
    """Orders as fast as they are taken, until every one of them is decided."""
    ids = ",".join(parties.customers), ",".join(parties.products)
    before = await peer.drained()
    with Sampler(peer.components()) as sampler:
        began = time.monotonic()
        stats = await closed(peer.url, "orders.lua", duration_s, "1", *ids, connections=CONNECTIONS)
        orders = await peer.drained() - before
        lasted_s = time.monotonic() - began
    if stats.refused or stats.broken or orders < stats.requests:
        raise WrongResult(f"{orders} orders of the peer's {stats}")
    return PeerLoad(stats, orders, lasted_s, sampler.use())


@asynccontextmanager
async def peer(servers: Servers) -> AsyncIterator[Peer]:
    """The peer with its Redis, its workers and its API, on the database server that is there."""
    python = await asyncio.to_thread(ensure_peer)
    await _make_schema(servers)
    redis_port, api_port = free_port(), free_port()
    environment = os.environ | {
        "PEER_DATABASE_URL": _url(servers, "pymysql"),
        "PEER_REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
        "PYTHONPATH": str(ROOT),
    }
    bin_ = python.parent
    commands = {
        "redis": ["redis-server", "--port", str(redis_port), "--bind", "127.0.0.1", "--save", ""],
        "api": [str(bin_ / "uvicorn"), "bench.peer.api:app", "--port", str(api_port)],
        "celery": [str(bin_ / "celery"), "-A", "bench.peer.tasks", "worker", f"-c{WORKERS}"],
    }
    quiet = {"api": ["--no-access-log", "--log-level=warning"], "celery": ["-lERROR", "-Ofair"]}
    processes: dict[str, Popen[bytes]] = {}
    try:
        for name, command in commands.items():
            processes[name] = _start(servers.home, name, command + quiet.get(name, []), environment)
        running = Peer(servers, f"http://127.0.0.1:{api_port}", processes)
        await _serves(running)
        yield running
        await running.http.aclose()
    finally:
        for process in reversed(processes.values()):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def _start(
    home: Path, name: str, command: list[str], environment: Mapping[str, str]
) -> Popen[bytes]:
    with (home / "logs" / f"peer-{name}.log").open("ab") as log:
        return Popen(
            command,
            env=environment,
            cwd=home,
            stdin=DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


async def _serves(running: Peer) -> None:
    async def answers() -> bool:
        try:
            return (await running.http.get("/products/x")).status_code == 422
        except httpx.TransportError:
            return False

    await eventually(answers, "the peer serves", 30)


def _url(servers: Servers, driver: str) -> str:
    password = (servers.secrets_dir / "db_migrate").read_text().strip()
    account = f"ledger_migrate:{password}"
    return f"mysql+{driver}://{account}@127.0.0.1:{servers.db_port}/{SCHEMA}"


async def _make_schema(servers: Servers) -> None:
    url = _url(servers, "asyncmy").removesuffix(f"/{SCHEMA}")
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {SCHEMA}")
        await connection.exec_driver_sql(f"CREATE DATABASE {SCHEMA}")
    await engine.dispose()
