"""`ledger erase-customer`: forget a customer's name, and keep the chain."""

import sys
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import msgspec
import typer

from cli.running import end, err, out, run, settings

if TYPE_CHECKING:
    from cli.erasure import Erasure

REMAINS = (
    "What remains: wallet, orders and amounts under the customer's id; what backups, older exports"
    " and the database's own logs hold; a registration that waits in the inbox or was ever parked."
)

commands = typer.Typer()


@commands.command("erase-customer")
def erase_customer(
    customer_id: Annotated[UUID, typer.Argument(help="the customer")],
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Destroy the key that a customer's name is sealed with; money and orders stay."""
    from cli.erasure import NoSuchCustomer, erase, look_up

    given = settings()
    try:
        if not run(look_up(given, customer_id)).is_erased and not yes:
            _confirm(customer_id)
        erasure = run(erase(given, customer_id))
    except NoSuchCustomer as error:
        raise end(1, str(error)) from None
    if as_json:
        typer.echo(msgspec.json.encode(erasure))
    else:
        _show(erasure)
    if erasure.plain_positions:
        raise end(1, _still_plain(erasure.plain_positions))


def _confirm(customer_id: UUID) -> None:
    if not sys.stdin.isatty():
        raise end(2, "this can't be undone: say --yes where nobody can be asked")
    err.print(f"The name of customer {customer_id} will be gone for ever.", markup=False)
    if not typer.confirm("Erase it?", err=True):
        raise end(1, "nothing was erased")


def _show(erasure: "Erasure") -> None:
    done = "erased" if erasure.new else "was erased already"
    out.print(f"customer {erasure.customer_id} {done}: recorded at position {erasure.position},")
    out.print("the key is destroyed, and the views say erased.")
    out.print(REMAINS)


def _still_plain(positions: list[int]) -> str:
    where = ", ".join(map(str, positions))
    return (
        f"the ledger itself still holds the name at position {where}, recorded before names were"
        " sealed: replay this ledger into a new one, which seals it, and erase it there"
    )
