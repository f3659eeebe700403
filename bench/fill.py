"""Loads a made-up history straight into an empty ledger, as its writer would have recorded it.

Run it as `python -m bench.fill EVENTS`, with the settings of the ledger in the environment.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from random import Random
from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bench.history import Shop
from cli.console import progress, read_settings, run
from ledger.eventlog import snapshots
from ledger.eventlog.composer import Composer, order_streams
from ledger.eventlog.decisions import recall_orders
from ledger.eventlog.encryption import KEY_BYTES, CustomerKeys, customers_needing_keys
from ledger.eventlog.reader import EventReader
from ledger.eventlog.records import Submitted
from ledger.eventlog.store import Store
from ledger.runtime.database import make_engine
from ledger.writer import LedgerState, load, take_over

BATCH_EVENTS = 2_000
DELAY_US = 5_000


class NotEmpty(Exception):
    """The ledger holds events already: a made-up history needs one of its own."""


async def fill(
    engine: AsyncEngine,
    events: Iterable[Submitted],
    count: int,
    snapshot_every: int,
    batch_events: int = BATCH_EVENTS,
    moved: Callable[[int], None] = lambda more: None,
) -> int:
    """Record submitted events until the ledger has at least `count` events; its position then.

    Each batch is recorded DELAY_US after its last event occurred; so the same history makes the
    same ledger, hash for hash: even the customers' encryption keys are the same. Raises NotEmpty.
    """
    submitted = iter(events)
    async with engine.connect() as connection:
        known = await load(connection)
        if known.head.position:
            raise NotEmpty(f"the ledger is at position {known.head.position}, not at 0")
        await take_over(connection, known)
        while known.head.position < count:
            before = known.head.position
            await _record(connection, known, list(islice(submitted, batch_events)))
            moved(known.head.position - before)
            if known.head.position - known.snapshot_position >= snapshot_every:
                await _snapshot(engine, known)
    return known.head.position


async def _record(connection: AsyncConnection, known: LedgerState, events: list[Submitted]) -> None:
    reader, store = EventReader(connection), Store(connection)
    event_ids = [event.event_id.bytes for event in events]
    _, versions = await store.duplicates_and_versions(
        event_ids, {event.stream_id.bytes for event in events}
    )
    histories = await reader.streams(order_streams(known.fold, versions))
    recall_orders(known.fold, histories.values())
    known.recorded_at_us = at_us = events[-1].occurred_at_us + DELAY_US
    head = known.head
    random = Random(head.position)
    stored = await reader.encryption_keys(customers_needing_keys(events))
    keys = CustomerKeys(stored, lambda: random.randbytes(KEY_BYTES))
    composer = Composer(known.fold, head.position, head.hash, versions, at_us, keys)
    composer.add(events)
    known.head = await store.append(head, composer.records, keys)
    known.fold.orders.clear()


async def _snapshot(engine: AsyncEngine, known: LedgerState) -> None:
    head = known.head
    taken = snapshots.snapshot_of(known.fold, head.position, head.hash, known.recorded_at_us)
    await snapshots.save(engine, taken)
    known.snapshot_position = head.position


def main(
    events: Annotated[int, typer.Argument(min=1, help="events the ledger shall have")],
    customers: Annotated[int, typer.Option(min=1)] = 2_000,
    products: Annotated[int, typer.Option(min=1)] = 200,
    days: Annotated[float, typer.Option(min=0.001, help="time that the history spans")] = 30,
    seed: int = 1,
) -> None:
    """Fill the empty ledger of the settings with a made-up history."""
    config = read_settings()
    span_us = int(days * 86_400e6 * 1.85 / events)

    async def work(moved: Callable[[int], None]) -> int:
        engine = make_engine(config.db_url("writer"), config.db_ca_file)
        try:
            history = Shop(seed, customers, products, span_us).events()
            return await fill(engine, history, events, config.snapshot_every, moved=moved)
        finally:
            await engine.dispose()

    with progress("filling", events) as moved:
        typer.echo(f"the ledger is at position {run(work(moved))}")


if __name__ == "__main__":
    typer.run(main)
