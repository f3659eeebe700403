"""Taking messages off the parking queue: submitted again or discarded, and always recorded first.

A crash before the record is committed leaves a message as it was, perhaps submitted already; one
before the ack leaves it recorded and parked. Either way the operator does it again, which the ids
of events make harmless and a second row in the record makes visible.
"""

import asyncio
import os
import pwd
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import chain, islice
from typing import Final

from aio_pika.abc import AbstractExchange, AbstractIncomingMessage
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from cli.parked_found import CONNECTION, Found, Moved, recording
from cli.settings import Settings
from ledger.messaging import parking_log
from ledger.messaging.parking import Parked, Parking, for_inbox, id_of, open_parking
from ledger.messaging.parking_log import Action, Entry
from ledger.messaging.publisher import SUBMIT_TIMEOUT_S, InboxUnavailable, publish
from ledger.messaging.rabbitmq import CALL_TIMEOUT_S, open_channel
from ledger.messaging.topology import SUBMITTED_EXCHANGE
from ledger.runtime.failpoints import failpoint
from ledger.runtime.timestamps import now_us

HELD_BYTES: Final = 32 * 2**20
"""What is held in memory at once of what is to leave the queue, and one message more."""

TOGETHER: Final = 100
MAX_OPERATOR: Final = 320


class Taken(Struct):
    """A message with all its copies, in the operator's hands."""

    parked: Parked
    body: bytes
    messages: list[AbstractIncomingMessage]


Act = Callable[[Parking, Sequence[Taken]], Awaitable[None]]


class Record:
    """Takes messages off the queue, never before it is recorded what became of them."""

    def __init__(self, engine: AsyncEngine, action: Action) -> None:
        self._engine = engine
        self._action = action
        self._operator = operator()
        self.done: dict[str, int] = {}
        """The copies of each message that left the queue, by its id."""

    async def take_off(self, parking: Parking, taken: Sequence[Taken]) -> None:
        """Record what was, or is to be, done with messages; then ack them."""
        if not taken:
            return
        await failpoint("parked.before-log")
        async with self._engine.begin() as connection:
            await parking_log.append(connection, [(self._entry(each), each.body) for each in taken])
        await failpoint("parked.before-ack")
        await parking.ack(chain.from_iterable(each.messages for each in taken))
        for each in taken:
            self.done[each.parked.id] = self.done.get(each.parked.id, 0) + len(each.messages)

    def _entry(self, taken: Taken) -> Entry:
        parked = taken.parked
        return Entry(
            now_us(),
            self._action,
            self._operator,
            parked.id,
            parked.reason,
            parked.whole,
            len(taken.messages),
            parked.size,
        )


@asynccontextmanager
async def open_record(
    settings: Settings, action: Action, chosen: Sequence[Found]
) -> AsyncIterator[Record]:
    """The record, found able to take what was chosen; raises MessageTooLarge."""
    async with recording(settings) as engine:
        async with engine.connect() as connection:
            largest = max((each.parked.size for each in chosen), default=0)
            await parking_log.refuse_too_large(connection, largest)
        yield Record(engine, action)


async def discard(
    settings: Settings, record: Record, chosen: Sequence[Found], moved: Moved
) -> None:
    """Take messages off the queue, with their bytes in the record; raises ParkingBusy."""
    await _work_through(settings, chosen, record.take_off, moved)


async def resubmit(
    settings: Settings, record: Record, chosen: Sequence[Found], moved: Moved
) -> None:
    """Put messages into the inbox, in the order in which they were parked, then take them off.

    Raises InboxUnavailable, ParkingBusy.
    """
    url = settings.amqp_url("migrate")
    # Apart from the queue's connection: a broker in need stops reading from who publishes.
    async with open_channel(url, f"{CONNECTION}-publisher", confirms=True) as channel:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            exchange = await channel.get_exchange(SUBMITTED_EXCHANGE)

        async def act(parking: Parking, taken: Sequence[Taken]) -> None:
            submitted: list[Taken] = []
            try:
                for each in taken:
                    await _submit(exchange, each)
                    submitted.append(each)
            finally:
                await record.take_off(parking, submitted)

        await _work_through(settings, chosen, act, moved)


async def _submit(exchange: AbstractExchange, taken: Taken) -> None:
    try:
        error = await publish(exchange, for_inbox(taken.body, taken.parked.whole), CONNECTION)
    except TimeoutError:
        raise InboxUnavailable(f"no confirm within {SUBMIT_TIMEOUT_S} s") from None
    if error:
        raise error


async def _work_through(
    settings: Settings, chosen: Sequence[Found], act: Act, moved: Moved
) -> None:
    """Act on all copies of the chosen messages, on as many at a time as memory holds."""
    wanted = {each.parked.id: each.parked for each in chosen}
    left = sum(each.copies for each in chosen)
    while left > 0:
        async with open_parking(settings.amqp_url("migrate"), CONNECTION) as parking:
            taken = await _take(parking, wanted, left)
            for some in _batches(taken):
                await act(parking, some)
                moved(len(some))
        if not taken:
            return
        left -= sum(len(each.messages) for each in taken)


async def _take(parking: Parking, wanted: dict[str, Parked], most: int) -> list[Taken]:
    """The oldest `most` wanted messages, or fewer where HELD_BYTES hold no more."""
    taken: dict[str, Taken] = {}
    held = 0
    async for message in parking.messages():
        if held >= HELD_BYTES or most <= 0:
            continue
        parked = wanted.get(id_of(message.body))
        if parked:
            one = taken.setdefault(parked.id, Taken(parked, message.body, []))
            one.messages.append(message)
            held += len(message.body)
            most -= 1
    return list(taken.values())


def _batches(taken: Sequence[Taken]) -> Iterator[list[Taken]]:
    rest = iter(taken)
    while some := list(islice(rest, TOGETHER)):
        yield some


def operator() -> str:
    """Who runs this command, as the operating system knows them: user@host."""
    number = os.getuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:
        name = str(number)
    return f"{name}@{socket.gethostname()}"[:MAX_OPERATOR]
