"""What tests share: real servers, a ledger of one's own on them, real processes, deadlines."""

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import httpx
from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from cli.commands.migrate import migrate
from cli.localstack.secrets import PERMISSIONS, read_secret
from cli.localstack.supervisor import LEDGER, MARK
from cli.settings import Settings
from ledger.messaging import topology
from ledger.messaging.rabbitmq import Connection
from projections.views.projection import METADATA
from tests.private_servers import RUNNING, Servers

Value = TypeVar("Value")
# Far beyond what anything takes on a slow machine: a wait that reaches it is a failure.
DEADLINE_S = 90.0
_numbers = itertools.count(1)


async def eventually(
    ask: Callable[[], Awaitable[Value]], what: str, deadline_s: float = DEADLINE_S
) -> Value:
    """The first true answer of `ask`; fails, saying what was awaited, at the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        answer = await ask()
        if answer:
            return answer
        assert time.monotonic() < end, f"not within {deadline_s} s: {what} (last: {answer!r})"
        await asyncio.sleep(0.02)


def free_port() -> int:
    """A port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def make_ledger(servers: Servers, **changes: object) -> Settings:
    """A migrated, empty ledger with a schema and a virtual host of its own."""
    name = f"ledger_test_{os.getpid()}_{next(_numbers)}"
    settings = Settings(
        home=servers.home,
        secrets_dir=servers.secrets_dir,
        amqp_port=servers.amqp_port,
        amqp_vhost=name,
        db_port=servers.db_port,
        db_name=name,
        api_port=free_port(),
        **changes,
    )
    key = (servers.home, *METADATA.tables)
    await asyncio.gather(
        create_database(settings, _migrations.get(key, [])), make_vhost(servers, name)
    )
    if key in _migrations:
        async with Connection(settings.amqp_url("migrate"), "tests").channel(
            confirms=False
        ) as channel:
            await topology.declare(channel, settings.inbox_max_length)
    else:
        with _recorded_changes(name) as changes_made:
            await migrate(settings)
        _migrations[key] = changes_made
    return settings


# What `ledger migrate` changed in the first schema on each server, `{}` for the schema's name. All
# others get the same statements: to find out what is missing takes most of a migration's time, and
# hundreds of tests have a schema of their own.
_migrations: dict[object, list[tuple[str, Any]]] = {}
_UNCHANGING = ("SELECT", "DESCRIBE", "SHOW", "CREATE USER", "ALTER USER")


@contextmanager
def _recorded_changes(schema: str) -> Iterator[list[tuple[str, Any]]]:
    changes: list[tuple[str, Any]] = []

    def record(_: object, __: object, statement: str, parameters: Any, *___: object) -> None:
        if not statement.startswith(_UNCHANGING):
            changes.append((statement.replace(schema, "{}"), parameters))

    event.listen(Engine, "before_cursor_execute", record)
    try:
        yield changes
    finally:
        event.remove(Engine, "before_cursor_execute", record)


async def create_database(settings: Settings, changes: list[tuple[str, Any]]) -> None:
    """A schema to which these changes were made."""
    engine = create_async_engine(settings.db_url("migrate")._replace(database=None))
    async with engine.begin() as connection:
        for statement, parameters in [("CREATE DATABASE {}", ()), ("USE {}", ()), *changes]:
            await connection.exec_driver_sql(statement.replace("{}", settings.db_name), parameters)
    await engine.dispose()


async def make_vhost(servers: Servers, name: str) -> None:
    """A virtual host in which each role has its rights."""
    async with broker_admin(servers) as http:
        (await http.put(f"/vhosts/{name}")).raise_for_status()
        for role, (configure, write, read) in PERMISSIONS.items():
            rights = {"configure": configure, "write": write, "read": read}
            path = f"/permissions/{name}/ledger_{role}"
            (await http.put(path, json=rights)).raise_for_status()


def broker_admin(servers: Servers) -> httpx.AsyncClient:
    """The management API of the private broker."""
    password = read_secret(servers.secrets_dir, "amqp_admin")
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{servers.management_port}/api",
        auth=("ledger_admin", password),
        timeout=DEADLINE_S,
        verify=False,
    )


def rabbitmqctl(servers: Servers, *arguments: str) -> str:
    """What `rabbitmqctl` says about the private broker, or after it changed it."""
    broker = servers.programs.broker
    command = [str(Path(broker.command[0]).with_name("rabbitmqctl")), *arguments]
    done = subprocess.run(
        command,
        env=broker.environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def engine_of(settings: Settings, role: str) -> AsyncEngine:
    """Connections with one role's account."""
    return create_async_engine(settings.db_url(role), isolation_level="READ COMMITTED")


def environment(settings: Settings) -> dict[str, str]:
    """The settings as environment variables."""
    given = settings.model_dump(exclude_none=True)
    return {f"LEDGER_{name.upper()}": str(value) for name, value in given.items()}


def start_ledger(
    home: Path,
    arguments: Sequence[str],
    env: Mapping[str, str],
    out: Path,
    err: Path,
    warm: bool = True,
) -> subprocess.Popen[bytes]:
    """Start `ledger` with these arguments and this whole environment; it appends to the files.

    Where servers run at this home it's a fork of a process that has imported all, if it may be.
    """
    servers = next((servers for servers in RUNNING if servers.home == home), None)
    with out.open("ab") as out_file, err.open("ab") as err_file:
        if warm and servers and servers.warm_ledger:
            return servers.warm_ledger.start(arguments, env, out_file, err_file)
        return subprocess.Popen(
            [LEDGER, *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out_file,
            stderr=err_file,
        )


@dataclass(eq=False)
class Stack:
    """A ledger with its processes, which can be killed and started again one by one."""

    settings: Settings
    # Whether processes are forks of one that has imported all: at once, but not from scratch.
    warm: bool = True
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where the API serves."""
        return f"http://127.0.0.1:{self.settings.api_port}"

    @cached_property
    def http(self) -> httpx.AsyncClient:
        """A client of the API."""
        # It's plain HTTP: to load certificates would take longer than the first 20 requests.
        return httpx.AsyncClient(base_url=f"{self.url}/api/v1", timeout=DEADLINE_S, verify=False)

    def start(self, name: str, more: Mapping[str, str] | None = None, **changes: object) -> None:
        """Start `ledger NAME` as a process, with `more` environment and with settings changed.

        What follows a dot in the name tells processes of one command apart.
        """
        STACKS.add(self)
        env = {
            **os.environ,
            **environment(self.settings.model_copy(update=changes)),
            # They end with the servers of this home, at the latest.
            MARK: str(self.settings.home),
            **(more or {}),
        }
        log_path = self.log_path(name)
        self.processes[name] = start_ledger(
            self.settings.home, [name.partition(".")[0]], env, log_path, log_path, self.warm
        )

    def log_path(self, name: str) -> Path:
        """Where a process writes what it has to say."""
        return self.settings.home / "logs" / f"{self.settings.db_name}-{name}.log"

    def kill(self, name: str) -> None:
        """End a process at once, as a crash would."""
        self.processes[name].send_signal(signal.SIGKILL)
        self.wait(name)

    def terminate(self, name: str) -> int:
        """Ask a process to end; its exit status."""
        self.processes[name].send_signal(signal.SIGTERM)
        return self.wait(name)

    def wait(self, name: str) -> int:
        """The exit status of a process that is about to end."""
        process = self.processes[name]
        try:
            status = process.wait(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill(name)
            raise
        del self.processes[name]
        return status

    async def ready(self) -> None:
        """Wait until the API says that it is ready."""

        async def is_ready() -> bool:
            assert self.processes["api"].poll() is None, self.log_path("api").read_text()
            try:
                return (await self.http.get(f"{self.url}/health/ready")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(is_ready, "the API is ready")

    async def stop(self) -> None:
        """Kill whatever still runs; tests of an orderly end ask for that themselves."""
        STACKS.discard(self)
        await self.http.aclose()
        for name in list(self.processes):
            self.kill(name)


# Those that run; what they start during a test is no leak of that test.
STACKS: set[Stack] = set()


async def start_stack(servers: Servers, **changes: object) -> Stack:
    """An empty ledger with api, writer and projector running."""
    stack = Stack(await make_ledger(servers, **changes))
    try:
        for name in ("writer", "projector", "api"):
            stack.start(name)
        await stack.ready()
    except BaseException:
        await stack.stop()
        raise
    return stack
