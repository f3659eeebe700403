"""What commands share: which errors are one sentence."""

import pytest

from cli.console import is_expected
from cli.export import ExportRefused
from ledger.core.decider import InvariantViolated
from ledger.eventlog.records import LedgerDamaged
from ledger.messaging.publisher import InboxUnavailable
from projections.as_of import PositionBeyondHead


@pytest.mark.parametrize(
    "error",
    [
        LedgerDamaged(7, "the event is gone"),
        PositionBeyondHead("position 9", 7),
        InboxUnavailable("the broker is away"),
        ExportRefused("the directory is not empty"),
        ConnectionRefusedError(111, "Connection refused"),
    ],
)
def test_an_error_of_ours_or_of_a_server_is_one_sentence(error: Exception) -> None:
    assert is_expected(error)


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), InvariantViolated("stock is -1")])
def test_a_bug_shows_its_traceback(error: Exception) -> None:
    assert not is_expected(error)
