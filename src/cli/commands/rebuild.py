"""`ledger rebuild`: makes views anew from the ledger and swaps them in, while all goes on."""

from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from cli.running import end, out, run, settings

if TYPE_CHECKING:
    from cli.rebuilding import Done
    from projections.rebuild import Rebuilt

commands = typer.Typer()


@commands.command()
def rebuild(
    views: Annotated[list[str] | None, typer.Argument(help="one or more views")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="every view, in one reading")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="swap the old tables back in")] = False,
    drop_old: Annotated[bool, typer.Option("--drop-old", help="drop the old tables")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="swap a view that differs, too")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="begin with the first event")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Make views anew, compare them with the live ones and swap them in, while all goes on."""
    from cli.rebuilding import Wish, work
    from projections.views.registry import PROJECTIONS

    known = [view.name for view in PROJECTIONS]
    names = known if every else views or []
    if unknown := sorted(set(names) - set(known)):
        raise end(2, f"there is no view {unknown[0]}: choose of {', '.join(known)}")
    if every == bool(views):
        raise end(2, f"say what to rebuild: one or more of {', '.join(known)}, or --all")
    if undo + drop_old + (repair or restart) > 1:
        raise end(2, "--undo, --drop-old, and --repair or --restart, exclude each other")
    done = run(work(settings(), Wish(names, undo, drop_old, repair, restart)))
    if as_json:
        typer.echo(msgspec.json.encode(done))
    else:
        _show(done, undo=undo)
    if differing := [view for view in done.views if not view.swapped and view.difference]:
        raise end(1, _refusal(differing[0]))


def _show(done: "Done", *, undo: bool) -> None:
    for name in done.dropped:
        out.print(f"{name} is dropped")
    for view in done.views:
        if not view.swapped:
            out.print(f"{view.view}: not swapped, {_comparison(view)}")
            continue
        what = "the old table is back" if undo else f"rebuilt, {_comparison(view)}"
        out.print(
            f"{view.view}: {what}, at position {view.position}; the table before is kept as"
            f" {view.view}_old"
        )
        if view.difference:
            out.print(f"  {view.difference}", markup=False)


def _comparison(view: "Rebuilt") -> str:
    if view.not_compared:
        return f"not compared ({view.not_compared})"
    return "other than before" if view.difference else "the same as before"


def _refusal(view: "Rebuilt") -> str:
    return (
        f"{view.difference}; nothing was swapped, {view.view}_shadow holds what the ledger says:"
        " with --repair it is swapped in"
    )
