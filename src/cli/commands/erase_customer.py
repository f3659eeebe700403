"""`ledger erase-customer`: erase a customer's name and keep the hash chain (crypto-shredding).

The key that the name is encrypted with is destroyed, and the views show the name as erased.
"""

import sys
from datetime import datetime
from typing import Annotated, Final
from uuid import UUID, uuid5

import typer
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from cli import connections, console
from cli.inbox import submit, wait_until_shown
from cli.settings import Settings
from ledger.core.events import TYPE_OF, CustomerErased
from ledger.eventlog.encryption import REGISTERED, SEALED_VERSION
from ledger.eventlog.reader import EventReader
from ledger.eventlog.records import Submitted
from ledger.runtime.timestamps import from_us, now_us
from projections.queries import Views
from projections.table_swap import OLD, SHADOW, existing_tables
from projections.views.projection import ERASED
from projections.views.registry import PROJECTIONS
from projections.views.wallets import WALLETS

SOURCE: Final = "/erase-customer"
ERASED_EVENT: Final = TYPE_OF[CustomerErased]
REMAINS: Final = (
    "What remains: wallet, orders and amounts under the customer's id; what backups, older exports"
    " and the database's own logs hold; a registration that waits in the inbox or was ever parked."
)
_NAMESPACE: Final = UUID("0b5b6b0e-52f7-5d0c-8a55-9f6b7c1f1c3e")


class NoSuchCustomer(Exception):
    """No customer was ever registered under this id."""


class NameState(Struct, frozen=True):
    """Where a customer's name still is.

    `erasures` are positions and recorded times of earlier erasures; `plain_positions` are those of
    records that were written before names were encrypted. `is_shown` until the view says erased.
    """

    erasures: list[tuple[int, int]]
    plain_positions: list[int]
    has_key: bool
    is_shown: bool


class Erasure(Struct, frozen=True):
    """A name that is erased; `new` unless it was erased before."""

    customer_id: UUID
    position: int
    erased_at: datetime
    new: bool
    plain_positions: list[int]


def erase_customer(
    customer_id: Annotated[UUID, typer.Argument(help="the customer")],
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    as_json: console.AsJson = False,
) -> None:
    """Run `ledger erase-customer`."""
    settings = console.read_settings()
    if not yes:
        if not sys.stdin.isatty():
            console.usage_error("this can't be undone: say --yes where nobody can be asked")
        console.err.print(f"The name of customer {customer_id} will be gone for ever.")
        if not typer.confirm("Erase it?", err=True):
            console.fail("nothing was erased")
    erasure = console.run(erase(settings, customer_id))
    if as_json:
        console.print_json(erasure)
    else:
        done = "erased" if erasure.new else "was erased already"
        console.out.print(
            f"customer {customer_id} {done}: recorded at position {erasure.position},"
        )
        console.out.print("the key is destroyed, and the views say erased.")
        console.out.print(REMAINS)
    if erasure.plain_positions:
        positions = ", ".join(map(str, erasure.plain_positions))
        console.fail(
            f"the ledger itself still holds the name at position {positions}, recorded before names"
            " were encrypted: replay this ledger into a new one, which encrypts it, and erase it"
            " there",
        )


async def erase(settings: Settings, customer_id: UUID) -> Erasure:
    """Erase the name and wait until that is recorded and shown; a second time changes nothing.

    A key that came back since, from a backup, is destroyed by one more event. Copies of the view
    that a rebuild left are erased too. Raises NoSuchCustomer, InboxUnavailable, NotShown.
    """
    async with connections.engine(settings, "projector", autocommit=True) as engine:

        async def is_erased() -> bool:
            state = await _name_state(engine, customer_id)
            return bool(state.erasures) and not (state.has_key or state.is_shown)

        before = await _name_state(engine, customer_id)
        new = before.has_key or not before.erasures
        if new:
            # The id follows from the number of erasures: run twice at once, it is recorded once.
            event_id = uuid5(_NAMESPACE, f"{customer_id} {len(before.erasures)}")
            event = Submitted(event_id, customer_id, now_us(), CustomerErased())
            await submit(settings, engine, SOURCE, [event], is_erased, "migrate")
        else:
            await wait_until_shown(is_erased)
        after = await _name_state(engine, customer_id)
    async with connections.connection(settings, "migrate") as connection, connection.begin():
        # No projector brings the tables further that a rebuild left beside the views.
        for view in PROJECTIONS:
            copies = [view.name + SHADOW, view.name + OLD] if view.personal else []
            for table in await existing_tables(connection, copies):
                await connection.exec_driver_sql(
                    f"UPDATE {table} SET {view.personal} = %s WHERE {view.key_columns[0]} = %s",
                    (ERASED, customer_id.bytes),
                )
    position, erased_at_us = after.erasures[-1]
    return Erasure(customer_id, position, from_us(erased_at_us), new, after.plain_positions)


async def _name_state(engine: AsyncEngine, customer_id: UUID) -> NameState:
    async with engine.connect() as connection:
        reader = EventReader(connection)
        decisions = await reader.decisions_of_stream(customer_id, (REGISTERED, ERASED_EVENT))
        keys = await reader.encryption_keys([customer_id.bytes])
    effective = [decision.cause for decision in decisions if decision.took_effect]
    if not any(record.type == REGISTERED for record in effective):
        raise NoSuchCustomer(f"there is no customer {customer_id}: nothing to erase")
    wallet, _ = await Views(engine).row(WALLETS, customer_id)
    return NameState(
        [(r.position, r.recorded_at_us) for r in effective if r.type == ERASED_EVENT],
        # A registration that was refused holds the name as well.
        [
            decision.cause.position
            for decision in decisions
            if decision.cause.type == REGISTERED and decision.cause.schema_version < SEALED_VERSION
        ],
        keys.get(customer_id.bytes) is not None,
        wallet is None or wallet.username != ERASED,
    )
