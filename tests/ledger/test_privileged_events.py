"""Who has the API's account of the broker can neither erase customers nor import history."""

from uuid import UUID, uuid4

import pytest
from aio_pika import Message
from aio_pika.exceptions import ChannelPreconditionFailed

from ledger.core.events import OrderHistory, OrderPlaced
from ledger.eventlog.records import Submitted
from ledger.messaging.publisher import Publisher
from ledger.messaging.rabbitmq import Connection
from ledger.messaging.topology import SUBMITTED_EXCHANGE
from ledger.runtime.reconnect import first_to_end
from tests.harness import eventually
from tests.submissions import ANN, customer, erasure, event_of

from .pipeline import Ledger

IMPORTED = OrderPlaced(ANN, UUID(int=0xB1), 1, OrderHistory("COMPLETED", 2))


@pytest.mark.parametrize("forged", [event_of(erasure()), event_of((uuid4(), IMPORTED))])
@pytest.mark.parametrize("user_id", [None, "ledger_api"])
async def test_what_is_the_operators_is_parked_and_what_came_with_it_is_decided(
    ledger: Ledger, forged: Submitted, user_id: str | None
) -> None:
    registered = event_of(customer())
    connection = Connection(ledger.settings.amqp_url("api"), "t")
    publisher = Publisher(connection, "/api", "t", user_id=user_id)

    async def submit() -> None:
        async def connected() -> bool:
            return publisher.connected

        await eventually(connected, "the publisher is connected")
        await publisher.submit([registered, forged])

    await first_to_end(publisher.run(), submit())
    async with ledger.writing():
        records = await ledger.until_recorded([registered])
        ((_, reason),) = await ledger.until_parked(1)
    assert "only the account ledger_migrate may submit this" in reason
    assert [r.event_id for r in records if not r.cause_position] == [registered.event_id.bytes]
    assert all((await ledger.keys()).values())


async def test_the_broker_lets_no_account_name_another_one(ledger: Ledger) -> None:
    async with Connection(ledger.settings.amqp_url("api"), "t").channel(confirms=True) as channel:
        exchange = await channel.get_exchange(SUBMITTED_EXCHANGE)
        with pytest.raises(ChannelPreconditionFailed, match="user_id"):
            await exchange.publish(Message(b"[]", user_id="ledger_migrate"), routing_key="")
