"""`ledger replay`: recorded events again, as lines or into the inbox of another ledger."""

from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from cli import console
from cli.replay.events import Selection, print_events
from cli.replay.resubmission import resubmit_events
from cli.settings import BadSettings, load_other_settings
from ledger.core.events import DECIDED, SUBMITTED


def replay(
    into_inbox: Annotated[
        Path | None,
        typer.Option(metavar="HOME", help="submit again, to the ledger with this LEDGER_HOME"),
    ] = None,
    first: Annotated[int, typer.Option("--from", min=1, help="first position")] = 1,
    last: Annotated[int | None, typer.Option("--to", min=1, help="last position [head]")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="only events of this type")] = None,
    stream: Annotated[UUID | None, typer.Option(help="only one order, customer or product")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="continue with new events")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="with --into-inbox: report as JSON")
    ] = False,
) -> None:
    """Print recorded events as JSON lines, or submit them again to another ledger."""
    types = list(SUBMITTED) if into_inbox else [*SUBMITTED, *DECIDED]
    if type_ is not None and type_ not in types:
        kind = "submitted" if into_inbox else "known"
        console.usage_error(f"--type {type_} is not {kind}: choose of {', '.join(types)}")
    if into_inbox and stream:
        console.usage_error(
            "--stream is not for --into-inbox: one stream can't be decided by itself"
        )
    if last is not None and last < first:
        console.usage_error(f"--to {last} is before --from {first}")
    selection = Selection(first, last, type_, stream)
    if not into_inbox:
        console.run(print_events(console.read_settings(), selection, follow=follow))
        return
    try:
        other = load_other_settings(into_inbox)
    except BadSettings as error:
        console.usage_error(f"--into-inbox: {error}")
    report = console.run(resubmit_events(console.read_settings(), selection, other, follow=follow))
    if as_json:
        console.print_json(report)
    else:
        console.out.print(
            f"submitted {report.events} events again, up to position {report.position}"
        )
