"""The trial balance: the debits and credits of each account of the journal, at a position."""

import time
from typing import Any, Final, get_args

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from projections.queries import QUERY_TIMEOUT_S, ViewsUnavailable, fetch
from projections.tables import OnProgress
from projections.views.journal import JOURNAL, UNIT_OF, Unit

# Positions that one statement adds up, so that none of them takes long.
STEP: Final = 50_000
# Long enough for a few retries of one that takes too long for a single request.
REMEMBERED_S: Final = 60.0


class JournalBehind(Exception):
    """The projector has not brought the journal to the position that was asked for."""


class Sums(Struct, frozen=True):
    """The sums of debits and of credits."""

    debit: int = 0
    credit: int = 0

    @property
    def balance(self) -> int:
        """Above 0 on the debit side, below on the credit side."""
        return self.debit - self.credit

    def __add__(self, other: "Sums") -> "Sums":
        """The sums of both."""
        return Sums(self.debit + other.debit, self.credit + other.credit)


# By account and unit.
Accounts = dict[tuple[str, str], Sums]


class _Step(Struct, frozen=True):
    """The sums of a full step, and when its lines were read, by the monotonic clock."""

    read_at: float
    accounts: Accounts


class JournalBalance(Struct, frozen=True):
    """Every account at a position. In a right journal the balance of each unit is 0."""

    position: int
    accounts: Accounts

    def of(self, unit: Unit) -> dict[str, Sums]:
        """The accounts that count this unit."""
        return {account: sums for (account, of), sums in self.accounts.items() if of == unit}

    def total(self, unit: Unit) -> Sums:
        """The sums of all accounts that count this unit."""
        return sum(self.of(unit).values(), Sums())

    @property
    def balanced(self) -> bool:
        """True if debits equal credits, of money and of units."""
        return not any(self.total(unit).balance for unit in get_args(Unit))


class TrialBalanceReader:
    """Adds up the journal, step by step. One that was not finished is gone on with by the next.

    A finished one is not remembered: whoever asks wants to know how the lines are now, after they
    were damaged or repaired. Every method raises ViewsUnavailable.
    """

    def __init__(self, engine: AsyncEngine, timeout_s: float = QUERY_TIMEOUT_S) -> None:
        self._engine = engine
        self._timeout_s = timeout_s
        self._steps: dict[int, _Step] = {}
        self._finished = True

    async def position(self) -> int:
        """The checkpoint of the journal."""
        rows = await self._rows("SELECT position FROM checkpoints WHERE name = %s", JOURNAL.name)
        if not rows:
            raise ViewsUnavailable("the journal has no checkpoint: run `ledger migrate`")
        return int(rows[0][0])

    async def balance(
        self,
        at_most: int,
        on_progress: OnProgress = lambda more: None,
        *,
        asked_at: float | None = None,
    ) -> JournalBalance:
        """The trial balance at this position, or where the journal is if that is before it.

        `on_progress` is called with numbers of positions. All lines are read after `asked_at`, by
        the monotonic clock: now, or when a request came that had to wait for others. Only where
        the last call came to no end are sums of it used, of REMEMBERED_S at most.
        """
        asked_at = time.monotonic() if asked_at is None else asked_at
        oldest = asked_at if self._finished else asked_at - REMEMBERED_S
        self._steps = {k: step for k, step in self._steps.items() if step.read_at >= oldest}
        self._finished = False
        position = min(await self.position(), at_most)
        accounts: Accounts = {(account, unit): Sums() for account, unit in UNIT_OF.items()}
        for start in range(0, position, STEP):
            end = min(start + STEP, position)
            for key, sums in (await self._sums(start, end)).items():
                accounts[key] = accounts.get(key, Sums()) + sums
            on_progress(end - start)
        self._finished = True
        return JournalBalance(position, accounts)

    async def _sums(self, after: int, up_to: int) -> Accounts:
        if after in self._steps and up_to == after + STEP:
            return self._steps[after].accounts
        read_at = time.monotonic()
        rows = await self._rows(
            "SELECT account, unit, SUM(debit), SUM(credit) FROM journal"
            " WHERE position > %s AND position <= %s GROUP BY account, unit",
            after,
            up_to,
        )
        sums = {
            (account, unit): Sums(int(debit), int(credit)) for account, unit, debit, credit in rows
        }
        if up_to == after + STEP:
            self._steps[after] = _Step(read_at, sums)
        return sums

    async def _rows(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        return await fetch(self._engine, statement, parameters, self._timeout_s)
