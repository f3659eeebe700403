"""What `ledger balance` reads, and how it shows it."""

from collections.abc import Callable
from typing import Any, Final, get_args

import msgspec
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncEngine

from cli.looking_back import When
from cli.progress import progress
from cli.settings import Settings
from ledger.core.money import to_amount
from ledger.runtime.database import make_engine
from projections.as_of import open_as_of
from projections.trial_balance import JournalBehind, Sums, TrialBalance, TrialBalanceReader
from projections.views.journal import Unit

STATEMENT_TIMEOUT_S: Final = 60.0
NOW: Final = When(None, None)


async def read_balance(settings: Settings, when: When) -> tuple[TrialBalance, int | None]:
    """The trial balance, and the first position that is out of balance, if one is.

    Raises PositionBeyondHead, JournalBehind and ViewsUnavailable.
    """
    engine = make_engine(
        settings.db_url("projector"),
        settings.db_ca_file,
        read_timeout_s=STATEMENT_TIMEOUT_S,
        autocommit=True,
    )
    try:
        return await _read(engine, when)
    finally:
        await engine.dispose()


async def _read(engine: AsyncEngine, when: When) -> tuple[TrialBalance, int | None]:
    books = TrialBalanceReader(engine, STATEMENT_TIMEOUT_S)
    latest = await books.position()
    position = latest if when == NOW else await _position(engine, when)
    if position > latest:
        behind = f"the journal is at position {latest}, {position - latest} behind"
        raise JournalBehind(f"{behind}: is `ledger projector` running?")
    with progress("adding up", position) as moved:
        found = await books.balance(position, moved)
    return found, None if found.balanced else await books.first_torn(position)


async def _position(engine: AsyncEngine, when: When) -> int:
    async with open_as_of(engine, STATEMENT_TIMEOUT_S) as history:
        return (await when.moment(history)).position


def as_table(found: TrialBalance) -> Table:
    """The trial balance for a person to read: money with two decimals, units as whole numbers."""
    table = Table(box=None, caption=f"at position {found.position}", caption_justify="left")
    for heading in ("account", "unit"):
        table.add_column(heading)
    for heading in ("debit", "credit", "balance"):
        table.add_column(heading, justify="right")
    for unit in get_args(Unit):
        counted, shown = _SHOWN[unit]
        for account, sums in (found.of(unit) | {"total": found.total(unit)}).items():
            table.add_row(account, counted, *map(shown, _numbers(sums)))
    return table


_SHOWN: Final[dict[Unit, tuple[str, Callable[[int], str]]]] = {
    "minor": ("money", to_amount),
    "units": ("units", str),
}


def _numbers(sums: Sums) -> tuple[int, int, int]:
    return sums.debit, sums.credit, sums.balance


def as_json_text(found: TrialBalance) -> bytes:
    """The trial balance as one JSON object, in minor units and units."""
    accounts = [_entry(sums, account=a, unit=u) for (a, u), sums in found.accounts.items()]
    totals = [_entry(found.total(unit), unit=unit) for unit in get_args(Unit)]
    return msgspec.json.encode(
        {
            "position": found.position,
            "balanced": found.balanced,
            "accounts": accounts,
            "totals": totals,
        }
    )


def _entry(sums: Sums, **about: str) -> dict[str, Any]:
    return about | {"debit": sums.debit, "credit": sums.credit, "balance": sums.balance}
