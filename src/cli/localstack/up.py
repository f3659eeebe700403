"""`ledger up`: the whole stack on this machine, from nothing to a ready API, until it's stopped."""

import asyncio
import contextlib
import fcntl
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from api.auth.guard import Exposed, refuse_exposed
from cli.localstack import StackRefused, probes
from cli.localstack.install import ensure_binaries
from cli.localstack.ports import require_free
from cli.localstack.processes import processes, run_command
from cli.localstack.programs import stop_processes
from cli.localstack.servers import Layout, Plan, Server, prepare_servers
from cli.localstack.supervisor import Supervision
from cli.localstack.terminal import Terminal
from cli.settings import Settings

READY_TIMEOUT_S = 60.0
SUMMARY = """
Order Ledger is ready after {seconds:.1f} s

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

KEYS = {
    True: (
        "required: `ledger keys create --name me --scope admin` prints one",
        ' -H "Authorization: Bearer $KEY"',
    ),
    False: ("none needed: set LEDGER_AUTH=required to ask for them", ""),
}


def up(settings: Settings) -> None:
    """Start the stack and keep it running until Ctrl-C or SIGTERM; exits 1 where it's refused."""
    terminal = Terminal(Console(highlight=False, soft_wrap=True))
    try:
        with _lock(settings.home.resolve()):
            asyncio.run(_until_signalled(settings, terminal))
    except StackRefused as refused:
        terminal.refuse(str(refused))
        raise SystemExit(1) from None


@contextlib.contextmanager
def _lock(home: Path) -> Iterator[None]:
    """Hold the home for this run; the kernel lets go of it however this process ends."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "up.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackRefused(
                f"the stack in {home} is running already: stop that one with Ctrl-C, "
                "or set LEDGER_HOME to another directory"
            ) from None
        yield


async def _until_signalled(settings: Settings, terminal: Terminal) -> None:
    """Run the stack in a task that a signal cancels; a second signal can't break the stopping."""
    task = asyncio.create_task(_run(settings, terminal))

    def cancel() -> None:
        if not task.cancelling():
            task.cancel()
            terminal.stopping()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    terminal.say("stopped; the data is kept")


async def _run(settings: Settings, terminal: Terminal) -> None:
    started_at = time.monotonic()
    with terminal.progress():
        layout = await asyncio.to_thread(_prepare, settings, terminal)
    epmd, *servers = (server.program for server in layout.servers)
    groups = {"names": (epmd,), "servers": tuple(servers), "ledger": processes(layout)}
    async with Supervision(layout.plan.home, groups, terminal.warn) as supervision:
        with terminal.progress():
            await _start(settings, layout, supervision, terminal)
        terminal.say(_summary(settings, layout.plan.home, time.monotonic() - started_at))
        await supervision.wait()
    raise StackRefused("the supervisor was ended from outside, and so was everything: start again")


def _require_plain(home: Path) -> None:
    # RabbitMQ hands its directory to a shell, unescaped, and its configuration knows no quotes.
    if not str(home).isprintable() or set(str(home)) & set("'\"\\`$#"):
        raise StackRefused(
            f"RabbitMQ can't work in a directory with quotes, backslashes, $ or # in its name "
            f"({home}): set LEDGER_HOME to another one"
        )


def _require_private(settings: Settings) -> None:
    try:
        refuse_exposed(settings.api_host, settings.auth)
    except Exposed as exposed:
        raise StackRefused(str(exposed)) from None


def _prepare(settings: Settings, terminal: Terminal) -> Layout:
    home = settings.home.resolve()
    _require_plain(home)
    _require_private(settings)
    if stop_processes(home):
        terminal.done("leftovers of an earlier run stopped")
    require_free("LEDGER_API_PORT", settings.api_port, settings.api_host)
    binaries = ensure_binaries(terminal.doing)
    secrets_dir = (settings.secrets_dir or home / "secrets").resolve()
    plan = Plan(home, secrets_dir, settings.amqp_vhost, settings.db_name, with_metrics=True)
    return prepare_servers(plan, binaries)


async def _start(
    settings: Settings, layout: Layout, supervision: Supervision, terminal: Terminal
) -> None:
    async def serve(server: Server) -> None:
        name = server.program.name
        with terminal.step(f"{name} serves"):
            await supervision.start(name, server.answers, server.start_timeout_s)

    async def run(name: str) -> None:
        await supervision.start(name, lambda: supervision.is_running(name), READY_TIMEOUT_S)

    epmd, *servers = layout.servers
    await serve(epmd)
    await asyncio.gather(*(serve(server) for server in servers))
    with terminal.step("schema, accounts and queues are up to date"):
        await run_command("migrate", layout)
    with terminal.step("writer, projector and api run"):
        await asyncio.gather(
            run("writer"),
            run("projector"),
            supervision.start("api", lambda: _api_ready(settings), READY_TIMEOUT_S),
        )
    await _load_demo(layout, terminal)


async def _load_demo(layout: Layout, terminal: Terminal) -> None:
    loaded = layout.plan.home / "demo.loaded"
    if loaded.exists():
        return
    with terminal.step("demo catalogue loaded"):
        await run_command("demo", layout)
    loaded.touch()


def _api_host(settings: Settings) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.api_host, settings.api_host)  # noqa: S104


def _api_ready(settings: Settings) -> bool:
    return probes.http_ok(_api_host(settings), settings.api_port, "/health/ready")


def _summary(settings: Settings, home: Path, seconds: float) -> str:
    host = _api_host(settings)
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.api_port}"
    keys, header = KEYS[settings.auth == "required"]
    return SUMMARY.format(seconds=seconds, url=url, home=home, keys=keys, header=header)
