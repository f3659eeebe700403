"""`make bench`: measures the ledger, its ceilings and the peer in one run, and reports."""

import asyncio
import logging
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import psutil
import typer
from msgspec import structs
from rich.console import Console
from rich.table import Table as Grid

from bench import installing, report
from bench.running import FULL, QUICK, Results, run
from bench.system import servers
from bench.tables import Table, tables

RESULTS: Final = Path(__file__).parent / "results"
GROWN_EVENTS: Final = 5_000_000
out = Console(highlight=False)


def main(
    quick: Annotated[
        bool, typer.Option(help="one short round: whether all of it works, not how fast it is")
    ] = False,
    growth: Annotated[bool, typer.Option(help="grow to 5,000,000 events, not 1,000,000")] = False,
    results: Annotated[Path, typer.Option(help="where the report goes")] = RESULTS,
) -> None:
    """Measure, print the tables, and write results.json and report.html."""
    logging.disable(logging.WARNING)
    times = QUICK if quick else FULL
    if growth:
        times = structs.replace(times, grown_events=GROWN_EVENTS)
    installing.ensure_programs()
    installing.ensure_peer()
    began = datetime.now(UTC)
    with servers() as running:
        found = asyncio.run(run(running, times, _say))
    _print(found)
    for path in report.write(found, _about(began), results):
        out.print(f"→ {path}")


def _say(what: str) -> None:
    out.print(f"… {datetime.now():%H:%M:%S} {what}")


def _print(results: Results) -> None:
    for table in tables(results):
        out.print(_grid(table))


def _grid(table: Table) -> Grid:
    grid = Grid(title=table.title, title_justify="left")
    for number, column in enumerate(table.columns):
        grid.add_column(column, justify="right" if number else "left")
    for row in table.rows:
        grid.add_row(*row)
    return grid


def _about(began: datetime) -> dict[str, str]:
    return {
        "began": f"{began:%Y-%m-%d %H:%M} UTC",
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total >> 30} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "load average at the end": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
