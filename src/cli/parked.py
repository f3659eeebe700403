"""`ledger parked`: what could not be read, and what becomes of it."""

from typing import Annotated

import msgspec
import typer

from cli.parked_shown import body_lines, facts, listed, listing, short_ids, shown
from cli.progress import progress
from cli.running import end, err, out, run, settings
from cli.unparking import PREFIX, NotParked, look, survey

commands = typer.Typer(
    help="Messages that could not be read, and what becomes of them.", no_args_is_help=True
)

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Limit = Annotated[int, typer.Option(min=1, help="show so many at most")]
Id = Annotated[
    str, typer.Argument(metavar="ID", help="the beginning of its id, as `list` shows it")
]


@commands.command("list")
def list_parked(limit: Limit = 100, as_json: AsJson = False) -> None:
    """Show what is parked, the oldest first; the queue stays as it is."""
    with progress("reading the parking queue", None) as moved:
        seen = run(survey(settings(), moved))
    some = seen.found[:limit]
    left_out = len(seen.found) - len(some)
    if as_json:
        shown = {"messages": [listed(each) for each in some], "left_out": left_out}
        typer.echo(msgspec.json.encode(shown | {"unread": seen.unread}))
        return
    if not seen.found:
        out.print("nothing is parked")
        return
    out.print(listing(some, short_ids([each.parked.id for each in seen.found])))
    if left_out:
        err.print(f"{left_out} more are parked: see them with --limit {len(seen.found)}")
    if seen.unread:
        err.print(f"{seen.unread} messages behind these were not read: take some out first")


@commands.command("show")
def show_parked(
    id_: Id,
    raw: Annotated[bool, typer.Option("--raw", help="print the bytes, and nothing else")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a parked message, what was wrong with it, and whether it can be read now."""
    prefix = _prefix(id_)
    try:
        with progress("reading the parking queue", None) as moved:
            seen = run(look(settings(), prefix, moved))
    except NotParked as error:
        raise end(1, str(error)) from None
    if raw:
        typer.echo(seen.body, nl=False)
    elif as_json:
        typer.echo(msgspec.json.encode(shown(seen)))
    else:
        out.print(facts(seen), body_lines(seen.body), sep="\n\n", markup=False)


def _prefix(id_: str) -> str:
    prefix = id_.lower()
    if not PREFIX(prefix):
        raise end(2, f"{id_!r} can't be an id: give 4 to 64 of the digits that `list` shows")
    return prefix
