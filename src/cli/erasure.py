"""Erasing a customer's name: what the ledger has of it, and what is left of it afterwards."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid5

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from cli.settings import Settings
from cli.submitting import submit, until_shown
from ledger.core.events import TYPE_OF, CustomerErased
from ledger.eventlog.encryption import REGISTERED, SEALED_VERSION
from ledger.eventlog.records import Submitted
from ledger.eventlog.store import Store
from ledger.runtime.database import make_engine
from ledger.runtime.timestamps import from_us, now_us
from projections.queries import Views
from projections.table_swap import OLD, SHADOW, existing_tables
from projections.views.wallets import ERASED, WALLETS

SOURCE: Final = "/erase-customer"
BESIDE: Final = (WALLETS.name + SHADOW, WALLETS.name + OLD)
"""What a rebuild of the wallets leaves beside the view, and no projector brings further."""
_NAMESPACE: Final = UUID("0b5b6b0e-52f7-5d0c-8a55-9f6b7c1f1c3e")


class NoSuchCustomer(Exception):
    """No customer was ever registered under this id."""


class Found(Struct, frozen=True):
    """What there is of a customer's name.

    `erasures` are positions and recorded times; `plain_positions` are those of records that were
    written before names were sealed.
    """

    erasures: list[tuple[int, int]]
    plain_positions: list[int]
    has_key: bool
    username: str | None

    @property
    def is_erased(self) -> bool:
        """Whether there is nothing left to do."""
        return bool(self.erasures) and not self.has_key and self.username == ERASED


class Erasure(Struct, frozen=True):
    """A name that is erased; `new` unless it was so already."""

    customer_id: UUID
    position: int
    erased_at: datetime
    new: bool
    plain_positions: list[int]


async def look_up(settings: Settings, customer_id: UUID) -> Found:
    """What there is of the name; raises NoSuchCustomer."""
    async with _reading(settings) as engine:
        return await _look_up(engine, customer_id)


async def erase(settings: Settings, customer_id: UUID) -> Erasure:
    """Erase the name and wait until that is recorded and shown.

    What is done already is not done again. A key that came back since, from a backup, is destroyed
    by one more event. What a rebuild left beside the view is erased too. Raises NoSuchCustomer,
    InboxUnavailable, NotShown.
    """
    async with _reading(settings) as engine:

        async def is_erased() -> bool:
            return (await _look_up(engine, customer_id)).is_erased

        before = await _look_up(engine, customer_id)
        new = before.has_key or not before.erasures
        if new:
            event_id = uuid5(_NAMESPACE, f"{customer_id} {len(before.erasures)}")
            event = Submitted(event_id, customer_id, now_us(), CustomerErased())
            await submit(settings, SOURCE, [event], is_erased)
        else:
            await until_shown(is_erased)
        found = await _look_up(engine, customer_id)
    await _erase_beside(settings, customer_id)
    position, erased_at_us = found.erasures[-1]
    return Erasure(customer_id, position, from_us(erased_at_us), new, found.plain_positions)


async def _erase_beside(settings: Settings, customer_id: UUID) -> None:
    engine = make_engine(settings.db_url("migrate"), settings.db_ca_file)
    try:
        async with engine.begin() as connection:
            for table in await existing_tables(connection, BESIDE):
                await connection.exec_driver_sql(
                    f"UPDATE {table} SET username = %s WHERE customer_id = %s",
                    (ERASED, customer_id.bytes),
                )
    finally:
        await engine.dispose()


@asynccontextmanager
async def _reading(settings: Settings) -> AsyncIterator[AsyncEngine]:
    engine = make_engine(settings.db_url("projector"), settings.db_ca_file, autocommit=True)
    try:
        yield engine
    finally:
        await engine.dispose()


async def _look_up(engine: AsyncEngine, customer_id: UUID) -> Found:
    erased = TYPE_OF[CustomerErased]
    async with engine.connect() as connection:
        found = await connection.exec_driver_sql(
            "SELECT e.type, e.schema_version, e.position, e.recorded_at_us, d.position IS NULL"
            " FROM events e LEFT JOIN events d"
            " ON d.position = e.position + 1 AND d.cause_position = e.position"
            " WHERE e.stream_id = %s AND e.type IN (%s, %s) ORDER BY e.position",
            (customer_id.bytes, REGISTERED, erased),
        )
        rows: Any = found.all()
        keys = await Store(connection).keys([customer_id.bytes])
    if not any(name == REGISTERED and took_effect for name, *_, took_effect in rows):
        raise NoSuchCustomer(f"there is no customer {customer_id}: nothing to erase")
    row, _ = await Views(engine).wallet(customer_id)
    return Found(
        [(at, us) for name, _, at, us, took_effect in rows if name == erased and took_effect],
        [at for name, shape, at, *_ in rows if name == REGISTERED and shape < SEALED_VERSION],
        keys.get(customer_id.bytes) is not None,
        row.username if row else None,
    )
