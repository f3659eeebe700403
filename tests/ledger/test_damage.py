"""A ledger that was tampered with: the writer refuses to start and says where it breaks."""

import pytest

from ledger.store import LedgerDamaged

from .events import opening, orders
from .running import Ledger

TAMPERING = {
    "one byte of a payload": "UPDATE events SET data = REPLACE(data, '1000', '1001')"
    " WHERE position = 2",
    "who submitted it": "UPDATE events SET meta = '{}' WHERE position = 2",
    "when it was recorded": "UPDATE events SET recorded_at_us = recorded_at_us + 1"
    " WHERE position = 2",
    "its stream": "UPDATE events SET stream_id = REPEAT('x', 16) WHERE position = 2",
    "its hash": "UPDATE events SET hash = REPEAT('x', 32) WHERE position = 2",
    "it is gone": "DELETE FROM events WHERE position = 2",
}


async def tampered(ledger: Ledger, statement: str) -> None:
    await ledger.write([*opening(), *orders(2)])
    for name in ("events_no_delete", "events_no_update"):
        await ledger.execute(f"DROP TRIGGER {name}")
    await ledger.execute(statement)


@pytest.mark.parametrize("change", TAMPERING)
async def test_a_writer_refuses_a_ledger_that_was_changed(ledger: Ledger, change: str) -> None:
    await tampered(ledger, TAMPERING[change])
    await ledger.put_events(orders(1))
    writer, _ = ledger.make_writer()
    with pytest.raises(LedgerDamaged, match="position 2"):
        await writer.run()
    assert len(await ledger.waiting()) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM events WHERE position > 4",
        "UPDATE ledger_head SET position = position + 1",
        "UPDATE ledger_head SET hash = REPEAT('x', 32)",
    ],
)
async def test_a_writer_refuses_a_ledger_that_does_not_end_where_its_head_says(
    ledger: Ledger, statement: str
) -> None:
    await tampered(ledger, statement)
    await ledger.put_events(orders(1))
    writer, _ = ledger.make_writer()
    with pytest.raises(LedgerDamaged, match="the head names position"):
        await writer.run()
