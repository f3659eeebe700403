"""Snapshots: saved folds that spare the reading of the whole ledger. Any of them may be deleted.

They are spread over the history, so that a restart reads little and an as-of read not much.
"""

import asyncio
import logging
import zlib
from collections.abc import Iterable
from typing import Any, Final
from uuid import UUID

from msgspec import DecodeError, Struct
from msgspec.msgpack import Decoder, Encoder
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.core.fold import Fold
from ledger.core.state import CustomerState, ProductState
from ledger.eventlog.reader import MAX_POSITION, EventReader
from ledger.eventlog.records import Record

log = logging.getLogger(__name__)

# The shape of a saved fold. Raise it when the state changes: older snapshots are then ignored.
FOLD_VERSION: Final = 2
# A part holds about so many entries, up to twice as many.
PART_ENTRIES: Final = 5_000
KEPT: Final = 64
# So many of the newest are kept, wherever the gaps are.
NEWEST: Final = 2


class Snapshot(Struct, frozen=True):
    """A fold as it was at a position, whose event has `hash`."""

    position: int
    hash: bytes
    recorded_at_us: int
    customers: dict[UUID, CustomerState]
    products: dict[UUID, ProductState]


class _Part(Struct, frozen=True, array_like=True):
    customers: dict[UUID, tuple[int]]
    products: dict[UUID, tuple[int, int, int]]


class _Stored(Struct, frozen=True):
    """A stored snapshot that can be used: its number of parts, and the record it is of."""

    record: Record
    parts: int


_encode = Encoder().encode
_decode = Decoder(_Part).decode


def snapshot_of(fold: Fold, position: int, hash_: bytes, recorded_at_us: int) -> Snapshot:
    """The fold as it is now; its records are frozen, so two shallow copies are all it takes."""
    return Snapshot(position, hash_, recorded_at_us, dict(fold.customers), dict(fold.products))


def fold_of(snapshot: Snapshot | None) -> Fold:
    """Return a fold that goes on from the snapshot, or an empty one without a snapshot."""
    return Fold(snapshot.customers, snapshot.products) if snapshot else Fold()


def spread(positions: Iterable[int], kept: int = KEPT) -> list[int]:
    """Choose the snapshots to keep: the newest, and older ones with even gaps between them.

    One after the other goes, each time the one that leaves the smallest gap. So while positions
    come one by one, no gap grows wider than the widest step between two that came, or than
    2 / (kept - 1) of the whole.
    """
    left = sorted(positions)
    while len(left) > kept:
        befores = (0, *left)
        gaps = [
            after - before for before, after in zip(befores, left[1 : 1 - NEWEST], strict=False)
        ]
        del left[gaps.index(min(gaps))]
    return left


async def save(engine: AsyncEngine, snapshot: Snapshot) -> None:
    """Store a snapshot in one transaction, and delete those that are useless or too many.

    It is encoded part by part in a thread, so that the event loop goes on beside it.
    """
    parts = await asyncio.to_thread(_split, snapshot)
    async with engine.begin() as connection:
        await _delete(connection, [snapshot.position])
        for number, part in enumerate(parts):
            body = await asyncio.to_thread(lambda part: zlib.compress(_encode(part), level=1), part)
            await connection.exec_driver_sql(
                "INSERT INTO snapshots (position, part, parts, fold_version, hash, body)"
                " VALUES (%s, %s, %s, %s, %s, %s)",
                (snapshot.position, number, len(parts), FOLD_VERSION, snapshot.hash, body),
            )
        result = await connection.exec_driver_sql("SELECT DISTINCT position FROM snapshots")
        usable = [stored.record.position for stored in await _usable(connection, 0, MAX_POSITION)]
        await _delete(connection, set(result.scalars()) - set(spread(usable)))


async def _delete(connection: AsyncConnection, positions: Iterable[int]) -> None:
    for position in positions:
        await connection.exec_driver_sql("DELETE FROM snapshots WHERE position = %s", (position,))


async def newest(connection: AsyncConnection) -> Snapshot | None:
    """The newest snapshot that is whole, of today's shape, and of this very ledger."""
    return await nearest(connection, MAX_POSITION)


async def nearest(connection: AsyncConnection, position: int) -> Snapshot | None:
    """Return the newest usable snapshot at a position or before it: whole, and of this ledger."""
    for stored in await _usable(connection, 0, position):
        record = stored.record
        result = await connection.exec_driver_sql(
            "SELECT body FROM snapshots WHERE position = %s ORDER BY part", (record.position,)
        )
        snapshot = Snapshot(record.position, record.hash, record.recorded_at_us, {}, {})
        count = 0
        # One part after the other: a million customers are in memory once, not twice.
        for part in map(_unpack, result.scalars()):
            if part:
                snapshot.customers.update(
                    {key: CustomerState(*c) for key, c in part.customers.items()}
                )
                snapshot.products.update(
                    {key: ProductState(*p) for key, p in part.products.items()}
                )
                count += 1
        if count == stored.parts:
            return snapshot
        _warn(record.position)
    return None


async def entry(
    connection: AsyncConnection, key: UUID, since: int, position: int
) -> tuple[int, CustomerState | ProductState] | None:
    """Return a customer or product in the newest usable snapshot of a range, and its position.

    It must exist since the beginning of the range: a snapshot without it counts as damaged.
    """
    for stored in await _usable(connection, since, position):
        at = stored.record.position
        result = await connection.exec_driver_sql(
            "SELECT body FROM snapshots WHERE position = %s AND part = %s",
            (at, key.int % stored.parts),
        )
        part = _unpack(result.scalar() or b"")
        if part and (customer := part.customers.get(key)):
            return at, CustomerState(*customer)
        if part and (product := part.products.get(key)):
            return at, ProductState(*product)
        _warn(at)
    return None


def _warn(position: int) -> None:
    log.warning("the snapshot at position %s can't be used; trying an older one", position)


async def _usable(connection: AsyncConnection, since: int, up_to: int) -> list[_Stored]:
    """The snapshots between two positions, the newest first.

    They have all their parts and today's shape, and the ledger has the event that they name.
    """
    result = await connection.exec_driver_sql(
        "SELECT position, hash, parts FROM snapshots"
        " WHERE position >= %s AND position <= %s AND fold_version = %s"
        " GROUP BY position, hash, parts HAVING COUNT(*) = parts ORDER BY position DESC",
        (since, up_to, FOLD_VERSION),
    )
    rows: Any = result.all()
    records = await EventReader(connection).records_at([position for position, *_ in rows])
    return [
        _Stored(records[position], parts)
        for position, hash_, parts in rows
        if position in records and records[position].hash == hash_
    ]


def _split(snapshot: Snapshot) -> list[_Part]:
    """The entries, each in the part that its id alone tells: so one can be read without the others.

    The number of parts is odd, so that ids which differ in few bits are in different ones.
    """
    entries = len(snapshot.customers) + len(snapshot.products)
    parts = [_Part({}, {}) for _ in range(entries // PART_ENTRIES | 1)]
    for key, customer in snapshot.customers.items():
        parts[key.int % len(parts)].customers[key] = (customer.balance_minor,)
    for key, p in snapshot.products.items():
        entry_ = (p.base_price_minor, p.stock, p.initial_stock)
        parts[key.int % len(parts)].products[key] = entry_
    return parts


def _unpack(body: bytes) -> _Part | None:
    try:
        return _decode(zlib.decompress(body))
    except (DecodeError, zlib.error):
        return None
