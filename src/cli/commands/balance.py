"""`ledger balance`: the trial balance of the journal."""

from typing import Annotated

import typer

from cli.commands.asof import time_us_of
from cli.running import end, out, run, settings

commands = typer.Typer()


@commands.command()
def balance(
    position: Annotated[
        int | None, typer.Option(min=0, help="as of this position instead of the latest")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="as of what was recorded by then, as 2026-01-31T12:00:00Z")
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Add up what every account was debited and credited; both must come to the same."""
    from cli.looking_back import When
    from cli.trial_balance import as_json_text, as_table, read_balance

    if position is not None and time is not None:
        raise end(2, "say either --position N or --time T")
    when = When(position, None if time is None else time_us_of(time))
    found, torn = run(read_balance(settings(), when))
    if as_json:
        typer.echo(as_json_text(found))
    else:
        out.print(as_table(found))
    if torn is not None:
        raise end(1, f"the journal does not balance, first at position {torn}: `ledger verify`")
