"""Each part alone: the writer on a full inbox, the projector on a full ledger, the pure fold."""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Final
from uuid import uuid4

import psutil
from aio_pika import DeliveryMode, Message
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.ceilings import history
from bench.fill import fill
from bench.history import Shop
from bench.system import ENOUGH_MINOR, System, WrongResult
from ledger.core.decider import CustomerState, Fold, ProductState
from ledger.eventlog import snapshots
from ledger.eventlog.codec import encode_group, encode_submitted
from ledger.messaging.rabbitmq import Connection
from ledger.messaging.topology import SUBMITTED_EXCHANGE
from tests.harness import environment, eventually

GROUP_EVENTS: Final = 50
DONE_TIMEOUT_S: Final = 300
SOME_EVENTS: Final = 1_000


def fold(events: int = 100_000) -> float:
    """Submitted events a second that the pure fold decides, with no I/O at all."""
    submitted = history(events)
    folding = Fold()
    began = time.perf_counter()
    for event in submitted:
        folding.decide_and_apply(event.stream_id, event.payload)
    return len(submitted) / (time.perf_counter() - began)


async def writing(system: System, submitted: int = 60_000) -> float:
    """Events a second that a writer records which finds a full inbox, in groups as the API's."""
    await fill_inbox(system, submitted)
    system.stack.start("writer")
    async with system.engine() as engine:
        return await _rate(engine, "SELECT position FROM ledger_head", submitted)


async def fill_inbox(system: System, submitted: int) -> None:
    """Put a made-up history into the inbox."""
    events = history(submitted)
    url = system.settings.amqp_url("api")
    async with Connection(url, "bench").channel(confirms=True) as channel:
        exchange = await channel.get_exchange(SUBMITTED_EXCHANGE)
        for first in range(0, submitted, GROUP_EVENTS):
            group = events[first : first + GROUP_EVENTS]
            body = encode_group(encode_submitted(event, "/bench") for event in group)
            message = Message(body, delivery_mode=DeliveryMode.PERSISTENT)
            await exchange.publish(message, routing_key="")


async def projecting(system: System, events: int) -> float:
    """Events a second that a projector shows which finds a full ledger and empty views."""
    system.stack.start("projector")
    async with system.engine() as engine:
        return await _rate(engine, "SELECT MIN(position) FROM checkpoints", events)


async def _rate(engine: AsyncEngine, query: str, enough: int) -> float:
    """Positions a second, from the first move of the position until it stays at the end."""
    began: list[tuple[float, int]] = []

    async def reached() -> tuple[float, int] | None:
        position = await _number(engine, query)
        if position:
            began.append((time.perf_counter(), position))
        return began[-1] if position >= enough and _stands(began) else None

    await eventually(reached, f"{query} is past {enough}", DONE_TIMEOUT_S)
    first = began[0]
    end = next(point for point in began if point[1] == began[-1][1])
    return (end[1] - first[1]) / (end[0] - first[0])


def _stands(points: list[tuple[float, int]], for_s: float = 0.5) -> bool:
    at, position = points[-1]
    return any(time_ <= at - for_s and position_ == position for time_, position_ in points)


async def _number(engine: AsyncEngine, query: str) -> int:
    async with engine.connect() as connection:
        return int((await connection.exec_driver_sql(query)).scalar_one())


async def starting(system: System) -> float:
    """Seconds until a writer that starts from a snapshot knows the ledger."""
    async with system.engine("writer") as engine, engine.connect() as connection:
        began = time.perf_counter()
        await snapshots.load(connection)
        return time.perf_counter() - began


async def populous(system: System, customers: int, products: int) -> int:
    """Bytes of memory of a writer at work that holds so many customers and products.

    They come from a snapshot made up here: to record them all would take minutes.
    """
    position = await filled(system, 100)
    async with system.engine("writer") as engine:
        async with engine.connect() as connection:
            known = await snapshots.load(connection)
        held = known.fold
        held.customers.update((uuid4(), CustomerState(ENOUGH_MINOR + n)) for n in range(customers))
        held.products.update((uuid4(), ProductState(1 + n, n, n)) for n in range(products))
        await snapshots.save(engine, known.take_snapshot())
        await fill_inbox(system, SOME_EVENTS)
        system.stack.start("writer")
        await _rate(engine, "SELECT position FROM ledger_head", position + SOME_EVENTS)
    return psutil.Process(system.stack.processes["writer"].pid).memory_info().rss


async def filled(system: System, events: int) -> int:
    """Load a made-up history into the empty ledger; its position then."""
    shop = Shop(1, customers=2_000, products=200, span_us=1_000_000)
    async with system.engine("writer") as engine:
        return await fill(engine, shop.events(), events, system.settings.snapshot_every)


async def command(system: System, *arguments: str) -> tuple[float, bytes]:
    """Seconds that a `ledger` command takes, its start included, and what it says.

    Raises WrongResult if it fails.
    """
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("ledger"),
        *arguments,
        env=os.environ | environment(system.settings),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), DONE_TIMEOUT_S)
    if process.returncode:
        raise WrongResult(f"ledger {' '.join(arguments)}: {(output + errors).decode()[-500:]}")
    return time.perf_counter() - began, output
