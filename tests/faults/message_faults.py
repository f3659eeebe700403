"""Messages that come twice, in another order, long after, or that no one can read."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import groupby
from random import Random
from typing import Final
from uuid import uuid4

from aio_pika.abc import AbstractIncomingMessage

from ledger.eventlog.codec import decode_submitted, encode_group, encode_submitted, origin_of
from ledger.eventlog.records import Record
from ledger.messaging.rabbitmq import CALL_TIMEOUT_S, Connection, subscribe
from ledger.messaging.topology import SUBMITTED_EXCHANGE
from tests.faults.fault import add
from tests.faults.world import World

MAX_CAPTURED: Final = 500
MAX_BODY: Final = 16 * 1024 * 1024


async def duplicated(world: World, chance: Random, seconds: float) -> None:
    """Every message comes again at once, before it can be decided."""
    async with captured(world) as messages:
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            again = [messages.popleft() for _ in range(len(messages))]
            await offer(world, "at once", sum(len(json.loads(body)) for body in again), again)
            await asyncio.sleep(0.01)


async def shuffled(world: World, chance: Random, seconds: float) -> None:
    """What was decided lately comes again, in other groups and in any order."""
    for _ in range(5):
        await asyncio.sleep(seconds / 5)
        groups = (await decided(world))[-100:]
        chance.shuffle(groups)
        await offer_again(world, "shuffled", regrouped(groups, chance))


async def replayed(world: World, chance: Random, seconds: float) -> None:
    """All that was ever submitted comes again, in its order."""
    groups = await decided(world)
    await offer_again(world, "replayed", regrouped(groups, chance))
    await asyncio.sleep(seconds)


async def decided(world: World) -> list[list[bytes]]:
    """The submitted events of the ledger as they came; what is all or none stays together."""
    keys = await world.ledger.keys()
    records = [each for each in await world.ledger.records() if each.cause_position == 0]
    together = groupby(records, key=lambda each: origin_of(each).atomicid or each.event_id)
    return [[submitted(record, keys) for record in group] for _, group in together]


def submitted(record: Record, keys: Mapping[bytes, bytes | None]) -> bytes:
    """An event as it came."""
    return encode_submitted(decode_submitted(record, keys), None)


def regrouped(groups: Sequence[list[bytes]], chance: Random) -> list[list[bytes]]:
    """The same, a few of them a message."""
    made: list[list[bytes]] = []
    for group in groups:
        if made and chance.random() < 0.8:
            made[-1] += group
        else:
            made.append(list(group))
    return made


@asynccontextmanager
async def captured(world: World) -> AsyncIterator[deque[bytes]]:
    """What is submitted from now on."""
    messages: deque[bytes] = deque(maxlen=MAX_CAPTURED)

    async def hear(message: AbstractIncomingMessage) -> None:
        messages.append(message.body)

    url = world.settings.amqp_url("migrate")
    async with Connection(url, "faults").channel(confirms=False) as channel:
        await subscribe(channel, "faults", SUBMITTED_EXCHANGE, hear, MAX_CAPTURED)
        yield messages


async def offer_again(world: World, how: str, groups: Sequence[Sequence[bytes]]) -> None:
    """Put events into the inbox that were decided before."""
    await offer(world, how, sum(map(len, groups)), [encode_group(group) for group in groups])


async def offer(world: World, how: str, duplicates: int, bodies: Sequence[bytes]) -> None:
    """Put messages into the inbox that hold so many events which were there before."""
    async with asyncio.timeout(len(bodies) * CALL_TIMEOUT_S + CALL_TIMEOUT_S):
        await world.ledger.put(*bodies)
    world.history.offered[how] += duplicates


def element(**changes: object) -> bytes:
    """An element of a group that can't be read."""
    fields = {
        "specversion": '"1.0"',
        "id": f'"{uuid4()}"',
        "source": '"/faults"',
        "type": '"order.placed"',
        "subject": f'"{uuid4()}"',
        "time": '"2030-01-01T00:00:00Z"',
        "data": f'{{"customer_id":"{uuid4()}","product_id":"{uuid4()}"}}',
    } | {name: str(value) for name, value in changes.items()}
    return ("{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}").encode()


def unreadable_elements() -> list[bytes]:
    """Elements with one thing wrong each."""
    order = f'"customer_id":"{uuid4()}","product_id":"{uuid4()}"'
    return [
        b"1",
        b'"text"',
        b"{}",
        element(specversion='"0.3"'),
        element(schemaversion=99),
        element(schemaversion=0),
        element(schemaversion=-(10**30)),
        element(type='"order.eaten"'),
        element(type='"order.completed"'),
        element(time='"yesterday"'),
        element(time='"0001-01-01T00:00:00+23:59"'),
        element(id='"not a uuid"'),
        element(id='"018f0000-0000-8000-8000-000000000000"'),
        element(data=f'{{{order},"quantity":{10**40}}}'),
        element(data=f'{{{order},"quantity":1e999}}'),
        element(data=f'{{{order},"quantity":-1}}'),
        element(data=f'{{{order},"price":1}}'),
        element(type='"wallet.credited"', data='{"amount_minor":1.5}'),
        element(type='"customer.registered"', data='{"username":""}'),
        element(type='"wallet.credited"', data='{"amount_minor":5}', atomicid=f'"{uuid4()}"'),
    ]


def unreadable_bodies() -> list[bytes]:
    """Messages that are no groups at all."""
    return [
        b"",
        b"\xff\xfe\x00",
        b"not json",
        b"{}",
        b"[1,",
        b"[" * 100_000,
        b"[" + b"9" * 10_000,
        uuid4().bytes,
        encode_group([element(data='"\\ud800"')]),
        b"x" * MAX_BODY,
    ]


async def poisoned(world: World, chance: Random, seconds: float) -> None:
    """What no one can read stands between what was decided before; it is parked, the rest not."""
    known = (await decided(world))[-20:]
    for bad in unreadable_elements():
        first, last = chance.choice(known), chance.choice(known)
        world.planted.add(bad)
        group = [*first, bad, *last]
        await offer(world, "beside poison", len(group) - 1, [encode_group(group)])
    bodies = unreadable_bodies()
    world.planted |= set(bodies)
    await offer(world, "beside poison", 0, bodies)
    await asyncio.sleep(seconds)


add("messages:duplicated", duplicated, alone=True)
add("messages:shuffled", shuffled, alone=True)
add("messages:replayed", replayed, alone=True)
add("poison", poisoned, alone=True)
