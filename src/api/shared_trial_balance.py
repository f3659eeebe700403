"""The journal added up for clients: by one of them at a time, and not for ever."""

import asyncio
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from api.problems import Problem
from projections.trial_balance import TrialBalance, TrialBalanceReader

TIMEOUT_S: Final = 10.0


class SharedBooks:
    """The books of one API process."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._books = TrialBalanceReader(engine)
        self._turn = asyncio.Lock()

    async def balance(self, at_most: int) -> tuple[TrialBalance, int]:
        """The trial balance where the journal is, or at an earlier position, and which that is.

        Raises ViewsUnavailable, and Problem when it takes too long; a retry goes on from there.
        """
        try:
            async with asyncio.timeout(TIMEOUT_S), self._turn:
                found = await self._books.balance(at_most)
        except TimeoutError:
            detail = f"adding up the journal takes over {TIMEOUT_S:g} s; a retry goes on with it"
            raise Problem("views-unavailable", detail) from None
        return found, found.position
