"""Snapshots: saved folds that spare the reading of the whole ledger. Discardable.

They are spread over the history, so that a restart reads little and a look at any moment not much.
"""

import asyncio
import logging
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, Final
from uuid import UUID

from msgspec import DecodeError, Struct
from msgspec.msgpack import Decoder, Encoder
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.core.fold import Fold
from ledger.core.state import Customer, Product

log = logging.getLogger(__name__)

FOLD_VERSION: Final = 2
"""The shape of a saved fold. Raise it when the state changes: older snapshots are then ignored."""
PART_ENTRIES: Final = 5_000
"""A part holds about so many entries, up to twice as many."""
KEPT: Final = 64
NEWEST: Final = 2
"""So many of the newest are kept, wherever the gaps are."""
MAX_POSITION: Final = 2**63 - 1


class Snapshot(Struct, frozen=True):
    """A fold as it was at a position, whose event has `hash`."""

    position: int
    hash: bytes
    recorded_at_us: int
    customers: dict[UUID, Customer]
    products: dict[UUID, Product]


class _Part(Struct, frozen=True, array_like=True):
    customers: dict[UUID, tuple[int]]
    products: dict[UUID, tuple[int, int, int]]


_encode = Encoder().encode
_decode = Decoder(_Part).decode


def take(fold: Fold, position: int, hash_: bytes, recorded_at_us: int) -> Snapshot:
    """The fold as it is now; its records are frozen, so two shallow copies are all it takes."""
    return Snapshot(position, hash_, recorded_at_us, dict(fold.customers), dict(fold.products))


def spread(positions: Iterable[int], kept: int = KEPT) -> list[int]:
    """Those of the positions to keep, in order: the newest, and others with even gaps between.

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
    """Store a snapshot in one transaction, and drop what is useless or too much.

    It is encoded part by part in a thread, so that the event loop goes on beside it.
    """
    parts = await asyncio.to_thread(_split, snapshot)
    async with engine.begin() as connection:
        await _drop(connection, [snapshot.position])
        for number, part in enumerate(parts):
            body = await asyncio.to_thread(_pack, part)
            await connection.exec_driver_sql(
                "INSERT INTO snapshots (position, part, parts, fold_version, hash, body)"
                " VALUES (%s, %s, %s, %s, %s, %s)",
                (snapshot.position, number, len(parts), FOLD_VERSION, snapshot.hash, body),
            )
        found = await connection.exec_driver_sql("SELECT DISTINCT position FROM snapshots")
        usable = [position for position, _ in await _usable(connection, 0, MAX_POSITION)]
        await _drop(connection, set(found.scalars()) - set(spread(usable)))


async def _drop(connection: AsyncConnection, positions: Iterable[int]) -> None:
    for position in positions:
        await connection.exec_driver_sql("DELETE FROM snapshots WHERE position = %s", (position,))


async def newest(connection: AsyncConnection) -> Snapshot | None:
    """The newest snapshot that is whole, of today's shape, and of this very ledger."""
    return await nearest(connection, MAX_POSITION)


async def nearest(connection: AsyncConnection, position: int) -> Snapshot | None:
    """The newest such snapshot at a position or before it."""
    for at, parts in await _usable(connection, 0, position):
        found = await connection.exec_driver_sql(
            "SELECT s.hash, e.recorded_at_us, s.body FROM snapshots s"
            " JOIN events e ON e.position = s.position WHERE s.position = %s ORDER BY s.part",
            (at,),
        )
        rows = found.all()
        snapshot = _joined(at, rows) if len(rows) == parts else None
        if snapshot:
            return snapshot
        _warn(at)
    return None


async def entry(
    connection: AsyncConnection, key: UUID, since: int, position: int
) -> tuple[int, Customer | Product] | None:
    """A customer or product that is known to be there since a position, as it was at another.

    That is: in the newest snapshot between the two that can be used, with its position.
    """
    for at, parts in await _usable(connection, since, position):
        found = await connection.exec_driver_sql(
            "SELECT body FROM snapshots WHERE position = %s AND part = %s",
            (at, key.int % parts),
        )
        part = _unpack(found.scalar() or b"")
        if part and (customer := part.customers.get(key)):
            return at, Customer(*customer)
        if part and (product := part.products.get(key)):
            return at, Product(*product)
        _warn(at)
    return None


def _warn(position: int) -> None:
    log.warning("the snapshot at position %s can't be used; trying an older one", position)


async def _usable(connection: AsyncConnection, since: int, up_to: int) -> Sequence[Any]:
    """The snapshots between two positions, the newest first: where they are, and in how many parts.

    They have all their parts and today's shape, and the ledger has the event that they name.
    """
    found = await connection.exec_driver_sql(
        "SELECT s.position, s.parts FROM snapshots s"
        " JOIN events e ON e.position = s.position AND e.hash = s.hash"
        " WHERE s.position >= %s AND s.position <= %s AND s.fold_version = %s"
        " GROUP BY s.position, s.parts HAVING COUNT(*) = s.parts ORDER BY s.position DESC",
        (since, up_to, FOLD_VERSION),
    )
    return found.all()


def _split(snapshot: Snapshot) -> list[_Part]:
    """The entries, each in the part that its id alone tells: so one can be read without the others.

    The number of parts is odd, so that ids which differ in few bits are in different ones.
    """
    entries = len(snapshot.customers) + len(snapshot.products)
    parts = [_Part({}, {}) for _ in range(entries // PART_ENTRIES | 1)]
    for key, customer in snapshot.customers.items():
        parts[key.int % len(parts)].customers[key] = (customer.balance_minor,)
    for key, p in snapshot.products.items():
        shelf = (p.base_price_minor, p.stock, p.initial_stock)
        parts[key.int % len(parts)].products[key] = shelf
    return parts


def _pack(part: _Part) -> bytes:
    return zlib.compress(_encode(part), level=1)


def _unpack(body: bytes) -> _Part | None:
    try:
        return _decode(zlib.decompress(body))
    except (DecodeError, zlib.error):
        return None


def _joined(position: int, rows: Sequence[Any]) -> Snapshot | None:
    snapshot = Snapshot(position, rows[0][0], rows[0][1], {}, {})
    for *_, body in rows:
        part = _unpack(body)
        if part is None:
            return None
        snapshot.customers.update({k: Customer(*c) for k, c in part.customers.items()})
        snapshot.products.update({k: Product(*p) for k, p in part.products.items()})
    return snapshot
