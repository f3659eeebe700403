"""A private broker and database for tests, thrown away afterwards."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import TracebackType

from cli.localstack import StackRefused
from cli.localstack.install import ensure_binaries
from cli.localstack.ports import accepts, choose_ports
from cli.localstack.secrets import (
    DEFINITIONS,
    read_secret,
    user_definition,
)
from cli.localstack.servers import ServerPrograms, prepare_servers
from cli.localstack.supervisor import MARK, Program, last_line, start_watchdog, stop_processes
from tests.warm import WarmLedger

ADMIN = "ledger_admin"
MANAGEMENT_PORT = "LEDGER_MANAGEMENT_PORT"
KILL_TIMEOUT_S = 60.0


def wait_until(holds: Callable[[], bool], deadline_s: float, complaint: str) -> None:
    """Return once the condition holds; raises StackRefused with the complaint at the deadline."""
    end = time.monotonic() + deadline_s
    while not holds():
        if time.monotonic() > end:
            raise StackRefused(complaint)
        time.sleep(0.02)


class Servers:
    """A running pair without supervision; a context manager that stops it.

    They end with this process, however it ends, together with all that carries the mark of their
    home.
    """

    def __init__(self, programs: ServerPrograms, management_port: int | None = None) -> None:
        self.programs = programs
        self._management_port = management_port
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def home(self) -> Path:
        """Where everything of them lies."""
        return self.programs.home

    @property
    def secrets_dir(self) -> Path:
        """Where the passwords are."""
        return self.programs.secrets_dir

    @property
    def amqp_port(self) -> int:
        """Where the broker listens."""
        return self.programs.ports["LEDGER_AMQP_PORT"]

    @property
    def db_port(self) -> int:
        """Where the database listens."""
        return self.programs.ports["LEDGER_DB_PORT"]

    @property
    def management_port(self) -> int:
        """Where the broker's HTTP API listens."""
        assert self._management_port, "these servers have no management"
        return self._management_port

    @property
    def broker(self) -> str:
        """The name of the broker's program, as `signal` and `restart` take it."""
        return self.programs.broker.name

    @property
    def database(self) -> str:
        """The name of the database's program."""
        return self.programs.database.name

    def start(self) -> None:
        """Start them and wait until each answers; on failure nothing is left running."""
        self._watchdog = start_watchdog(self.home)
        RUNNING.add(self)
        try:
            programs = self.programs
            self._spawn(programs.epmd)
            self._wait(programs.epmd)
            self._spawn(programs.broker)
            self._spawn(programs.database)
            self._wait(programs.broker)
            self._wait(programs.database)
        except BaseException:
            self.stop()
            raise

    @cached_property
    def warm_ledger(self) -> WarmLedger | None:
        """Starts `ledger` processes at once; None where that isn't possible."""
        return WarmLedger(self.home) if sys.platform == "linux" else None

    def started(self) -> list[subprocess.Popen[bytes]]:
        """The processes that run for as long as the servers do."""
        warm = self.__dict__.get("warm_ledger")
        return [*self.processes.values(), self._watchdog, *([warm.process] if warm else [])]

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a server and to all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.processes[name].pid, number)

    def restart(self, name: str) -> None:
        """Start a server again on its data and its port; if it still runs it's killed first."""
        self.signal(name, signal.SIGKILL)
        self.processes[name].wait(KILL_TIMEOUT_S)
        program = self.programs.broker if name == self.broker else self.programs.database
        self._spawn(program)
        self._wait(program)

    def stop(self) -> None:
        """Kill them, as nobody needs their data, and end whatever else runs for their home."""
        if warm := self.__dict__.get("warm_ledger"):
            warm.close()
        for name in self.processes:
            self.signal(name, signal.SIGKILL)
        for process in self.processes.values():
            process.wait(KILL_TIMEOUT_S)
        self.processes.clear()
        stop_processes(self.home)
        self._watchdog.communicate()
        self.programs.close()
        RUNNING.discard(self)

    def _spawn(self, program: Program) -> None:
        (self.home / "logs").mkdir(exist_ok=True)
        with self._log(program).open("ab") as log:
            self.processes[program.name] = subprocess.Popen(
                program.command,
                env=program.environment | {MARK: str(self.home)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait(self, program: Program) -> None:
        process, log = self.processes[program.name], self._log(program)
        wait_until(
            lambda: process.poll() is not None or program.answers(),
            program.start_timeout_s,
            f"{program.name} gave no answer in {program.start_timeout_s:.0f} s: see {log}",
        )
        if process.returncode is not None:
            raise StackRefused(
                f"{program.name} ended with status {process.returncode} ({last_line(log)}): "
                f"see {log}"
            )
        if program is self.programs.broker and self._management_port:
            port = self._management_port
            wait_until(lambda: accepts(port), program.start_timeout_s, "no management API")

    def _log(self, program: Program) -> Path:
        return self.home / "logs" / f"{program.name}.log"

    def __enter__(self) -> "Servers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


# Those that run; what they start during a test is no leak of that test.
RUNNING: "set[Servers]" = set()


def prepare(home: Path) -> ServerPrograms:
    """Write what a pair below `home` needs; raises StackRefused."""
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    binaries = ensure_binaries(lambda _: None)
    return prepare_servers(home, binaries, home / "secrets", "ledger", "ledger")


def start_servers(home: Path, with_management: bool = False) -> Servers:
    """Start a private pair below `home`, to be stopped by the caller; raises StackRefused.

    With management, the HTTP API listens on `management_port` and the account `ledger_admin`
    (password in the file `amqp_admin`) may make virtual hosts.
    """
    programs = prepare(home)
    # Processes of many ledgers have this home: they must not all listen on one port for metrics.
    (programs.home / "stack.env").unlink()
    port = _add_management(programs) if with_management else None
    servers = Servers(programs, port)
    servers.start()
    return servers


def _add_management(programs: ServerPrograms) -> int:
    base = programs.home / "rabbitmq"
    (programs.home / "management").mkdir(exist_ok=True)
    port = choose_ports(programs.home / "management", [MANAGEMENT_PORT])[MANAGEMENT_PORT]
    (base / "enabled_plugins").write_text("[rabbitmq_management].\n")
    with (base / "rabbitmq.conf").open("a") as configuration:
        configuration.write(f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {port}\n")
    (programs.secrets_dir / "amqp_admin").write_text(secrets.token_hex(24))
    password = read_secret(programs.secrets_dir, "amqp_admin")
    path = programs.secrets_dir / DEFINITIONS
    definitions = json.loads(path.read_text())
    definitions["users"].append(user_definition(ADMIN, password, "administrator"))
    path.write_text(json.dumps(definitions))
    return port
