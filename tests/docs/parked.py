"""What the reference page of `ledger parked` finds in the parking queue."""

from datetime import UTC, datetime
from uuid import UUID

from ledger.core.events import WalletCredited
from ledger.eventlog.codec import Rejected, encode_group, encode_submitted
from ledger.eventlog.records import Submitted
from ledger.messaging.parking import park
from ledger.messaging.rabbitmq import Connection
from tests.harness import Stack
from tests.ledger.pipeline import Ledger, until_acked

EVENT_ID = UUID("0199e1c0-0000-7000-8000-000000000001")
OCCURRED_AT_US = int(datetime(2026, 1, 20, 12, tzinfo=UTC).timestamp()) * 1_000_000
UNKNOWN = "Unreadable: 'wallet.credited' is not the type of a submitted event"


async def with_parked(stack: Stack) -> None:
    """Two messages that no code can read, one of them twice, and one that today's can."""
    credit = encode_submitted(
        Submitted(EVENT_ID, UUID(int=0xA1), OCCURRED_AT_US, WalletCredited(2_500)), "/shop"
    )
    shipped = credit.replace(b"wallet.credited", b"order.shipped")
    ledger = Ledger(stack.settings)
    await ledger.put(b"order 17: 3 lamps", encode_group([shipped]), b"order 17: 3 lamps")
    async with ledger.writing() as writer:
        await until_acked(writer, 3)
    # As a writer would have parked it that did not know this type of event yet.
    url = stack.settings.amqp_url("writer")
    await park(Connection(url, "docs"), [Rejected(credit, UNKNOWN, whole=False)])
    await ledger.close()
    stack.start("writer")
