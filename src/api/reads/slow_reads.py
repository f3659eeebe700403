"""Reads that take long, a few at a time: lists, the state as of a position or a time, totals.

Each has a deadline and waits its turn, so that they can take neither the database connections that
single rows are read with, nor the event loop from those who place orders.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncEngine

from api.auth.rate_limit import Client, NoTurn, Turns
from api.http.parameters import AS_OF_POSITION, AS_OF_TIME, MIN_POSITION, Call
from api.http.problems import Problem, invalid
from projections.as_of import AsOf, AsOfPosition, AsOfReader, PositionBeyondHead, open_as_of
from projections.trial_balance import JournalBalance, TrialBalanceReader

# At once, half of the database connections of a process, as many as may read a product that is not
# in the cache; STRANGERS_READS of each are open to requests without an API key or token, where the
# API asks for one.
MAX_READS: Final = 4
STRANGERS_READS: Final = 2
TURN_TIMEOUT_S: Final = 2.0
READ_TIMEOUT_S: Final = 5.0
TRIAL_BALANCE_TIMEOUT_S: Final = 10.0


def as_of(call: Call[Any]) -> AsOf | None:
    """The position or time that a request asks for; None for now. Raises Problem."""
    names = [parameter.name for parameter in (AS_OF_POSITION, AS_OF_TIME, MIN_POSITION)]
    given = [name for name in names if name in call.query]
    if len(given) > 1:
        raise invalid(given[0], f"can't stand together with {given[1]}")
    position, time_us = call[AS_OF_POSITION], call[AS_OF_TIME]
    return None if position is None and time_us is None else AsOf(position, time_us)


class AsOfReads:
    """Reads of earlier state, which take turns with other reads that take long."""

    def __init__(self, engine: AsyncEngine, turns: Turns) -> None:
        self._engine = engine
        self._turns = turns

    @asynccontextmanager
    async def open(
        self, when: AsOf, client: Client
    ) -> AsyncIterator[tuple[AsOfReader, AsOfPosition]]:
        """A reader, and the position asked for.

        Raises Problem for what lies beyond the head or when it is busy, and ViewsUnavailable.
        """
        try:
            async with (
                self._turns.turn(client),
                open_as_of(self._engine, READ_TIMEOUT_S) as reader,
            ):
                yield reader, await reader.resolve(when)
        except NoTurn as error:
            raise Problem("past-busy", str(error)) from None
        except PositionBeyondHead as error:
            if when.position is None:
                raise invalid("as_of_time", "lies ahead") from None
            # Not of the kind `beyond-head`: here the nearest position that there is may well do.
            detail = f"must be at most {error.head}, where the ledger ends now"
            members = {"head": error.head, "ledger": str(error.ledger_id)}
            raise invalid("as_of_position", detail, error.head, **members) from None


class TrialBalanceReads:
    """The journal added up, for one client after the other of an API process.

    Whose turn it is takes one of the turns of all reads that take long.
    """

    def __init__(self, engine: AsyncEngine, turns: Turns) -> None:
        self._reader = TrialBalanceReader(engine)
        # Those who wait for what another one adds up must not hold turns meanwhile.
        self._alone = Turns(1, READ_TIMEOUT_S)
        self._turns = turns

    async def read(self, at_most: int, client: Client) -> tuple[JournalBalance, int]:
        """The trial balance at the journal's position, or at `at_most` if that is earlier.

        Raises ViewsUnavailable, NoTurn, and Problem when it takes too long.
        """
        asked_at = time.monotonic()
        try:
            async with (
                asyncio.timeout(TRIAL_BALANCE_TIMEOUT_S),
                self._alone.turn(client),
                self._turns.turn(client),
            ):
                trial_balance = await self._reader.balance(at_most, asked_at=asked_at)
        except TimeoutError:
            # What was added up by then is remembered, so retries come to an end.
            detail = (
                f"adding up the journal takes over {TRIAL_BALANCE_TIMEOUT_S:g} s;"
                " a retry goes on with it"
            )
            raise Problem("views-unavailable", detail) from None
        return trial_balance, trial_balance.position
