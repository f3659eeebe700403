"""Reads of an export: one position is pinned, and everything is read as it was there."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from msgspec import Struct, structs
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.export import ExportRefused
from cli.export.tables import Column, Kind, Table
from ledger.eventlog.records import GENESIS_HASH, next_hash
from ledger.eventlog.store import PAGE, LedgerDamaged, Store
from projections.tables import CheckpointLost, pin, refuse_other_version

Page = Sequence[Sequence[Any]]


class Pin(Struct, frozen=True):
    """The position that an export is of, and the hash of the event there."""

    position: int
    hash: bytes


async def pin_head(connection: AsyncConnection) -> Pin:
    """The end of the ledger as it is now; what comes later does not change what is before."""
    head = await Store(connection).head()
    return Pin(head.position, head.hash)


async def pin_views(connection: AsyncConnection, views: Sequence[Table]) -> Pin:
    """Begin a transaction in which the views stay as they are now, all at one position.

    Raises CheckpointLost, ViewOutdated, and ExportRefused where they are at several positions.
    """
    projections = [view.projection for view in views if view.projection]
    checkpoints = await pin(connection, projections)
    for projection in projections:
        if projection.name not in checkpoints:
            raise CheckpointLost(f"{projection.name} has no checkpoint: run `ledger migrate`")
        refuse_other_version(projection, checkpoints[projection.name].version)
    positions = {checkpoints[view.name].position for view in views}
    if len(positions) > 1:
        raise ExportRefused(
            f"the views are at different positions ({', '.join(map(str, sorted(positions)))}):"
            " wait until the projector has brought them together, or export them one by one"
        )
    position = positions.pop()
    return Pin(position, await _hash_at(connection, position))


async def _hash_at(connection: AsyncConnection, position: int) -> bytes:
    if position == 0:
        return GENESIS_HASH
    found = await connection.exec_driver_sql(
        "SELECT hash FROM events WHERE position = %s", (position,)
    )
    hash_: bytes | None = found.scalar()
    if hash_ is None:
        raise LedgerDamaged(f"the views are at position {position}, which the ledger does not have")
    return hash_


async def events(connection: AsyncConnection, pin: Pin) -> AsyncIterator[Page]:
    """The events up to the pin; raises LedgerDamaged where they are not the chain's."""
    hash_ = GENESIS_HASH
    async for page in Store(connection).pages(0, pin.position):
        for record in page:
            hash_ = next_hash(hash_, record)
            if hash_ != record.hash:
                raise LedgerDamaged(f"the hash at position {record.position} is not the chain's")
        yield [structs.astuple(record) for record in page]
    if hash_ != pin.hash:
        raise LedgerDamaged(f"the hash at position {pin.position} is not the head's")


async def count(connection: AsyncConnection, view: Table) -> int:
    """How many rows a view has."""
    return int((await connection.exec_driver_sql(f"SELECT COUNT(*) FROM {view.name}")).scalar_one())


async def view_rows(connection: AsyncConnection, table: Table) -> AsyncIterator[Page]:
    """The rows of a view by key, page by page."""
    select = f"SELECT {', '.join(map(_source, table.columns))} FROM {table.name}"
    order = f"ORDER BY {', '.join(table.key)} LIMIT {PAGE}"
    places = [[column.name for column in table.columns].index(name) for name in table.key]
    after, values = "TRUE", ()
    while True:
        found = await connection.exec_driver_sql(f"{select} WHERE {after} {order}", values)
        page: Any = found.all()
        if not page:
            return
        yield page
        after, values = _after(table.key, [page[-1][place] for place in places])


def _source(column: Column) -> str:
    if column.kind is Kind.TIMESTAMP:
        return f"TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {column.name})"
    return column.name


def _after(key: Sequence[str], last: Sequence[Any]) -> tuple[str, tuple[Any, ...]]:
    """What is true of rows after the last one. Of a row value no server makes a range."""
    clauses: list[str] = []
    values: list[Any] = []
    for length in range(len(key)):
        same = [f"{name} = %s" for name in key[:length]]
        clauses.append(f"({' AND '.join([*same, f'{key[length]} > %s'])})")
        values += last[: length + 1]
    return " OR ".join(clauses), tuple(values)
