"""Upper limits: each part alone, without the ledger's work, on the same machine in the same run."""

import asyncio
import sys
import time
from collections.abc import Sequence
from itertools import islice
from subprocess import DEVNULL, Popen
from typing import Final
from uuid import uuid4

import httpx
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractExchange
from sqlalchemy.ext.asyncio import AsyncConnection

from bench.history import Shop
from bench.loads import closed
from bench.system import System
from ledger.core.decider import Fold
from ledger.eventlog.codec import encode_group, encode_submitted
from ledger.eventlog.decisions import compose
from ledger.eventlog.encryption import CustomerKeys
from ledger.eventlog.reader import EventReader
from ledger.eventlog.records import EMPTY, Record, Submitted
from ledger.eventlog.store import Store
from ledger.messaging.publisher import IN_FLIGHT
from ledger.messaging.rabbitmq import Connection
from ledger.messaging.topology import INBOX, SUBMITTED_EXCHANGE
from tests.harness import eventually, free_port

MEASURED_S: Final = 4


def history(count: int, seed: int = 5) -> list[Submitted]:
    """Submitted events of a made-up shop, its catalogue among them."""
    return list(islice(Shop(seed, 100, 50, 1_000_000).events(), count))


async def answering() -> float:
    """Requests a second that the API's HTTP server answers with no work behind it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = Popen(  # noqa: ASYNC220  # it returns at once
        [sys.executable, "-m", "bench.empty_server", str(port)], stdin=DEVNULL
    )
    try:

        async def serves() -> bool:
            async with httpx.AsyncClient() as http:
                try:
                    return (await http.post(url)).status_code == 202
                except httpx.TransportError:
                    return False

        await eventually(serves, "the server answers")
        customers = products = str(uuid4())
        return (await closed(url, "orders.lua", MEASURED_S, "1", customers, products)).per_s
    finally:
        process.terminate()
        process.wait(10)


async def publishing(system: System, group_events: int) -> float:
    """Events a second through confirmed publishes of groups, as many in flight as the API has."""
    url = system.settings.amqp_url("api")
    body = encode_group(encode_submitted(event, "/bench") for event in history(group_events))
    async with Connection(url, "bench").channel(confirms=True) as channel:
        exchange = await channel.get_exchange(SUBMITTED_EXCHANGE)
        end = time.perf_counter() + MEASURED_S
        sent = await asyncio.gather(*(_publish(exchange, body, end) for _ in range(IN_FLIGHT)))
    await purge(system)
    return group_events * sum(sent) / MEASURED_S


async def _publish(exchange: AbstractExchange, body: bytes, end: float) -> int:
    sent = 0
    while time.perf_counter() < end:
        message = Message(body, delivery_mode=DeliveryMode.PERSISTENT)
        await exchange.publish(message, routing_key="", mandatory=True)
        sent += 1
    return sent


async def purge(system: System) -> None:
    """Empty the inbox."""
    url = system.settings.amqp_url("migrate")
    async with Connection(url, "bench").channel(confirms=False) as channel:
        await (await channel.declare_queue(INBOX, passive=True)).purge()


async def appending(system: System, batch_events: int, count: int = 40_000) -> float:
    """Events a second of bare batches appended to an empty ledger: rows that are ready, no fold."""
    records = _records(history(count // 2))
    batches = [records[n : n + batch_events] for n in range(0, len(records), batch_events)]
    async with system.engine("writer") as engine, engine.connect() as connection:
        store = Store(connection)
        head = await store.raise_epoch()
        began = time.perf_counter()
        for batch in batches:
            head = await store.append(head, batch)
        return len(records) / (time.perf_counter() - began)


def _records(events: Sequence[Submitted]) -> list[Record]:
    return compose(events, Fold(), EMPTY, {}, events[-1].occurred_at_us, CustomerKeys({})).records


async def paging(connection: AsyncConnection) -> float:
    """Events a second of a ledger that is read page by page and thrown away."""
    reader = EventReader(connection)
    head = await reader.head()
    began = time.perf_counter()
    async for _ in reader.pages(0, head.position):
        pass
    return head.position / (time.perf_counter() - began)
