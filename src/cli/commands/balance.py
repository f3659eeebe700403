"""`ledger balance`: the trial balance of the journal."""

from typing import Final, get_args

from rich.table import Table

from cli import connections, console
from cli.commands.asof import AsOfPosition, AsOfTime, parse_as_of
from cli.settings import Settings
from ledger.core.money import to_amount
from projections.as_of import AsOf, open_as_of
from projections.trial_balance import JournalBalance, JournalBehind, Sums, TrialBalanceReader
from projections.views.journal import Unit

TIMEOUT_S: Final = 60.0


def balance(
    position: AsOfPosition = None, time: AsOfTime = None, as_json: console.AsJson = False
) -> None:
    """Run `ledger balance`."""
    as_of = parse_as_of(position, time)
    trial_balance = console.run(_read(console.read_settings(), as_of))
    if as_json:
        # For programs: integers, money in minor units.
        accounts = trial_balance.accounts.items()
        report = {
            "position": trial_balance.position,
            "balanced": trial_balance.balanced,
            "accounts": [
                {"account": account, "unit": unit, **_sums(sums)}
                for (account, unit), sums in accounts
            ],
            "totals": [
                {"unit": unit, **_sums(trial_balance.total(unit))} for unit in get_args(Unit)
            ],
        }
        console.print_json(report)
    else:
        console.out.print(_table(trial_balance))
    if not trial_balance.balanced:
        console.fail("the journal does not balance: `ledger verify` says where it differs first")


async def _read(settings: Settings, as_of: AsOf) -> JournalBalance:
    """The trial balance; raises PositionBeyondHead, JournalBehind and ViewsUnavailable."""
    async with connections.engine(
        settings, "projector", read_timeout_s=TIMEOUT_S, autocommit=True
    ) as engine:
        reader = TrialBalanceReader(engine, TIMEOUT_S)
        latest = position = await reader.position()
        if as_of != AsOf(None):
            async with open_as_of(engine, TIMEOUT_S) as as_of_reader:
                position = (await as_of_reader.resolve(as_of)).position
        if position > latest:
            raise JournalBehind(
                f"the journal is at position {latest}, {position - latest} behind:"
                " is `ledger projector` running?"
            )
        with console.progress("adding up", position) as advance:
            return await reader.balance(position, advance)


def _table(trial_balance: JournalBalance) -> Table:
    """For people: money with two decimals, units as whole numbers."""
    caption = f"at position {trial_balance.position}"
    table = Table(box=None, caption=caption, caption_justify="left")
    for heading in ("account", "unit"):
        table.add_column(heading)
    for heading in ("debit", "credit", "balance"):
        table.add_column(heading, justify="right")
    for unit in get_args(Unit):
        unit_name, text = ("money", to_amount) if unit == "minor" else ("units", str)
        rows = trial_balance.of(unit) | {"total": trial_balance.total(unit)}
        for account, sums in rows.items():
            numbers = (sums.debit, sums.credit, sums.balance)
            table.add_row(account, unit_name, *map(text, numbers))
    return table


def _sums(sums: Sums) -> dict[str, int]:
    return {"debit": sums.debit, "credit": sums.credit, "balance": sums.balance}
