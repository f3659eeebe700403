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
from rich.markup import escape
from rich.table import Table as Grid

from bench import prerequisites, report
from bench.machine import describe_load
from bench.run import FULL, QUICK, Results, Run
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
    resume: Annotated[
        bool, typer.Option(help="measure only what the last run did not reach")
    ] = False,
    directory: Annotated[
        Path, typer.Option("--results", help="directory of the results")
    ] = RESULTS,
) -> None:
    """Measure, print the tables, and write results.json and report.html.

    The status is 1 if a step failed; all other figures are reported even then.
    """
    logging.disable(logging.WARNING)
    times = QUICK if quick else FULL
    if growth:
        times = structs.replace(times, grown_events=GROWN_EVENTS)
    earlier = report.load(directory) if resume else None
    if earlier and earlier.results.times == times:
        saved = earlier
        out.print(f"resuming: {len(saved.results.done)} stages are done")
    else:
        saved = report.Saved(_about(), Results(times))
    saved.about["load at the start"] = describe_load()
    out.print(escape(saved.about["load at the start"]))
    try:
        prerequisites.ensure_programs()
        prerequisites.ensure_peer()
        with servers() as running:
            run = Run(running, saved.results, lambda: report.save(saved, directory), _say)
            asyncio.run(run.all())
    except Exception as error:  # noqa: BLE001  # the figures measured so far are still reported
        saved.results.errors["the run"] = f"{type(error).__name__}: {error}"
    finally:
        saved.about["load average at the end"] = " ".join(f"{n:.1f}" for n in os.getloadavg())
        paths = [report.save(saved, directory), report.write_page(saved, directory)]
        for table in tables(saved.results):
            out.print(_grid(table))
        for path in paths:
            out.print(f"→ {path}")
    if saved.results.errors:
        raise typer.Exit(1)


def _say(step: str) -> None:
    out.print(escape(f"… {datetime.now():%H:%M:%S} {step}"))


def _grid(table: Table) -> Grid:
    grid = Grid(title=table.title, title_justify="left")
    for number, column in enumerate(table.columns):
        grid.add_column(column, justify="right" if number else "left")
    for row in table.rows:
        grid.add_row(*map(escape, row))
    return grid


def _about() -> dict[str, str]:
    return {
        "began": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total >> 30} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    }


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
