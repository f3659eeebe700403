"""A ledger that was tampered with: the writer refuses to start and says where it breaks."""

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.eventlog.records import LedgerDamaged
from ledger.eventlog.snapshots import load
from tests.submissions import opening, orders

from .pipeline import Ledger

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


OTHER_ENDS = [
    "DELETE FROM events WHERE position > 4",
    "UPDATE ledger_head SET position = position + 1",
    "UPDATE ledger_head SET hash = REPEAT('x', 32)",
]


async def unlocked(ledger: Ledger) -> None:
    """A ledger whose triggers someone with every right has dropped."""
    await ledger.write([*opening(), *orders(2)])
    for name in ("events_no_delete", "events_no_update"):
        await ledger.execute(f"DROP TRIGGER {name}")


async def test_whatever_was_changed_in_a_ledger_is_found_at_a_start(ledger: Ledger) -> None:
    await unlocked(ledger)
    async with ledger.connection("migrate") as connection:
        for change, statement in TAMPERING.items():
            assert "position 2" in await complaint(connection, statement), change
        await load(connection)


async def complaint(connection: AsyncConnection, statement: str) -> str:
    """What a writer says when it begins after this change, which is then undone."""
    await connection.exec_driver_sql(statement)
    with pytest.raises(LedgerDamaged) as raised:
        await load(connection)
    await connection.rollback()
    return str(raised.value)


async def test_a_writer_does_not_start_on_a_damaged_ledger_and_acks_nothing(
    ledger: Ledger,
) -> None:
    await unlocked(ledger)
    await ledger.execute(TAMPERING["one byte of a payload"])
    await ledger.put_events(orders(1))
    writer, _ = ledger.make_writer()
    with pytest.raises(LedgerDamaged, match="position 2"):
        await writer.run()
    assert len(await ledger.waiting()) == 1


@pytest.mark.parametrize("statement", OTHER_ENDS)
async def test_a_writer_does_not_lead_a_ledger_that_ends_elsewhere_than_its_head(
    ledger: Ledger, statement: str
) -> None:
    await unlocked(ledger)
    await ledger.execute(statement)
    await ledger.put_events(orders(1))
    writer, _ = ledger.make_writer()
    with pytest.raises(LedgerDamaged, match="the head names position"):
        await writer.run()
