"""Loads a made-up history straight into an empty ledger, as its writer would have recorded it.

Run it as `python -m bench.fill EVENTS`, with the settings of the ledger in the environment.
"""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from random import Random
from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.history import Shop
from cli.console import progress, read_settings, run
from ledger.eventlog import snapshots
from ledger.eventlog.encryption import KEY_BYTES
from ledger.eventlog.records import Submitted
from ledger.eventlog.snapshots import load
from ledger.runtime.database import make_engine
from ledger.writer import append_new, take_over

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
            batch = list(islice(submitted, batch_events))
            make_key = partial(Random(before).randbytes, KEY_BYTES)
            at_us = batch[-1].occurred_at_us + DELAY_US
            await append_new(connection, known, batch, at_us, make_key)
            moved(known.head.position - before)
            if known.head.position - known.snapshot_position >= snapshot_every:
                await snapshots.save(engine, known.take_snapshot())
    return known.head.position


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
        engine = make_engine(
            config.db_url("writer"), config.db_ca_file, snapshot_key=config.snapshot_key()
        )
        try:
            history = Shop(seed, customers, products, span_us).events()
            return await fill(engine, history, events, config.snapshot_every, moved=moved)
        finally:
            await engine.dispose()

    with progress("filling", events) as moved:
        typer.echo(f"the ledger is at position {run(work(moved))}")


if __name__ == "__main__":
    typer.run(main)
