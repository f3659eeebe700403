"""The system under test: private servers, real processes, and a proxy on every way between them."""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Final

import httpx
from sqlalchemy.exc import DBAPIError

from cli.localstack.ports import RANGE, is_free
from cli.localstack.supervisor import LEDGER
from cli.settings import Settings
from ledger.messaging.rabbitmq import BROKER_ERRORS, Connection
from ledger.messaging.topology import INBOX, PARKING
from tests.faults.history import History
from tests.faults.workload import Clients
from tests.harness import Stack, broker_admin, environment, eventually, make_ledger, rabbitmqctl
from tests.ledger.pipeline import Ledger
from tests.private_servers import Servers, start_servers
from tests.proxy import Proxy

APIS: Final = ("api", "api.2")
PARTS: Final = (*APIS, "writer", "projector")
BROKER, DATABASE = "broker", "database"
SERVERS: Final = (BROKER, DATABASE)
HEALED_WITHIN_S: Final = 30.0
STARTED_WITHIN_S: Final = 60.0
COMMAND_WITHIN_S: Final = 90.0
STARTING_S: Final = 10.0
"""A process may be too young to have heard of SIGTERM for this long."""

ENDED_WITHIN_S: Final = 30.0

Undo = Callable[[], Awaitable[None]]


class World:
    """Everything that may be broken, and how to mend it."""

    def __init__(self, servers: Servers, settings: Settings, history: History) -> None:
        self.servers = servers
        self.history = history
        self.settings = settings
        self.stack = Stack(settings, warm=False)
        self.ledger = Ledger(settings)
        self.links: dict[str, Proxy] = {}
        self.ports: dict[str, int] = {}
        self.clients: Clients | None = None
        self.planted: set[bytes] = set()
        # Faults that end the same process wait for each other: one that is starting is not there.
        self.turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._started_s: dict[str, float] = {}
        self._undo: list[Undo] = []
        self._armed: set[str] = set()
        self._command: asyncio.subprocess.Process | None = None

    async def open(self, stack: AsyncExitStack) -> None:
        """Start every part behind its proxies."""
        stack.push_async_callback(self._close)
        ports = free_ports()
        for part in (*PARTS, "writer.2"):
            for name, port in ((BROKER, self.servers.amqp_port), (DATABASE, self.servers.db_port)):
                await self._link(f"{part}-{name}", port, next(ports))
        for api in APIS:
            self.ports[api] = next(ports)
            await self._link(f"client-{api}", self.ports[api], next(ports))
        for part in PARTS:
            self.start(part)
        await self.until_ready()

    async def _link(self, name: str, target: int, port: int) -> None:
        self.links[name] = Proxy(target)
        self.links[name].port = port
        await self.links[name].heal()

    async def _close(self) -> None:
        for name in list(self.stack.processes):
            self.kill(name)
        await self.stack.stop()
        for link in self.links.values():
            await link.close()
        await self.ledger.close()

    @property
    def urls(self) -> dict[str, str]:
        """Where clients reach each API process."""
        return {api: f"http://127.0.0.1:{self.links[f'client-{api}'].port}" for api in APIS}

    def start(self, part: str, failpoints: str = "", more: Mapping[str, str] | None = None) -> None:
        """Start a part, perhaps one that fails on purpose."""
        (self._armed.add if failpoints or more else self._armed.discard)(part)
        self._started_s[part] = time.monotonic()
        self.stack.start(
            part,
            more,
            amqp_port=self.links[f"{part}-{BROKER}"].port,
            db_port=self.links[f"{part}-{DATABASE}"].port,
            api_port=self.ports.get(part, self.settings.api_port),
            failpoints=failpoints,
        )

    def runs(self, name: str) -> bool:
        """Whether a part or a server has not ended."""
        if name in SERVERS:
            return self.servers.processes[self._program(name)].poll() is None
        return name in self.stack.processes and self.stack.processes[name].poll() is None

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a part, or to all processes of a server."""
        if name in SERVERS:
            self.servers.signal(self._program(name), number)
        elif self.runs(name):
            self.stack.processes[name].send_signal(number)

    def kill(self, name: str) -> None:
        """End a part or a server at once."""
        self.send(name, signal.SIGKILL)
        if name not in SERVERS and name in self.stack.processes:
            self.stack.wait(name)

    async def end(self, name: str) -> None:
        """Ask a part or a server to end, and see that it does."""
        self.send(name, signal.SIGTERM)
        process = self._process(name)
        status = await asyncio.to_thread(process.wait, ENDED_WITHIN_S)
        if name not in SERVERS:
            self.stack.wait(name)
            starting = time.monotonic() - self._started_s[name] < STARTING_S
            if status and not (starting and status == -signal.SIGTERM):
                self.history.violate(f"{name} ended with status {status} when it was asked to end")

    async def start_again(self, name: str) -> None:
        """Start what has ended."""
        if name in SERVERS:
            await asyncio.to_thread(self.servers.restart, self._program(name))
        else:
            if name in self.stack.processes:
                self.kill(name)
            self.start(name)

    def pid(self, name: str) -> int:
        """The process of a part, or the one that a server's script became."""
        return self._process(name).pid

    def _process(self, name: str) -> subprocess.Popen[bytes]:
        if name in SERVERS:
            return self.servers.processes[self._program(name)]
        return self.stack.processes[name]

    def _program(self, name: str) -> str:
        return self.servers.broker if name == BROKER else self.servers.database

    @asynccontextmanager
    async def nobody_asking(self) -> AsyncIterator[None]:
        """Clients wait for as long as this lasts, and all they asked for is decided."""
        assert self.clients
        async with self.clients.waiting():
            await self.until_quiet()
            yield

    async def command(self, *arguments: str, failpoints: str = "") -> tuple[int, str]:
        """Run a `ledger` command to its end; its exit status and all that it said."""
        settings = self.settings.model_copy(update={"failpoints": failpoints})
        self._command = await asyncio.create_subprocess_exec(
            LEDGER,
            *arguments,
            env={**os.environ, **environment(settings)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(COMMAND_WITHIN_S):
            said, _ = await self._command.communicate()
        return self._command.returncode or 0, said.decode(errors="replace")

    def signal_command(self, number: signal.Signals) -> None:
        """Send a signal to the command that runs."""
        if self._command and self._command.returncode is None:
            self._command.send_signal(number)

    async def parked(self) -> int:
        """How many messages are parked."""
        return await self.ledger.depth(PARKING)

    def on_heal(self, undo: Undo) -> None:
        """Have this done when everything is mended, once the servers answer."""
        self._undo.append(undo)

    async def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl."""
        return await asyncio.to_thread(rabbitmqctl, self.servers, *arguments)

    def logged(self, part: str, phrase: str) -> list[float]:
        """When a part logged a line with this phrase, on the clock of the history."""
        found = []
        for line in self.stack.log_path(part).read_text(errors="replace").splitlines():
            if phrase in line and line.startswith("{"):
                logged = datetime.fromisoformat(json.loads(line)["time"]).timestamp()
                found.append(logged - time.time() + time.monotonic())
        return found

    async def left_in_inbox(self) -> int:
        """How many messages the inbox has, those that were delivered and not acked among them."""
        vhost = self.settings.amqp_vhost
        said = await self.ctl("list_queues", "-q", "-s", "-p", vhost, "name", "messages")
        counts = dict(line.split() for line in said.splitlines())
        return int(counts[INBOX])

    async def until_nothing_left(self) -> int:
        """Wait until the inbox is empty: what was held up on a network may come late."""

        async def is_empty() -> bool:
            return await self.left_in_inbox() == 0

        await eventually(is_empty, "the inbox is empty", HEALED_WITHIN_S)
        return 0

    async def heal(self) -> float:
        """Mend everything; how long it took until all that was accepted was decided and shown."""
        for link in self.links.values():
            await link.heal()
        for name in (*SERVERS, *self.stack.processes):
            self.send(name, signal.SIGCONT)
        await asyncio.gather(*[self._mend_server(name) for name in SERVERS])
        await self.ledger.close()
        for part in PARTS:
            if part in self._armed or not self.runs(part):
                await self.start_again(part)
        while self._undo:
            await self._undo.pop()()
        if "writer.2" in self.stack.processes:
            await self.end("writer.2")
        began = time.monotonic()
        await self.until_ready()
        await self.until_quiet(began + HEALED_WITHIN_S)
        return time.monotonic() - began

    async def _mend_server(self, name: str) -> None:
        works = self._broker_works if name == BROKER else self._database_works
        if not self.runs(name) or not await works():
            await self.start_again(name)
        await self.until_works(name)

    async def until_works(self, name: str) -> None:
        """Return once a server that was started answers; a part is not waited for."""
        if name in SERVERS:
            works = self._broker_works if name == BROKER else self._database_works
            await eventually(works, f"the {name} works", STARTED_WITHIN_S)

    async def _broker_works(self) -> bool:
        url = self.settings.amqp_url("migrate")
        try:
            async with (
                asyncio.timeout(10),
                Connection(url, "heal").channel(confirms=False) as channel,
            ):
                await channel.get_exchange("amq.fanout")
        except BROKER_ERRORS:
            return False
        return True

    async def _database_works(self) -> bool:
        try:
            await self.ledger.rows("SELECT position FROM ledger_head", "writer")
        except (DBAPIError, OSError):
            return False
        return True

    async def until_ready(self) -> None:
        """Wait until every API process says that it is ready."""
        for api in APIS:
            async with httpx.AsyncClient(base_url=self.urls[api], timeout=5) as http:

                async def is_ready(http: httpx.AsyncClient = http) -> bool:
                    try:
                        return (await http.get("/health/ready")).status_code == 200
                    except httpx.TransportError:
                        return False

                await eventually(is_ready, f"{api} is ready", HEALED_WITHIN_S)

    async def until_writers(self, count: int) -> None:
        """Wait until so many writers work or stand by."""
        path = f"/consumers/{self.settings.amqp_vhost}"
        async with broker_admin(self.servers) as http:

            async def are_there() -> bool:
                found = (await http.get(path)).json()
                return sum(each["queue"]["name"] == INBOX for each in found) == count

            await eventually(are_there, f"{count} writers consume", STARTED_WITHIN_S)

    async def until_quiet(self, deadline_s: float | None = None) -> None:
        """Wait until the inbox is empty and every view is at the head."""
        assert self.clients
        end_s = deadline_s or time.monotonic() + HEALED_WITHIN_S
        await self.clients.barrier(end_s - time.monotonic())

        async def is_quiet() -> bool:
            if await self.ledger.depth(INBOX):
                return False
            behind = await self.ledger.rows(
                "SELECT COUNT(*) FROM ledger_head h, checkpoints c WHERE c.position <> h.position",
                "projector",
            )
            return behind == [(0,)]

        left_s = end_s - time.monotonic()
        await eventually(is_quiet, "inbox empty and views at the head", left_s)


def free_ports() -> Iterator[int]:
    """Ports of the range from which no outgoing connection takes one."""
    for port in Random(os.getpid()).sample(RANGE, len(RANGE)):
        if is_free(port):
            yield port


@asynccontextmanager
async def open_world(home: Path, history: History) -> AsyncIterator[World]:
    """A whole system below `home`, running; it ends with this block, and its data stay."""
    servers = await asyncio.to_thread(start_servers, home, True)
    try:
        settings = await make_ledger(servers, api_shared=True, snapshot_every=700)
        async with AsyncExitStack() as stack:
            world = World(servers, settings, history)
            await world.open(stack)
            yield world
    finally:
        await asyncio.to_thread(servers.stop)
