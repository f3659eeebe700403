"""/reports: what the whole ledger comes to."""

from decimal import Decimal
from typing import Literal, get_args

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from api.as_of import WHEN, as_of
from api.consistent_reads import min_position_of
from api.context import Context
from api.json_forms import money
from api.requests import MAX_POSITION, parameters
from api.responses import at, reply
from projections import trial_balance as books
from projections.views.journal import Unit

Counted = Literal["money", "units"]


class Total(Struct, frozen=True):
    """What was debited and credited in all; `balance` is above 0 on the debit side."""

    unit: Counted
    debit: Decimal
    credit: Decimal
    balance: Decimal


class Account(Struct, frozen=True):
    """What one account was debited and credited; `balance` is above 0 on the debit side."""

    account: str
    unit: Counted
    debit: Decimal
    credit: Decimal
    balance: Decimal


class TrialBalance(Struct, frozen=True):
    """Every account of the journal; unless it was damaged, the balance of each total is 0."""

    accounts: list[Account]
    totals: list[Total]
    balanced: bool
    position: int


async def show_trial_balance(context: Context, request: Request) -> Response:
    """What every account was debited and credited; as of a moment of the past, if one is given.

    Money is in accounts of wallets, deposits, revenue and refunds, units in those of stock,
    received and sold.
    """
    found = parameters(request, *WHEN)
    at_most, at_least = MAX_POSITION, min_position_of(found)
    if when := as_of(found):
        at_most = at_least = (await context.as_of.position(when)).position
    added, position = await context.reads.read_at_least(
        at_least, lambda: context.trial_balance.read(at_most)
    )
    return reply(200, report(added), at(position))


def report(added: books.TrialBalance) -> TrialBalance:
    """The trial balance as clients see it."""
    units = get_args(Unit)
    return TrialBalance(
        [Account(name, *_numbers(unit, s)) for unit in units for name, s in added.of(unit).items()],
        [Total(*_numbers(unit, added.total(unit))) for unit in units],
        added.balanced,
        added.position,
    )


def _numbers(unit: Unit, sums: books.Sums) -> tuple[Counted, Decimal, Decimal, Decimal]:
    if unit == "minor":
        return "money", money(sums.debit), money(sums.credit), money(sums.balance)
    return "units", Decimal(sums.debit), Decimal(sums.credit), Decimal(sums.balance)
