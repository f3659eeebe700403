"""A ledger with a random history in it."""

import pytest

from tests.ledger.pipeline import Ledger
from tests.submissions import history, opening


@pytest.fixture
async def written(ledger: Ledger) -> Ledger:
    """A ledger with a random history that no projector has seen."""
    await ledger.write(opening(), history(11, 250), history(12, 250))
    return ledger
