"""`make bench-compare`: two commits measured in alternation, and the ratios of their figures.

Each commit is checked out into a temporary worktree with an environment of its own, and driven from
outside alone: by its `ledger` command and over HTTP. So any two commits can be compared whose
commands and routes are these, however their modules lie. Both run at the same time, one of them
idle, and each round measures one right after the other: what slows the machine slows both.
"""

import asyncio
import ctypes
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import psutil
import typer
from msgspec import Struct, field
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from bench.loads import RequestStats, closed
from bench.machine import describe_load
from bench.prerequisites import ROOT, ensure_programs
from tests.harness import free_port

RESULTS: Final = Path(__file__).parent / "results/compare.json"
PARTIES: Final = 20
BATCH_ORDERS: Final = 100
SINGLES_S: Final = 6
BATCHES_S: Final = 2
READS_S: Final = 3
SETUP_TIMEOUT_S: Final = 900
START_TIMEOUT_S: Final = 180
SHOWN_TIMEOUT_S: Final = 180
COMMAND_TIMEOUT_S: Final = 300
STOP_TIMEOUT_S: Final = 60
# Every process of a local stack has its home in this variable of its environment.
STACK_VARIABLE: Final = "LEDGER_STACK"
PR_SET_PDEATHSIG: Final = 1

# The rows of the report, and whether more is better.
ROWS: Final = {
    "single orders/s, shown": True,
    "CPU ms per single order": False,
    "orders/s in batches of 100, shown": True,
    "CPU ms per order in batches": False,
    "product reads/s": True,
    "verify, events/s": True,
    "rebuild of all views, events/s": True,
    "export of all as CSV, events/s": True,
}

out = Console(highlight=False)
Figures = dict[str, float]


class MeasurementFailed(Exception):
    """A step could not be measured; the message says why."""


class Round(Struct):
    """The figures of one round on one side, and the errors of the steps that failed."""

    side: str
    number: int
    figures: Figures = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


class Side:
    """One commit, checked out and running: `name` is old or new."""

    def __init__(self, name: str, commit: str, directory: Path) -> None:
        self.name = name
        self.commit = commit
        self.tree = directory / name
        self.home = directory / f"{name}-home"
        self.log = directory / f"{name}.log"
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.http = httpx.Client(base_url=f"{self.url}/api/v1", timeout=60)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("LEDGER_")},
            "LEDGER_HOME": str(self.home),
            "LEDGER_API_PORT": str(port),
            # One client stands for all: its share must not be limited.
            "LEDGER_RATE_PER_S": "0",
            "LEDGER_CONCURRENCY": "0",
        }
        self.customers: list[str] = []
        self.products: list[str] = []

    def command(self, *arguments: str) -> float:
        """Seconds that a `ledger` command takes, its start included."""
        started_at = time.monotonic()
        done = subprocess.run(
            [self.tree / ".venv/bin/ledger", *arguments],
            cwd=self.tree,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            output = (done.stdout + done.stderr).strip()[-300:]
            raise MeasurementFailed(f"ledger {arguments[0]} ended with {done.returncode}: {output}")
        return time.monotonic() - started_at

    def processes(self) -> list[psutil.Process]:
        """The processes of this side's stack: servers, writer, projector and API."""
        processes = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(STACK_VARIABLE) == str(self.home):
                    processes.append(process)
            except psutil.Error:
                continue  # it ended, or is somebody else's
        return processes

    def cpu_s(self) -> float:
        """Seconds of CPU that those processes have used since they started."""
        total = 0.0
        for process in self.processes():
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            total += times.user + times.system
        return total


@contextmanager
def checked_out(side: Side) -> Iterator[None]:
    """The side's commit in a worktree with the environment that its own bootstrap makes."""
    _run("git", "worktree", "add", "--detach", str(side.tree), side.commit, cwd=ROOT)
    try:
        _run("sh", "deploy/bootstrap.sh", cwd=side.tree)
        yield
    finally:
        _run("git", "worktree", "remove", "--force", str(side.tree), cwd=ROOT)


def _run(*command: str, cwd: Path) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SETUP_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise MeasurementFailed(f"`{' '.join(command)}`: {(done.stdout + done.stderr)[-500:]}")
    return done.stdout.strip()


@contextmanager
def running(side: Side) -> Iterator[None]:
    """The side's `ledger up`, with customers and products; nothing of it is left afterwards."""
    with side.log.open("wb") as log:
        stack = subprocess.Popen(
            [side.tree / ".venv/bin/ledger", "up"],
            cwd=side.tree,
            env=side.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509  # this process has no other threads yet
        )
    try:
        _wait_until_serving(side, stack)
        for number in range(PARTIES):
            customer = _create(side, "customer", username=f"bench {number}")
            side.http.post(f"/customers/{customer}/deposits", json={"amount": 10**9})
            side.customers.append(customer)
            product = _create(side, "product", name=f"Bench {number}", base_price=1, stock=10**8)
            side.products.append(product)
        yield
    finally:
        stack.terminate()
        try:
            stack.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            stack.kill()
            stack.wait()
        for process in side.processes():
            process.kill()
        side.http.close()


def _end_with_parent() -> None:
    # Even a SIGKILL of the benchmark must not leave servers behind: the kernel tells `ledger up`.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_until_serving(side: Side, stack: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            # Ready is who can read the views and publish: the broker may come after the database.
            if side.http.get(side.http.base_url.join("/health/ready")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if stack.poll() is not None or time.monotonic() > deadline:
            raise MeasurementFailed(f"{side.commit} does not serve: {side.log.read_text()[-500:]}")
        time.sleep(0.2)


def _create(side: Side, kind: str, **body: object) -> str:
    response = side.http.post(f"/{kind}s", json=body, headers={"Prefer": "wait=30"})
    if response.is_error:
        raise MeasurementFailed(f"{side.commit} answers {response.status_code}: {response.text}")
    return str(response.json()[f"{kind}_id"])


def measure_orders(side: Side, seconds: int, size: int) -> tuple[float, float]:
    """Orders a second until all are shown, and the stack's CPU an order in ms."""
    cpu_before_s, started_at = side.cpu_s(), time.monotonic()
    ids = ",".join(side.customers), ",".join(side.products)
    stats = asyncio.run(closed(side.url, "orders.lua", seconds, str(size), *ids))
    _refuse_errors(stats)
    orders = stats.requests * size
    # The inbox is a queue: once the last order is shown, all before it are.
    wait_for_last_order(side)
    duration_s = time.monotonic() - started_at
    return orders / duration_s, 1e3 * (side.cpu_s() - cpu_before_s) / orders


def wait_for_last_order(side: Side) -> int:
    """Place one more order and wait until the views show it; their position then."""
    body = {"customer_id": side.customers[0], "product_id": side.products[0]}
    response = side.http.post("/orders", json=body, headers={"Prefer": "wait=30"})
    response.raise_for_status()
    order_id = response.json()["order_id"]
    deadline = time.monotonic() + SHOWN_TIMEOUT_S
    while time.monotonic() < deadline:
        shown = side.http.get(f"/orders/{order_id}")
        if shown.status_code == 200 and shown.json()["status"] != "PENDING":
            return int(shown.headers["Ledger-Position"])
        time.sleep(0.05)
    raise MeasurementFailed(f"the last order is not decided after {SHOWN_TIMEOUT_S} s")


def _refuse_errors(stats: RequestStats) -> None:
    if stats.refused or stats.broken:
        raise MeasurementFailed(f"{stats.refused} requests were refused, {stats.broken} broke off")


def measure_singles(side: Side) -> Figures:
    """Single orders as fast as they are answered."""
    per_s, cpu_ms = measure_orders(side, SINGLES_S, 1)
    return {"single orders/s, shown": per_s, "CPU ms per single order": cpu_ms}


def measure_batches(side: Side) -> Figures:
    """Batches of 100 orders as fast as they are answered."""
    per_s, cpu_ms = measure_orders(side, BATCHES_S, BATCH_ORDERS)
    return {"orders/s in batches of 100, shown": per_s, "CPU ms per order in batches": cpu_ms}


def measure_reads(side: Side) -> Figures:
    """Reads of one product as fast as they are answered."""
    path = f"/api/v1/products/{side.products[0]}"
    stats = asyncio.run(closed(side.url, "get.lua", READS_S, path))
    _refuse_errors(stats)
    return {"product reads/s": stats.per_s}


def measure_verify(side: Side) -> Figures:
    """`ledger verify` of all that the rounds recorded."""
    events = wait_for_last_order(side)
    return {"verify, events/s": events / side.command("verify")}


def measure_rebuild(side: Side) -> Figures:
    """`ledger rebuild --all`."""
    events = wait_for_last_order(side)
    return {"rebuild of all views, events/s": events / side.command("rebuild", "--all")}


def measure_export(side: Side) -> Figures:
    """`ledger export --all` as CSV."""
    events = wait_for_last_order(side)
    with tempfile.TemporaryDirectory(dir=side.home) as directory:
        arguments = ("--all", "--format", "csv", "--out", f"{directory}/export")
        return {"export of all as CSV, events/s": events / side.command("export", *arguments)}


STEPS: Final[dict[str, Callable[[Side], Figures]]] = {
    "single orders": measure_singles,
    "batches": measure_batches,
    "product reads": measure_reads,
    "verify": measure_verify,
    "rebuild": measure_rebuild,
    "export": measure_export,
}


def measure_round(side: Side, number: int, save: Callable[[Round], None]) -> None:
    """All steps on one side; a step that fails costs its own figures only."""
    figures = Round(side.name, number)
    for name, step in STEPS.items():
        try:
            figures.figures |= step(side)
        except Exception as error:  # noqa: BLE001  # whatever it is, it becomes a row
            figures.errors[name] = f"{type(error).__name__}: {error}"
        save(figures)


def ratios(rounds: list[Round], row: str) -> list[float]:
    """NEW/OLD of a row in each round that has it on both sides."""
    values = {(one.side, one.number): one.figures[row] for one in rounds if row in one.figures}
    numbers = sorted({one.number for one in rounds})
    return [
        values["new", n] / values["old", n]
        for n in numbers
        if ("new", n) in values and ("old", n) in values
    ]


def report(rounds: list[Round], commits: dict[str, str]) -> Grid:
    """The table of ratios, with the medians of both sides."""
    grid = Grid(title=f"NEW {commits['new']} / OLD {commits['old']}", title_justify="left")
    for number, column in enumerate(
        ("row", "OLD", "NEW", "ratio min", "median", "max", "better is")
    ):
        grid.add_column(column, justify="right" if number else "left")
    for row, more_is_better in ROWS.items():
        better = "more" if more_is_better else "less"
        row_ratios = ratios(rounds, row)
        if not row_ratios:
            grid.add_row(row, "", "", "", "not measured", "", better)
            continue
        old, new = (
            statistics.median(
                one.figures[row] for one in rounds if one.side == side and row in one.figures
            )
            for side in ("old", "new")
        )
        digits = 0 if old >= 100 else 3
        spread = min(row_ratios), statistics.median(row_ratios), max(row_ratios)
        grid.add_row(
            row, *(f"{v:,.{digits}f}" for v in (old, new)), *(f"{r:.2f}" for r in spread), better
        )
    return grid


def main(
    old: str,
    new: str,
    rounds: Annotated[int, typer.Option(min=1, help="rounds at most")] = 5,
    minutes: Annotated[float, typer.Option(help="begin no round that would end later")] = 15,
) -> None:
    """Measure two commits in alternation and print the ratios of their figures."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    ensure_programs()
    commits = {
        name: _run("git", "rev-parse", "--short", f"{commit}^{{commit}}", cwd=ROOT)
        for name, commit in (("old", old), ("new", new))
    }
    out.print(escape(describe_load()))
    measured: list[Round] = []

    def save(figures: Round) -> None:
        if figures not in measured:
            measured.append(figures)
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"commits": commits, "machine": describe_load()}
        content["rounds"] = [
            {name: getattr(one, name) for name in Round.__struct_fields__} for one in measured
        ]
        RESULTS.write_text(json.dumps(content, indent=2))

    with ExitStack() as resources:
        directory = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="compare-")))
        sides = [Side(name, commit, directory) for name, commit in commits.items()]
        for side in sides:
            _say(f"{side.name} ({side.commit}): worktree and environment")
            resources.enter_context(checked_out(side))
        for side in sides:
            _say(f"{side.name} ({side.commit}): start")
            resources.enter_context(running(side))
        deadline, last_s = time.monotonic() + 60 * minutes, 0.0
        for number in range(1, rounds + 1):
            # A round takes longer than the one before it, as the ledgers grow.
            if time.monotonic() + 1.3 * last_s > deadline:
                break
            started_at = time.monotonic()
            # Turn about, so that neither always comes second on a machine that it warmed or tired.
            for side in sides if number % 2 else reversed(sides):
                _say(f"round {number} of {rounds}: {side.name} ({side.commit})")
                measure_round(side, number, save)
            last_s = time.monotonic() - started_at
        _say("stopping both")
    out.print(report(measured, commits))
    errors = [(one, *error) for one in measured for error in one.errors.items()]
    for one, step, error in errors:
        out.print(escape(f"not measured: {step}, {one.side}, round {one.number}: {error}"))
    out.print(f"→ {RESULTS}")
    if errors or not measured:
        raise typer.Exit(1)


def _say(text: str) -> None:
    out.print(escape(f"… {time.strftime('%H:%M:%S')} {text}"))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
