"""The ledger under measurement: private servers, its three processes, and what is true of it."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.resource_use import Pids, tree
from cli.commands.status import read_status
from cli.localstack.supervisor import find_processes
from cli.settings import Settings
from ledger.runtime.database import make_engine
from tests.harness import Stack, make_ledger
from tests.private_servers import Servers, start_servers

PROCESSES: Final = ("writer", "projector", "api")
SERVERS: Final = {"broker": "beam.smp", "database": "mariadbd"}
ENOUGH_MINOR: Final = 10**9
ENOUGH_UNITS: Final = 10**8
SETTLED_TIMEOUT_S: Final = 120.0
LOOK_EVERY_S: Final = 0.1


class WrongResult(Exception):
    """The numbers of a load don't add up: a fast wrong run is a failed run."""


class Parties(Struct, frozen=True):
    """Who orders what in a load."""

    customers: list[str]
    products: list[str]


@contextlib.contextmanager
def servers() -> Iterator[Servers]:
    """A private broker and database in a directory of their own, removed afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="ledger-bench-") as home,
        start_servers(Path(home), with_management=True) as running,
    ):
        yield running


class System:
    """One ledger on the private servers, with those of its processes that were started."""

    def __init__(self, servers: Servers, settings: Settings) -> None:
        self.servers = servers
        self.settings = settings
        self.stack = Stack(settings, warm=False)

    @property
    def url(self) -> str:
        """Where the API serves."""
        return self.stack.url

    def components(self) -> Mapping[str, Pids]:
        """The processes of each component, by name."""
        ours = {name: partial(tree, p.pid) for name, p in self.stack.processes.items()}
        home = self.servers.home
        theirs = {name: partial(called, home, program) for name, program in SERVERS.items()}
        return {**ours, **theirs}

    @contextlib.asynccontextmanager
    async def engine(self, role: str = "projector") -> AsyncIterator[AsyncEngine]:
        """Connections with one role's account."""
        engine = make_engine(self.settings.db_url(role), snapshot_key=self.settings.snapshot_key())
        try:
            yield engine
        finally:
            await engine.dispose()

    async def parties(self, customers: int, products: int) -> Parties:
        """Customers who can pay and products that are there, made through the API."""
        http = self.stack.http
        return Parties(
            [await _create(http, "customer", username=f"bench {n}") for n in range(customers)],
            [
                await _create(http, "product", name=f"Bench {n}", base_price=1, stock=ENOUGH_UNITS)
                for n in range(products)
            ],
        )

    async def settled(self, position: int, timeout_s: float = SETTLED_TIMEOUT_S) -> None:
        """Wait until the ledger has come so far, the views show it, and nothing is on its way."""
        async with self.engine() as engine, asyncio.timeout(timeout_s):
            while True:
                await _until_level(engine, position)
                if await self._idle():
                    return

    async def _idle(self) -> bool:
        status = await read_status(self.settings)
        return status.inbox_messages == 0 and all(view.lag == 0 for view in status.views)


async def _until_level(engine: AsyncEngine, position: int) -> None:
    """Wait until the views are at the head. Asked often, so it must cost the database nothing."""
    async with engine.connect() as connection:
        while True:
            result = await connection.exec_driver_sql(
                "SELECT (SELECT position FROM ledger_head), MIN(position) FROM checkpoints"
            )
            row: Any = result.one()
            head, shown = row
            if position <= head == shown:
                return
            await connection.rollback()
            await asyncio.sleep(LOOK_EVERY_S)


def called(home: Path, name: str) -> list[int]:
    """The servers of this home that run this program."""
    pids = []
    for process in find_processes(home):
        with contextlib.suppress(psutil.NoSuchProcess):  # a broker has some that end soon
            if process.name() == name:
                pids.append(process.pid)
    return pids


async def _create(http: httpx.AsyncClient, thing: str, **body: object) -> str:
    answer = await http.post(f"/{thing}s", json=body, headers={"Prefer": "wait=30"})
    answer.raise_for_status()
    id_ = str(answer.json()[f"{thing}_id"])
    if thing == "customer":
        deposit = {"amount": ENOUGH_MINOR}
        await http.post(f"/customers/{id_}/deposits", json=deposit, headers={"Prefer": "wait=30"})
    return id_


@contextlib.asynccontextmanager
async def system(servers: Servers, *processes: str) -> AsyncIterator[System]:
    """An empty ledger with these processes running."""
    system_ = System(servers, await make_ledger(servers))
    try:
        for name in processes:
            system_.stack.start(name)
        if "api" in processes:
            await system_.stack.ready()
        yield system_
    finally:
        await system_.stack.stop()
