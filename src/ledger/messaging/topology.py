"""Exchanges and queues of RabbitMQ, declared by `ledger migrate` and nowhere else."""

from collections.abc import Mapping
from typing import Any, Final

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel
from msgspec import Struct

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
# The account whose messages may erase customers and import history.
OPERATOR: Final = "ledger_migrate"
INBOX_MAX_BYTES: Final = 2**30

# Keys of a policy that neither lose nor move a message, whatever their value.
HARMLESS: Final = frozenset(
    {
        "initial-cluster-size",
        "max-in-memory-bytes",
        "max-in-memory-length",
        "queue-leader-locator",
        "target-group-size",
    }
)


class BrokerQueue(Struct, frozen=True):
    """A queue as the broker has it: the policies that apply to it, and what they set together."""

    name: str
    policies: tuple[str, ...]
    definition: Mapping[str, Any]


def policy_problems(queue: BrokerQueue) -> list[str]:
    """Where policies take back what the arguments of `declare` promise, a sentence for each key.

    Of a limit in both the broker takes the lower one (https://www.rabbitmq.com/docs/policies).
    """
    wanted: dict[str, Any] = {"overflow": "reject-publish", "dead-letter-strategy": "at-least-once"}
    if queue.name == INBOX:
        wanted["dead-letter-exchange"] = PARKING_EXCHANGE
    names = " and ".join(queue.policies) or "of the operator"
    problems = []
    for key, value in sorted(queue.definition.items()):
        if key in HARMLESS or wanted.get(key) == value:
            continue
        if key == "delivery-limit" and (value < 0 or value >= DELIVERY_LIMIT):
            continue
        problems.append(
            f"the policy {names} sets {key} to {value} on {queue.name}: messages could be dropped,"
            " moved or refused; clear it, or let it apply to other queues"
        )
    return problems


async def declare(
    channel: AbstractChannel, inbox_max_length: int, *, at_least_once: bool = True
) -> None:
    """Declare every exchange, queue and binding. Declaring twice changes nothing.

    Raises aio_pika.exceptions.ChannelPreconditionFailed if a queue exists with other arguments. An
    inbox that an earlier release made has no dead-letter strategy, and `at_least_once` is False.
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
            **({"x-dead-letter-strategy": "at-least-once"} if at_least_once else {}),
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
