"""`ledger rebuild`: builds views again from the ledger and swaps them in, without downtime."""

import time
from collections.abc import Sequence
from typing import Annotated

import typer
from msgspec import Struct

from cli import connections, console
from projections.rebuild import Rebuilt, open_rebuild
from projections.table_swap import SESSION_S
from projections.views.registry import PROJECTIONS, UnknownView, views_named


class RebuildReport(Struct, frozen=True):
    """What was done with each view, or which old tables were dropped."""

    views: Sequence[Rebuilt]
    dropped: Sequence[str]
    seconds: float


def rebuild(
    views: Annotated[list[str] | None, typer.Argument(help="one or more views")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="every view, in one reading")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="swap the old tables back in")] = False,
    drop_old: Annotated[bool, typer.Option("--drop-old", help="drop the old tables")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="swap a view that differs, too")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="begin with the first event")] = False,
    as_json: console.AsJson = False,
) -> None:
    """Run `ledger rebuild`."""
    try:
        chosen = PROJECTIONS if every else views_named(views or ())
    except UnknownView as error:
        console.usage_error(str(error))
    if every == bool(views):
        choices = ", ".join(view.name for view in PROJECTIONS)
        console.usage_error(f"say what to rebuild: one or more of {choices}, or --all")
    if undo + drop_old + (repair or restart) > 1:
        console.usage_error("--undo, --drop-old, and --repair or --restart, exclude each other")
    settings = console.read_settings()

    async def work() -> RebuildReport:
        started = time.perf_counter()
        rebuilt: Sequence[Rebuilt] = ()
        dropped: Sequence[str] = ()
        async with (
            connections.engine(settings, "migrate", read_timeout_s=SESSION_S) as engine,
            open_rebuild(engine, PROJECTIONS, chosen, console.progress) as process,
        ):
            if drop_old:
                dropped = sorted(await process.drop_old())
            elif undo:
                rebuilt = await process.undo()
            else:
                rebuilt = await process.rebuild(restart=restart, repair=repair)
        return RebuildReport(rebuilt, dropped, round(time.perf_counter() - started, 3))

    report = console.run(work())
    if as_json:
        console.print_json(report)
    else:
        for name in report.dropped:
            console.out.print(f"{name} is dropped")
        for view in report.views:
            comparison = "other than before" if view.difference else "the same as before"
            if view.not_compared:
                comparison = f"not compared ({view.not_compared})"
            if not view.swapped:
                console.out.print(f"{view.view}: not swapped, {comparison}")
                continue
            change = "the old table is back" if undo else f"rebuilt, {comparison}"
            console.out.print(
                f"{view.view}: {change}, at position {view.position}; the table before is kept as"
                f" {view.view}_old"
            )
            if view.difference:
                console.out.print(f"  {view.difference}")
    for view in report.views:
        if view.difference and not view.swapped:
            console.fail(
                f"{view.difference}; nothing was swapped, {view.view}_shadow holds what the ledger"
                " says: with --repair it is swapped in",
            )
