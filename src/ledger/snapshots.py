"""Snapshots: saved folds that spare a restart the reading of the whole ledger. Discardable."""

import asyncio
import logging
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final
from uuid import UUID

from msgspec import DecodeError, Struct
from msgspec.msgpack import Decoder, Encoder
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.core.fold import Fold
from ledger.core.state import Customer, Product

log = logging.getLogger(__name__)

FOLD_VERSION: Final = 1
"""The shape of a saved fold. Raise it when the state changes: older snapshots are then ignored."""
PART_ENTRIES: Final = 20_000
KEPT: Final = 2


class Snapshot(Struct, frozen=True):
    """A fold as it was at a position, whose event has `hash`."""

    position: int
    hash: bytes
    recorded_at_us: int
    customers: dict[UUID, Customer]
    products: dict[UUID, Product]


class _Part(Struct, frozen=True, array_like=True):
    customers: dict[UUID, tuple[int]] = {}
    products: dict[UUID, tuple[int, int, int]] = {}


_encode = Encoder().encode
_decode = Decoder(_Part).decode


def take(fold: Fold, position: int, hash_: bytes, recorded_at_us: int) -> Snapshot:
    """The fold as it is now; its records are frozen, so two shallow copies are all it takes."""
    return Snapshot(position, hash_, recorded_at_us, dict(fold.customers), dict(fold.products))


async def save(engine: AsyncEngine, snapshot: Snapshot) -> None:
    """Store a snapshot in one transaction, and drop all but the newest KEPT.

    It is encoded part by part in a thread, so that the event loop goes on beside it.
    """
    parts = list(_parts(snapshot))
    async with engine.begin() as connection:
        for number, part in enumerate(parts):
            body = await asyncio.to_thread(_pack, part)
            await connection.exec_driver_sql(
                "INSERT INTO snapshots (position, part, parts, fold_version, hash, body)"
                " VALUES (%s, %s, %s, %s, %s, %s)",
                (snapshot.position, number, len(parts), FOLD_VERSION, snapshot.hash, body),
            )
        for position in (await _positions(connection))[KEPT:]:
            await connection.exec_driver_sql(
                "DELETE FROM snapshots WHERE position = %s", (position,)
            )


async def newest(connection: AsyncConnection) -> Snapshot | None:
    """The newest snapshot that is whole, of today's shape, and of this very ledger."""
    for position in await _positions(connection):
        found = await connection.exec_driver_sql(
            "SELECT s.parts, s.hash, e.recorded_at_us, s.body FROM snapshots s"
            " JOIN events e ON e.position = s.position AND e.hash = s.hash"
            " WHERE s.position = %s AND s.fold_version = %s ORDER BY s.part",
            (position, FOLD_VERSION),
        )
        snapshot = _unpack(position, found.all())
        if snapshot:
            return snapshot
        log.warning("the snapshot at position %s can't be used; trying an older one", position)
    return None


async def _positions(connection: AsyncConnection) -> list[int]:
    found = await connection.exec_driver_sql(
        "SELECT DISTINCT position FROM snapshots ORDER BY position DESC"
    )
    return list(found.scalars())


def _parts(snapshot: Snapshot) -> Iterator[_Part]:
    yield _Part()
    customers = iter(snapshot.customers.items())
    while entries := list(islice(customers, PART_ENTRIES)):
        yield _Part({key: (c.balance_minor,) for key, c in entries}, {})
    products = iter(snapshot.products.items())
    while shelves := list(islice(products, PART_ENTRIES)):
        yield _Part({}, {k: (p.base_price_minor, p.stock, p.initial_stock) for k, p in shelves})


def _pack(part: _Part) -> bytes:
    return zlib.compress(_encode(part), level=1)


def _unpack(position: int, rows: Sequence[Any]) -> Snapshot | None:
    if not rows or len(rows) != rows[0][0]:
        return None
    snapshot = Snapshot(position, rows[0][1], rows[0][2], {}, {})
    try:
        for *_, body in rows:
            part = _decode(zlib.decompress(body))
            snapshot.customers.update({k: Customer(*c) for k, c in part.customers.items()})
            snapshot.products.update({k: Product(*p) for k, p in part.products.items()})
    except (DecodeError, zlib.error):
        return None
    return snapshot
