"""The broker's topology as data, declared by one command and nowhere else."""

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

EXCHANGES: Final = (
    SUBMITTED_EXCHANGE,
    PARKING_EXCHANGE,
    RECORDED_EXCHANGE,
    ANNOUNCED_EXCHANGE,
    ACCEPTED_EXCHANGE,
)
NEVER_DROPPED: Final = 1_000_000
INBOX_MAX_BYTES: Final = 2**30


async def declare(channel: AbstractChannel, inbox_max_length: int) -> None:
    """Declare every exchange, queue and binding; twice is the same as once.

    Raises aio_pika.exceptions.ChannelPreconditionFailed where a queue stands with other arguments.
    """
    for name in EXCHANGES:
        await channel.declare_exchange(name, ExchangeType.FANOUT, durable=True)
    inbox = await channel.declare_queue(
        INBOX,
        durable=True,
        arguments={
            "x-queue-type": "quorum",
            "x-single-active-consumer": True,
            "x-overflow": "reject-publish",
            "x-max-length": inbox_max_length,
            "x-max-length-bytes": INBOX_MAX_BYTES,
            "x-delivery-limit": NEVER_DROPPED,
            "x-dead-letter-exchange": PARKING_EXCHANGE,
        },
    )
    parking = await channel.declare_queue(
        PARKING, durable=True, arguments={"x-queue-type": "quorum"}
    )
    await inbox.bind(SUBMITTED_EXCHANGE)
    await parking.bind(PARKING_EXCHANGE)
