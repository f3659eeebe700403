"""Ledgers that are verified: filled, damaged, put right again, and forged."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from msgspec import structs

from cli.commands.verify import Verified, check
from cli.settings import Settings
from ledger.eventlog.records import Record, Submitted, VerificationFailed
from projections.views.registry import PROJECTIONS
from tests.ledger.pipeline import Ledger, running_ledger
from tests.projections.view_rows import advance_to_the_end
from tests.submissions import INK, cancel, credit, event_of, history, opening, order, product

TABLES = ("events", "ledger_head", "checkpoints", *(view.name for view in PROJECTIONS))


def events() -> list[list[Submitted]]:
    """Batches with two customers' worth of everything, and an atomic batch that fails."""
    atomic_id, first = uuid4(), uuid4()
    together = [event_of(order(1, at=uuid4())), event_of(order(10**6, at=uuid4()))]
    return [
        [*opening(), event_of(product(500, 9, INK))],
        [event_of(order(2, at=first)), event_of(cancel(first)), event_of(cancel(first))],
        history(31, 60),
        [structs.replace(event, atomic_id=atomic_id) for event in together],
        [event_of(credit(500))],
    ]


@asynccontextmanager
async def filled(
    settings: Settings, *batches: Sequence[Submitted], with_triggers: bool = False
) -> AsyncIterator[Ledger]:
    """A ledger that a real writer wrote, with its views; whoever has every right may change it.

    Not `with_triggers`, which keep it as it is.
    """
    async with running_ledger(settings) as ledger:
        await ledger.write(*(batches or events()))
        await project(ledger)
        if not with_triggers:
            for name in ("events_no_delete", "events_no_update"):
                await ledger.execute(f"DROP TRIGGER {name}")
        yield ledger


async def project(ledger: Ledger) -> None:
    """Bring the views to the head."""
    async with ledger.connection("projector") as connection:
        await advance_to_the_end(connection)


async def verified(ledger: Ledger, **options: Any) -> Verified:
    """What verify says of a ledger that is right."""
    return await check(ledger.settings, **options)


async def wrong(ledger: Ledger, **options: Any) -> VerificationFailed:
    """What verify finds."""
    with pytest.raises(VerificationFailed) as raised:
        await check(ledger.settings, **options)
    return raised.value


@asynccontextmanager
async def damaged(ledger: Ledger, *statements: str) -> AsyncIterator[None]:
    """Tables that were changed, and are put right again in the end."""
    for table in TABLES:
        await ledger.execute(f"CREATE TABLE kept_{table} AS SELECT * FROM {table}")
    try:
        for statement in statements:
            await ledger.execute(statement)
        yield
    finally:
        for table in TABLES:
            await ledger.execute(f"DELETE FROM {table}")
            await ledger.execute(f"INSERT INTO {table} SELECT * FROM kept_{table}")
            await ledger.execute(f"DROP TABLE kept_{table}")


async def rewrite(ledger: Ledger, records: Sequence[Record]) -> None:
    """Put other records in the place of all, with head and views made to fit."""
    for table in ("events", *(view.name for view in PROJECTIONS)):
        await ledger.execute(f"DELETE FROM {table}")
    columns = Record.__struct_fields__
    async with ledger.engine("migrate").begin() as connection:
        await connection.exec_driver_sql(
            f"INSERT INTO events ({', '.join(columns)}) VALUES ({', '.join(['%s'] * 12)})",
            [structs.astuple(record) for record in records],
        )
    await ledger.execute(
        "UPDATE ledger_head SET position = %s, hash = %s",
        "migrate",
        records[-1].position,
        records[-1].hash,
    )
    await ledger.execute("UPDATE checkpoints SET position = 0")
    await project(ledger)
