"""The short matrix: every kind of fault on one ledger under load, healed and checked in between.

`make faults` has all of them.
"""

import secrets
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.fault import FAULTS
from tests.faults.run import Run, running
from tests.faults.schedule import SHORT, Round, matrix

SEED = 5


@pytest.fixture(scope="module")
async def run() -> AsyncIterator[Run]:
    """A ledger with clients; what is known of it is kept if a round fails."""
    home = Path(tempfile.gettempdir()) / f"ledger-faults-{SEED}-{secrets.token_hex(3)}"
    home.mkdir()
    async with running(SEED, home) as run:
        yield run


@pytest.mark.parametrize("round_", SHORT, ids=str)
async def test_whatever_breaks_no_promise_does(run: Run, round_: Round) -> None:
    await run.round(round_)


def test_the_whole_matrix_has_every_fault() -> None:
    assert {fault.name for each in matrix() for fault in each.faults} == set(FAULTS)
    assert {fault.kind for each in SHORT for fault in each.faults} == {
        fault.kind for fault in FAULTS.values()
    }
