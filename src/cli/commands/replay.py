"""`ledger replay`: recorded events once more, as lines, as files, or into another inbox."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import msgspec
import typer

from cli.running import end, out, run, settings
from ledger.core.events import DECIDED, SUBMITTED

if TYPE_CHECKING:
    from cli.settings import Settings

STDOUT = Path("stdout")

commands = typer.Typer()


@commands.command("replay")
def replay_events(
    into: Annotated[
        Path | None,
        typer.Option(metavar="DIR|stdout", help="a directory for files, or standard output"),
    ] = None,
    into_inbox: Annotated[
        Path | None,
        typer.Option(metavar="HOME", help="submit again, to the ledger with this LEDGER_HOME"),
    ] = None,
    first: Annotated[int, typer.Option("--from", min=1, help="the first position")] = 1,
    last: Annotated[int | None, typer.Option("--to", min=1, help="the last; else the head")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="only events of this type")] = None,
    stream: Annotated[UUID | None, typer.Option(help="only one order, customer or product")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="go on with new events")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="say what was done as JSON")] = False,
) -> None:
    """Replay recorded events: print them, write them into files, or submit them again elsewhere."""
    from cli.replay.reader import Wish
    from cli.replay.run import to_directory, to_inbox, to_output

    _refuse(into, into_inbox, first, last, type_, stream)
    wish = Wish(first, last, type_, stream)
    if into_inbox:
        done = run(to_inbox(settings(), wish, _other(into_inbox), follow=follow))
        said = f"submitted {done.events} events again, up to position {done.position}"
    elif into and into != STDOUT:
        done = run(to_directory(settings(), wish, into, follow=follow))
        said = f"wrote {done.events} events into {into}, which goes up to position {done.position}"
    else:
        run(to_output(settings(), wish, follow=follow))
        return
    if as_json:
        typer.echo(msgspec.json.encode(done))
    else:
        out.print(said, markup=False)


def _refuse(
    into: Path | None,
    into_inbox: Path | None,
    first: int,
    last: int | None,
    type_: str | None,
    stream: UUID | None,
) -> None:
    """End the command where its options can't be meant together."""
    if into and into_inbox:
        raise end(2, "choose one of --into and --into-inbox")
    if into_inbox and stream:
        raise end(2, "--stream is not for --into-inbox: one stream can't be decided by itself")
    if last is not None and last < first:
        raise end(2, f"--to {last} is before --from {first}")
    types = list(SUBMITTED) if into_inbox else [*SUBMITTED, *DECIDED]
    if type_ is not None and type_ not in types:
        kind = "submitted" if into_inbox else "known"
        raise end(2, f"--type {type_} is not {kind}: choose of {', '.join(types)}")


def _other(home: Path) -> "Settings":
    from cli.settings import BadSettings, load_other_settings

    try:
        return load_other_settings(home)
    except BadSettings as error:
        raise end(2, f"--into-inbox: {error}") from None
