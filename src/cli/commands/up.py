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
from dataclasses import replace
from pathlib import Path

from rich.text import Text

from api.auth.guard import Exposed, refuse_exposed
from cli import connections
from cli.console import Console, read_settings
from cli.localstack import StackRefused
from cli.localstack.install import ensure_binaries
from cli.localstack.ports import accepts, http_ok, require_free
from cli.localstack.servers import ServerPrograms, prepare_servers
from cli.localstack.supervisor import LEDGER, Program, Supervisor, stop_processes
from cli.settings import Settings, unknown_variables
from ledger.runtime.printable import printable
from projections.rebuild import Outdated, outdated_views
from projections.views.registry import PROJECTIONS

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
# New indexes and rebuilt views take minutes for each million events.
WHOLE_LEDGER_TIMEOUT_S = 24 * 3600.0
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
    # Whatever is made in the home is for this user alone.
    os.umask(0o077)
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
    except (FileExistsError, NotADirectoryError) as error:
        raise StackRefused(
            f"can't use {error.filename or home}: it, or what should hold it, is a file; set"
            " LEDGER_HOME to a directory"
        ) from error
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
            terminal.spinner.update("stopping …")
            terminal.spinner.start()

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
        preparing = asyncio.create_task(asyncio.to_thread(prepare, settings, terminal))
        try:
            with _refusing_unusable(settings.home.resolve()):
                servers = await asyncio.shield(preparing)
        except asyncio.CancelledError:
            # A thread can't be cancelled, and half an installation by apt would be worse. In a
            # terminal what it waits for got the Ctrl-C, too.
            if not preparing.done():
                terminal.line("waiting until the step under way has ended", "…", "dim")
                await asyncio.wait([preparing])
            with contextlib.suppress(Exception):  # nobody asks any more whether it succeeded
                preparing.result()
            raise
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

    def ledger(
        command: str, *arguments: str, answers: Callable[[], bool] = lambda: True
    ) -> Program:
        return Program(command, (sys.executable, LEDGER, command, *arguments), environment, answers)

    async def run_through_ledger(program: Program) -> None:
        await supervisor.run_to_end(replace(program, start_timeout_s=WHOLE_LEDGER_TIMEOUT_S))

    def metrics(name: str) -> Callable[[], bool]:
        return lambda: accepts(servers.ports[name])

    await supervisor.start(servers.epmd)
    await supervisor.start(servers.broker, servers.database)
    with terminal.step("schema, accounts and queues are up to date"):
        await run_through_ledger(ledger("migrate"))
    if outdated := await _outdated_views(settings, servers):
        for view in outdated:
            if view.is_newer:
                raise StackRefused(f"{view}, or set LEDGER_HOME to another directory")
            terminal.line(f"{view.reason}: it is rebuilt from the ledger", "…", "dim")
        names = [view.name for view in outdated]
        kept = " and ".join(f"{name}_old" for name in names)
        with terminal.step(f"{' and '.join(names)} rebuilt, the table before is kept as {kept}"):
            await run_through_ledger(ledger("rebuild", *names))
    await supervisor.start(
        ledger("writer", answers=metrics("LEDGER_WRITER_METRICS_PORT")),
        ledger("projector", answers=metrics("LEDGER_PROJECTOR_METRICS_PORT")),
    )
    # Before the API starts, so that whoever finds it ready finds the catalogue.
    loaded = servers.home / "demo.loaded"
    if not loaded.exists():
        with terminal.step("demo catalogue loaded"):
            await supervisor.run_to_end(ledger("demo"))
        loaded.touch()
    await supervisor.start(ledger("api", answers=lambda: http_ok(host, port, "/health/ready")))


async def _outdated_views(settings: Settings, servers: ServerPrograms) -> list[Outdated]:
    reached = settings.model_copy(
        update={
            "home": servers.home,
            "secrets_dir": servers.secrets_dir,
            "db_host": "127.0.0.1",
            "db_port": servers.ports["LEDGER_DB_PORT"],
        }
    )
    async with connections.connection(reached, "migrate") as connection:
        return await outdated_views(connection, PROJECTIONS)


def _api_host(settings: Settings) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.api_host, settings.api_host)  # noqa: S104
