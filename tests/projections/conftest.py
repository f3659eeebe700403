"""A ledger of each test's own, and one with a random history in it."""

from collections.abc import AsyncIterator

import pytest

from cli.settings import Settings
from tests.ledger.events import history, opening
from tests.ledger.running import Ledger, running_ledger


@pytest.fixture
async def ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """An empty ledger; the test starts what is to work on it."""
    async with running_ledger(settings) as ledger:
        yield ledger


@pytest.fixture
async def written(ledger: Ledger) -> Ledger:
    """A ledger with a random history that no projector has seen."""
    await ledger.write(opening(), history(11, 250), history(12, 250))
    return ledger
