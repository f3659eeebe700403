"""A ledger of each test's own."""

from collections.abc import AsyncIterator

import pytest

from cli.settings import Settings
from tests.ledger.running import Ledger, running_ledger


@pytest.fixture
async def ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """An empty ledger; the test starts what is to work on it."""
    async with running_ledger(settings) as ledger:
        yield ledger
