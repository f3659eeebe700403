"""`ledger whatif`: what would have come of it by other pricing rules."""

from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from cli.running import end, out, run, settings

commands = typer.Typer()

SHOWN: Final = 20
"""Products that the table has; --json has all."""


@commands.command()
def whatif(
    rules: Annotated[Path, typer.Option(help="the other rules, in a .toml or .json file")],
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Decide all that was submitted by other rules, and compare; nothing is written."""
    from cli.supposing import BadRules, as_table, load_rules, products_table, suppose
    from ledger.eventlog.chain import VerificationFailed

    try:
        supposed = run(suppose(settings(), load_rules(rules)))
    except BadRules as error:
        raise end(2, str(error)) from None
    except VerificationFailed as wrong:
        raise end(1, f"{wrong}; run `ledger verify`") from None
    if as_json:
        typer.echo(msgspec.json.encode(supposed))
        return
    out.print(f"all that was submitted up to position {supposed.position}, decided by {rules}:")
    out.print(as_table(supposed))
    out.print(products_table(supposed.products[:SHOWN]))
    if len(supposed.products) > SHOWN:
        out.print(f"{len(supposed.products) - SHOWN} more products change less: --json has all")
