"""`ledger asof`: orders, wallets and stock as they were at a position or a time."""

from enum import StrEnum
from typing import Annotated
from uuid import UUID

import typer

from cli.running import end, run, settings
from ledger.runtime.timestamps import BadTimestamp, parse_rfc3339

commands = typer.Typer()


class PastView(StrEnum):
    """What can be looked at as it was."""

    ORDERS = "orders"
    WALLETS = "wallets"
    STOCK = "stock"


@commands.command("asof")
def show_as_of(
    view: Annotated[
        PastView, typer.Argument(metavar="VIEW", help="`orders`, `wallets` or `stock`")
    ],
    thing_id: Annotated[
        UUID | None, typer.Argument(metavar="ID", help="only this order, customer or product")
    ] = None,
    position: Annotated[
        int | None, typer.Option(min=0, help="as of this position of the ledger")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="as of what was recorded by then, as 2026-01-31T12:00:00Z")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, an object a line")] = False,
) -> None:
    """Show orders, wallets or stock as they were, all of them or one."""
    from cli.looking_back import When, show_all, show_one

    if (position is None) == (time is None):
        raise end(2, "say as of when: either --position N or --time T")
    when = When(position, None if time is None else time_us_of(time))
    if thing_id is None:
        run(show_all(settings(), view, when, as_json=as_json))
    elif not run(show_one(settings(), view, thing_id, when, as_json=as_json)):
        raise end(1, f"there was no such {_SINGULAR[view]} then: {thing_id}")


_SINGULAR = {PastView.ORDERS: "order", PastView.WALLETS: "customer", PastView.STOCK: "product"}


def time_us_of(text: str) -> int:
    """The time of `--time`; one that can't be read ends the command with status 2."""
    try:
        return parse_rfc3339(text)
    except BadTimestamp as error:
        raise end(2, f"--time {error}") from None
