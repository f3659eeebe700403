"""Exchanges and queues of RabbitMQ, declared by `ledger migrate` and nowhere else."""

from typing import Final

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel

SUBMITTED_EXCHANGE: Final = "ledger.submitted"
PARKING_EXCHANGE: Final = "ledger.parking"
RECORDED_EXCHANGE: Final = "ledger.recorded"
ANNOUNCED_EXCHANGE: Final = "ledger.announced"
ACCEPTED_EXCHANGE: Final = "ledger.accepted"
INBOX: Final = "ledger.inbox"
PARKING: Final = "ledger.parking"
# A lock: an exclusive queue of the connection that reads the parking queue, gone with it.
PARKING_LOCK: Final = "ledger.parking.lock"

EXCHANGES: Final = (
    SUBMITTED_EXCHANGE,
    PARKING_EXCHANGE,
    RECORDED_EXCHANGE,
    ANNOUNCED_EXCHANGE,
    ACCEPTED_EXCHANGE,
)
# Without an explicit limit RabbitMQ 4 drops a message after 20 deliveries, and 3.10 puts one that
# is delivered again at the end of the queue.
DELIVERY_LIMIT: Final = 1_000_000
INBOX_MAX_BYTES: Final = 2**30


async def declare(channel: AbstractChannel, inbox_max_length: int) -> None:
    """Declare every exchange, queue and binding. Declaring twice changes nothing.

    Raises aio_pika.exceptions.ChannelPreconditionFailed if a queue exists with other arguments.
    """
    for name in EXCHANGES:
        await channel.declare_exchange(name, ExchangeType.FANOUT, durable=True)
    inbox = await channel.declare_queue(
        INBOX,
        durable=True,
        arguments={
            "x-queue-type": "quorum",
            "x-single-active-consumer": True,
            # A full inbox refuses what is published, rather than drop its oldest events.
            "x-overflow": "reject-publish",
            "x-max-length": inbox_max_length,
            "x-max-length-bytes": INBOX_MAX_BYTES,
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": PARKING_EXCHANGE,
        },
    )
    parking = await channel.declare_queue(
        PARKING,
        durable=True,
        # Reading a parked message takes it and gives it back, which counts as a delivery.
        arguments={"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT},
    )
    await inbox.bind(SUBMITTED_EXCHANGE)
    await parking.bind(PARKING_EXCHANGE)
