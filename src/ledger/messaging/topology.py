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
PARKING_LOCK: Final = "ledger.parking.lock"
"""A queue that exists while somebody reads the parking queue, and belongs to their connection."""

EXCHANGES: Final = (
    SUBMITTED_EXCHANGE,
    PARKING_EXCHANGE,
    RECORDED_EXCHANGE,
    ANNOUNCED_EXCHANGE,
    ACCEPTED_EXCHANGE,
)
NEVER_DROPPED: Final = 1_000_000
INBOX_MAX_BYTES: Final = 2**30


class OldParkingInUse(Exception):
    """The parking queue of an earlier version can't be replaced yet."""


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
        PARKING,
        durable=True,
        # To read a parked message is to take it and give it back, which counts as a delivery.
        arguments={"x-queue-type": "quorum", "x-delivery-limit": NEVER_DROPPED},
    )
    await inbox.bind(SUBMITTED_EXCHANGE)
    await parking.bind(PARKING_EXCHANGE)


async def remove_old_parking(channel: AbstractChannel) -> None:
    """Remove the empty parking queue of a version that declared it without a delivery limit.

    It's unbound first, so that nothing is parked there meanwhile: the writer tries again. Raises
    OldParkingInUse, with everything as it was, when something is parked or somebody reads it.
    """
    exchange = await channel.get_exchange(PARKING_EXCHANGE)
    queue = await channel.declare_queue(PARKING, passive=True)
    await queue.unbind(exchange)
    found = (await queue.declare()).message_count, queue.declaration_result.consumer_count
    if found != (0, 0):
        await queue.bind(exchange)
        raise OldParkingInUse(
            f"the queue {PARKING} has to be made anew with a delivery limit, but messages are in"
            " it: take them out with `ledger parked`, then run `ledger migrate` again"
        )
    await queue.delete(if_unused=False, if_empty=False)
