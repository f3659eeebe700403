"""`ledger balance`: the trial balance of the journal."""

from typing import Annotated

import typer

from cli.running import end, out, run, settings

commands = typer.Typer()


@commands.command()
def balance(
    position: Annotated[
        int | None, typer.Option(min=0, help="as of this position instead of the latest")
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Add up what every account was debited and credited; both must come to the same."""
    from cli.trial_balance import Ahead, as_json_text, as_table, read_balance

    try:
        found, torn = run(read_balance(settings(), position))
    except Ahead as error:
        raise end(2, str(error)) from None
    if as_json:
        typer.echo(as_json_text(found))
    else:
        out.print(as_table(found))
    if torn is not None:
        raise end(1, f"the journal does not balance, first at position {torn}: `ledger verify`")
