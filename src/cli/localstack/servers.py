"""The two private servers: everything they need below one home, and a pair of them for tests."""

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from cli.localstack import StackRefused, database, probes, rabbitmq
from cli.localstack.install import Binaries, ensure_binaries
from cli.localstack.ports import choose_ports
from cli.localstack.programs import Program, last_line, stop_processes
from cli.localstack.secrets import create_secrets, write_bootstrap, write_definitions
from cli.localstack.watchdog import Watchdog

PORTS = ("LEDGER_AMQP_PORT", "LEDGER_DB_PORT", "LEDGER_EPMD_PORT", "LEDGER_AMQP_DIST_PORT")
MANAGEMENT_PORT = "LEDGER_MANAGEMENT_PORT"
METRICS_PORTS = ("LEDGER_WRITER_METRICS_PORT", "LEDGER_PROJECTOR_METRICS_PORT")
EPMD_TIMEOUT_S = 10.0
KILL_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the servers are to live and what they're to hold.

    With management tests may administrate; with metrics there are ports for those of the processes.
    """

    home: Path
    secrets_dir: Path
    vhost: str = "ledger"
    schema: str = "ledger"
    with_management: bool = False
    with_metrics: bool = False


@dataclass(frozen=True, slots=True)
class Server:
    """A program, how to see that it serves, and for how long to wait for that."""

    program: Program
    answers: probes.Probe
    start_timeout_s: float


@dataclass(frozen=True, slots=True)
class Layout:
    """What `prepare_servers` made: the ports and the servers.

    epmd comes first and must answer before the others start, or the broker makes its own.
    """

    plan: Plan
    ports: dict[str, int]
    servers: tuple[Server, ...]

    def environment(self) -> dict[str, str]:
        """The settings of a process that uses these servers."""
        return {
            "LEDGER_HOME": str(self.plan.home),
            "LEDGER_SECRETS_DIR": str(self.plan.secrets_dir),
            "LEDGER_AMQP_HOST": "127.0.0.1",
            "LEDGER_AMQP_PORT": str(self.ports["LEDGER_AMQP_PORT"]),
            "LEDGER_DB_HOST": "127.0.0.1",
            "LEDGER_DB_PORT": str(self.ports["LEDGER_DB_PORT"]),
            **{name: str(self.ports[name]) for name in METRICS_PORTS if name in self.ports},
        }


def prepare_servers(plan: Plan, binaries: Binaries) -> Layout:
    """Write passwords, ports, configuration and, the first time, the data directory."""
    create_secrets(plan.secrets_dir)
    management = (MANAGEMENT_PORT,) if plan.with_management else ()
    metrics = METRICS_PORTS if plan.with_metrics else ()
    ports = choose_ports(plan.home, (*PORTS, *management, *metrics))
    write_definitions(plan.secrets_dir, plan.vhost, with_admin=plan.with_management)
    bootstrap = write_bootstrap(plan.secrets_dir, plan.schema)
    epmd, broker = rabbitmq.prepare_rabbitmq(plan.home, plan.secrets_dir, ports, binaries)
    db = database.prepare_database(plan.home, bootstrap, ports["LEDGER_DB_PORT"], binaries)
    servers = (
        Server(epmd, lambda: probes.accepts(ports["LEDGER_EPMD_PORT"]), EPMD_TIMEOUT_S),
        Server(db, lambda: probes.sql_answers(ports["LEDGER_DB_PORT"]), database.START_TIMEOUT_S),
        Server(broker, _broker_probe(ports), rabbitmq.START_TIMEOUT_S),
    )
    return Layout(plan, ports, servers)


def _broker_probe(ports: dict[str, int]) -> probes.Probe:
    management = ports.get(MANAGEMENT_PORT)
    return lambda: (
        probes.amqp_answers(ports["LEDGER_AMQP_PORT"])
        and (management is None or probes.accepts(management))
    )


@dataclass(slots=True)
class Servers:
    """A running pair without a supervisor, to be thrown away; a context manager that stops it."""

    layout: Layout
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    watchdog: Watchdog | None = None

    @property
    def home(self) -> Path:
        return self.layout.plan.home

    @property
    def amqp_port(self) -> int:
        return self.layout.ports["LEDGER_AMQP_PORT"]

    @property
    def db_port(self) -> int:
        return self.layout.ports["LEDGER_DB_PORT"]

    @property
    def management_port(self) -> int:
        return self.layout.ports[MANAGEMENT_PORT]

    @property
    def secrets_dir(self) -> Path:
        return self.layout.plan.secrets_dir

    @property
    def database(self) -> str:
        """The name of the database's program, as `signal` and `restart` take it."""
        return self.layout.servers[1].program.name

    @property
    def broker(self) -> str:
        """The name of the broker's program."""
        return self.layout.servers[2].program.name

    def environment(self) -> dict[str, str]:
        """The settings of a process that uses these servers."""
        return self.layout.environment()

    def start(self) -> None:
        """Start them and wait until each answers; on failure nothing is left running."""
        try:
            epmd, *others = self.layout.servers
            self._wait(epmd, self._spawn(epmd.program))
            for server, process in [(server, self._spawn(server.program)) for server in others]:
                self._wait(server, process)
            self._watch()
        except BaseException:
            self.stop()
            raise

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a server and to all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.processes[name].pid, number)

    def restart(self, name: str) -> None:
        """Start a server again on its data and its port; if it still runs it's killed first."""
        self.signal(name, signal.SIGKILL)
        self.processes[name].wait(KILL_TIMEOUT_S)
        server = next(each for each in self.layout.servers if each.program.name == name)
        self._wait(server, self._spawn(server.program))
        self._watch()

    def stop(self) -> None:
        """End broker and database, and then whatever is left of them.

        Orderly, but for a pair with management: no data of it is kept, and its broker would wait
        five seconds for HTTP connections.
        """
        for process in reversed(self.processes.values()):
            process.kill() if self.layout.plan.with_management else process.terminate()
        for server in self.layout.servers:
            if running := self.processes.get(server.program.name):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running.wait(server.program.stop_timeout_s)
        stop_processes(self.home)
        for process in self.processes.values():
            process.wait(1)
        self.processes.clear()
        self._dismiss()

    def _watch(self) -> None:
        """Have those that run now end with this process."""
        self._dismiss()
        self.watchdog = Watchdog([process.pid for process in self.processes.values()])

    def _dismiss(self) -> None:
        if self.watchdog:
            self.watchdog.dismiss()
            self.watchdog = None

    def _spawn(self, program: Program) -> subprocess.Popen[bytes]:
        home = self.home
        (home / "logs").mkdir(exist_ok=True)
        with (home / "logs" / f"{program.name}.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 (our own script)
                ["/bin/sh", program.write_script(home)],
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes[program.name] = process
        return process

    def _wait(self, server: Server, process: subprocess.Popen[bytes]) -> None:
        name = server.program.name
        log = self.home / "logs" / f"{name}.log"

        def answers_or_ended() -> bool:
            return process.poll() is not None or server.answers()

        probes.wait_until(
            answers_or_ended,
            server.start_timeout_s,
            f"{name} did not answer within {server.start_timeout_s:.0f} s: see {log}",
        )
        if process.poll() is not None:
            raise StackRefused(
                f"{name} ended with status {process.returncode} ({last_line(log)}): see {log}"
            )

    def __enter__(self) -> "Servers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def start_servers(home: Path, with_management: bool = False) -> Servers:
    """Start a private pair below `home`, to be stopped by the caller; they end with this process.

    With management, the HTTP API listens on `management_port` and the account `ledger_admin`
    (password in the file `amqp_admin`) may make virtual hosts. Raises StackRefused.
    """
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    binaries = ensure_binaries(lambda _: None)
    plan = Plan(home, home / "secrets", with_management=with_management)
    servers = Servers(prepare_servers(plan, binaries))
    servers.start()
    return servers
