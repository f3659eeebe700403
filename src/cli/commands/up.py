"""`ledger up`: the whole stack on this machine, from nothing to a ready API, until it's stopped."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.text import Text

from api.auth.guard import Exposed, refuse_exposed
from cli.console import Console, read_settings
from cli.localstack import StackRefused
from cli.localstack.install import ensure_binaries
from cli.localstack.ports import accepts, http_ok, require_free
from cli.localstack.servers import ServerPrograms, prepare_servers
from cli.localstack.supervisor import LEDGER, Program, Supervisor, stop_processes
from cli.settings import Settings, unknown_variables
from ledger.runtime.printable import printable

SUMMARY = """
Order Ledger is ready: the servers and its processes took {seconds:.1f} s to start

  API    {url}/api/v1
  docs   {url}/docs
  keys   {keys}
  data   {home}
  logs   {home}/logs

Place an order:

  curl -s {url}/api/v1/orders -H 'Content-Type: application/json'{header} \
-d '{{"customer_id": "43e8ff2f-5d48-498f-a569-ca2cf9f7fae3", \
"product_id": "a1b2c3d4-e5f6-7890-1234-567890abcdef"}}'

Ctrl-C stops everything and keeps the data.
"""
KEYS = "required: `ledger keys create --name me --scope admin` prints one"
# A new home takes so much, and the broker takes nothing more below 512 MB (disk_free_limit).
NEW_HOME_MB = 320
MIN_FREE_MB = 560
NO_KEYS = "none needed: set LEDGER_AUTH=required to ask for them"


class Terminal:
    """Lines on the console; a terminal that has gone away is no reason to stop working."""

    def __init__(self) -> None:
        self._console = Console()
        self.spinner = self._console.status("starting …")

    @contextlib.contextmanager
    def step(self, label: str) -> Iterator[None]:
        """Name a step at the spinner while it's under way; then a line says how long it took."""
        started_at = time.monotonic()
        self.spinner.update(Text(f"{printable(label)} …"))
        yield
        self.line(label, "✓", "green", f"{time.monotonic() - started_at:.1f} s")

    def line(self, text: str, mark: str = "", style: str = "", note: str = "") -> None:
        """Print a line, behind a mark in a colour, and before a note in grey."""
        with contextlib.suppress(OSError):
            parts = [(mark, style), (printable(text), ""), (note, "dim")]
            self._console.print(Text(" ").join(Text(*part) for part in parts if part[0]))


def up() -> None:
    """Run `ledger up`."""
    run_stack(read_settings())


def run_stack(settings: Settings) -> None:
    """Start the stack and keep it running until Ctrl-C or SIGTERM; exits 1 where it's refused."""
    terminal = Terminal()
    try:
        with _lock(settings.home.resolve()):
            asyncio.run(_run_until_signal(settings, terminal))
    except (StackRefused, Exposed) as refused:
        terminal.line(str(refused), "✗", "red")
        raise SystemExit(1) from None


@contextlib.contextmanager
def _lock(home: Path) -> Iterator[None]:
    """Hold the home for this run; the kernel lets go of it however this process ends."""
    with _refusing_unusable(home):
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / "up.lock").open("a")
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackRefused(
                f"the stack in {home} is running already: stop that one with Ctrl-C, "
                "or set LEDGER_HOME to another directory"
            ) from None
        yield


@contextlib.contextmanager
def _refusing_unusable(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StackRefused(
            f"can't use {error.filename or home} ({error.strerror or error}): mend that, or set"
            " LEDGER_HOME to a directory that you can write to, on a disk with room"
        ) from error


async def _run_until_signal(settings: Settings, terminal: Terminal) -> None:
    """Run the stack in a task that the first signal cancels; later ones change nothing."""
    task = asyncio.create_task(_run(settings, terminal))

    def cancel() -> None:
        if not task.cancelling():
            task.cancel()
            terminal.line("stopping …")

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    terminal.line("stopped; the data is kept")


async def _run(settings: Settings, terminal: Terminal) -> None:
    started_at = time.monotonic()

    def warn(text: str) -> None:
        terminal.line(text, "!", "yellow")

    with terminal.spinner, contextlib.ExitStack() as stack:
        with _refusing_unusable(settings.home.resolve()):
            servers = await asyncio.to_thread(prepare, settings, terminal)
        stack.callback(servers.close)
        async with Supervisor(servers.home, warn, terminal.step) as supervisor:
            await _start(settings, servers, supervisor, terminal)
            terminal.spinner.stop()
            host, is_open = _api_host(settings), settings.auth != "required"
            summary = SUMMARY.format(
                seconds=time.monotonic() - started_at,
                url=f"http://{f'[{host}]' if ':' in host else host}:{settings.api_port}",
                home=servers.home,
                keys=NO_KEYS if is_open else KEYS,
                header="" if is_open else ' -H "Authorization: Bearer $KEY"',
            )
            for line in summary.split("\n"):
                terminal.line(line)
            await asyncio.Event().wait()


def prepare(settings: Settings, terminal: Terminal) -> ServerPrograms:
    """Refuse what can't work, end leftovers of a killed run, and write what the servers need."""
    home = settings.home.resolve()
    needed_mb = MIN_FREE_MB if (home / "database" / "data").exists() else MIN_FREE_MB + NEW_HOME_MB
    free_mb = shutil.disk_usage(home).free // 2**20
    if free_mb < needed_mb:
        raise StackRefused(
            f"the disk of {home} has {free_mb} MB free and {needed_mb} MB are needed: make room, or"
            " set LEDGER_HOME to a directory on another disk"
        )
    refuse_exposed(settings.api_host, settings.auth)
    if unknown := unknown_variables():
        terminal.line(f"ignored, as no setting: {', '.join(unknown)}", "!", "yellow")
    if stop_processes(home):
        terminal.line("leftovers of an earlier run stopped", "✓", "green")
    require_free("LEDGER_API_PORT", settings.api_port, settings.api_host)
    binaries = ensure_binaries(lambda step: terminal.line(step, "…", "dim"))
    secrets_dir = (settings.secrets_dir or home / "secrets").resolve()
    return prepare_servers(home, binaries, secrets_dir, settings.amqp_vhost, settings.db_name)


async def _start(
    settings: Settings, servers: ServerPrograms, supervisor: Supervisor, terminal: Terminal
) -> None:
    environment = {**os.environ, **servers.environment(), "PYTHONUNBUFFERED": "1"}
    host, port = _api_host(settings), settings.api_port

    def ledger(command: str, answers: Callable[[], bool] = lambda: True) -> Program:
        return Program(command, (sys.executable, LEDGER, command), environment, answers)

    await supervisor.start(servers.epmd)
    await supervisor.start(servers.broker, servers.database)
    with terminal.step("schema, accounts and queues are up to date"):
        await supervisor.run_to_end(ledger("migrate"))
    await supervisor.start(
        ledger("writer", lambda: accepts(servers.ports["LEDGER_WRITER_METRICS_PORT"])),
        ledger("projector", lambda: accepts(servers.ports["LEDGER_PROJECTOR_METRICS_PORT"])),
        ledger("api", lambda: http_ok(host, port, "/health/ready")),
    )
    loaded = servers.home / "demo.loaded"
    if not loaded.exists():
        with terminal.step("demo catalogue loaded"):
            await supervisor.run_to_end(ledger("demo"))
        loaded.touch()


def _api_host(settings: Settings) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.api_host, settings.api_host)  # noqa: S104
