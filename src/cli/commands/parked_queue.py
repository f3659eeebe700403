"""The work of `ledger parked`: reads the parking queue and its log, resubmits and discards.

A message leaves the queue only after the log has it. A crash before the log is committed leaves it
as it was, perhaps submitted already; one before the ack leaves it logged and parked. Either way the
operator runs the command again: the ids of events make that harmless, and a second row in the log
makes it visible.
"""

import asyncio
import os
import pwd
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, Final

from aio_pika.abc import AbstractIncomingMessage
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from cli import connections
from cli.settings import Settings
from ledger.messaging import parking_log
from ledger.messaging.parking import (
    Parked,
    Parking,
    decode_parked,
    describe,
    id_of,
    inbox_body,
    open_parking,
)
from ledger.messaging.parking_log import Action, Entry
from ledger.messaging.publisher import publish
from ledger.messaging.rabbitmq import CALL_TIMEOUT_S, open_channel
from ledger.messaging.topology import SUBMITTED_EXCHANGE
from ledger.runtime.failpoints import failpoint
from ledger.runtime.timestamps import now_us

Advance = Callable[[int], None]

CONNECTION_NAME: Final = "ledger-parked"
READ_TIMEOUT_S: Final = 15
# Messages are held in memory until they are acked: up to so many bytes, and one message more.
HELD_BYTES: Final = 32 * 2**20
BATCH: Final = 100
MAX_OPERATOR: Final = 320
# An ambiguous id is answered with the first few that it could be, each with some more digits.
MORE_DIGITS: Final = 4
MAX_NAMED: Final = 4


class NotParked(Exception):
    """No parked message has this id."""


class AmbiguousId(Exception):
    """Several messages have an id that begins so."""


class ParkedMessage(Struct):
    """A parked message and its number of copies: a crash of the writer can park it twice."""

    parked: Parked
    copies: int = 1


class Survey(Struct, frozen=True):
    """The parked messages in the order of the queue; `unread` more are behind them."""

    messages: list[ParkedMessage]
    unread: int


class Details(Struct, frozen=True):
    """One message, parked or (with log entries) in the log; `body` is None if it was erased."""

    message: ParkedMessage
    body: bytes | None
    headers: dict[str, Any]
    entries: list[Entry]


class Delivery(Struct):
    """A message with the deliveries of all its copies, not yet acked."""

    parked: Parked
    body: bytes
    copies: list[AbstractIncomingMessage]


async def survey(settings: Settings, advance: Advance) -> Survey:
    """Read the parking queue, which stays as it is; raises ParkingBusy."""
    by_id: dict[str, ParkedMessage] = {}
    async with open_parking(settings.amqp_url("migrate"), CONNECTION_NAME) as parking:
        count = 0
        async for delivery in parking.messages():
            count += 1
            _count_copy(by_id, describe(delivery))
            advance(1)
    return Survey(list(by_id.values()), parking.count - count)


async def find(settings: Settings, prefix: str, advance: Advance) -> Details:
    """The message whose id begins with a prefix, in the queue or else in the log.

    Raises NotParked, AmbiguousId, ParkingBusy.
    """
    by_id: dict[str, ParkedMessage] = {}
    deliveries: dict[str, AbstractIncomingMessage] = {}
    async with open_parking(settings.amqp_url("migrate"), CONNECTION_NAME) as parking:
        async for delivery in parking.messages():
            message = describe(delivery)
            if message.id.startswith(prefix):
                _count_copy(by_id, message)
                deliveries.setdefault(message.id, delivery)
            advance(1)
    if by_id:
        id_ = _only_one(list(by_id), prefix)
        return Details(by_id[id_], deliveries[id_].body, dict(deliveries[id_].headers), [])

    async with connections.connection(
        settings, "migrate", read_timeout_s=READ_TIMEOUT_S
    ) as connection:
        entries = await parking_log.find(connection, prefix)
        id_ = _only_one(sorted({entry.id for entry in entries}), prefix)
        body = await parking_log.body_of(connection, id_)
    last = entries[-1]
    trouble = decode_parked(body, last.whole)[1] if body is not None else "its bytes were erased"
    as_parked = Parked(id_, last.reason, None, last.whole, last.size, trouble)
    return Details(ParkedMessage(as_parked, last.copies), body, {}, entries)


async def read_log(settings: Settings, limit: int) -> list[Entry]:
    """The last entries of the log, the oldest first."""
    async with connections.connection(
        settings, "migrate", read_timeout_s=READ_TIMEOUT_S
    ) as connection:
        return await parking_log.newest(connection, limit)


async def choose(
    settings: Settings, prefixes: Sequence[str], reason: str | None, advance: Advance
) -> list[ParkedMessage]:
    """The messages with these prefixes of ids or, without any, those whose reason matches a glob.

    They come in the order of the queue. Raises NotParked, AmbiguousId, ParkingBusy.
    """
    messages = (await survey(settings, advance)).messages
    if not prefixes:
        return [m for m in messages if fnmatchcase(m.parked.reason, reason or "*")]
    ids = [message.parked.id for message in messages]
    chosen = {_only_one([id_ for id_ in ids if id_.startswith(p)], p) for p in prefixes}
    return [message for message in messages if message.parked.id in chosen]


def _only_one(ids: Sequence[str], prefix: str) -> str:
    if not ids:
        raise NotParked(f"no parked message has the id {prefix}: `ledger parked list` shows all")
    if len(ids) > 1:
        longer = ", ".join(id_[: len(prefix) + MORE_DIGITS] for id_ in ids[:MAX_NAMED])
        raise AmbiguousId(f"{len(ids)} messages have an id like {prefix}: give more of {longer}")
    return ids[0]


def _count_copy(by_id: dict[str, ParkedMessage], message: Parked) -> None:
    entry = by_id.setdefault(message.id, ParkedMessage(message, 0))
    entry.copies += 1
    # The same bytes may be readable as a whole message and not as one event, or the reverse.
    if entry.parked.trouble and not message.trouble:
        entry.parked = message


async def remove(
    settings: Settings,
    action: Action,
    messages: Sequence[ParkedMessage],
    advance: Advance,
    done: dict[str, int],
) -> None:
    """Resubmit messages, in the order they were parked in, or discard them.

    `done` counts the copies of each message that left the queue, by its id. Raises MessageTooLarge,
    before anything is done, where the log can't take a message; InboxUnavailable, ParkingBusy.
    """
    url = settings.amqp_url("migrate")
    wanted = {message.parked.id: message.parked for message in messages}
    left = sum(message.copies for message in messages)
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(
            connections.engine(settings, "migrate", read_timeout_s=READ_TIMEOUT_S)
        )
        async with engine.connect() as connection:
            largest = max((message.parked.size for message in messages), default=0)
            await parking_log.refuse_too_large(connection, largest)
        inbox = None
        if action == "resubmitted":
            # Not on the queue's connection: a broker in need stops reading from who publishes.
            channel = await stack.enter_async_context(
                open_channel(url, f"{CONNECTION_NAME}-publisher", confirms=True)
            )
            async with asyncio.timeout(CALL_TIMEOUT_S):
                inbox = await channel.get_exchange(SUBMITTED_EXCHANGE)
        while left > 0:
            # Opened again for each HELD_BYTES of messages.
            async with open_parking(url, CONNECTION_NAME) as parking:
                deliveries = await _deliveries(parking, wanted, left)
                for begin in range(0, len(deliveries), BATCH):
                    batch = deliveries[begin : begin + BATCH]
                    removable: list[Delivery] = []
                    try:
                        for delivery in batch:
                            if inbox:
                                body = inbox_body(delivery.body, delivery.parked.whole)
                                await publish(inbox, body, CONNECTION_NAME)
                            removable.append(delivery)
                    finally:
                        # What the inbox has is logged and acked, even if the next message fails.
                        if removable:
                            await _log_and_ack(engine, parking, action, removable)
                        for delivery in removable:
                            id_ = delivery.parked.id
                            done[id_] = done.get(id_, 0) + len(delivery.copies)
                    advance(len(batch))
            if not deliveries:
                return
            left -= sum(len(delivery.copies) for delivery in deliveries)


async def _log_and_ack(
    engine: AsyncEngine, parking: Parking, action: Action, batch: Sequence[Delivery]
) -> None:
    logged_at_us, by = now_us(), operator()
    rows = []
    for delivery in batch:
        message, copies = delivery.parked, len(delivery.copies)
        entry = Entry(
            logged_at_us,
            action,
            by,
            message.id,
            message.reason,
            message.whole,
            copies,
            message.size,
        )
        rows.append((entry, delivery.body))
    await failpoint("parked.before-log")
    async with engine.begin() as connection:
        await parking_log.append(connection, rows)
    await failpoint("parked.before-ack")
    await parking.ack(chain.from_iterable(delivery.copies for delivery in batch))


async def _deliveries(parking: Parking, wanted: dict[str, Parked], limit: int) -> list[Delivery]:
    """The oldest `limit` copies of wanted messages, or fewer where HELD_BYTES hold no more."""
    deliveries: dict[str, Delivery] = {}
    held = 0
    async for message in parking.messages():
        # To the end even so: only a reader of all leaves the rest in order (see `parking`).
        if held >= HELD_BYTES or limit <= 0:
            continue
        parked_as = wanted.get(id_of(message.body))
        if parked_as:
            delivery = deliveries.setdefault(parked_as.id, Delivery(parked_as, message.body, []))
            delivery.copies.append(message)
            held += len(message.body)
            limit -= 1
    return list(deliveries.values())


def operator() -> str:
    """Who runs this command, as the operating system names them: user@host."""
    number = os.getuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:
        name = str(number)
    return f"{name}@{socket.gethostname()}"[:MAX_OPERATOR]
