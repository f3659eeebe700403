"""The state of the ledger, and snapshots of it that spare the reading of the whole ledger.

Any snapshot may be deleted. They are spread over the history, so that a restart reads little and an
as-of read not much.
"""

import asyncio
import logging
import zlib
from collections.abc import Callable, Iterable
from typing import Any, Final
from uuid import UUID

from msgspec import DecodeError, Struct
from msgspec.msgpack import Decoder, Encoder
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.core.decider import CustomerState, Fold, ProductState
from ledger.eventlog.reader import MAX_POSITION, EventReader
from ledger.eventlog.records import EMPTY, ChainCheck, Head, Record

log = logging.getLogger(__name__)

# The shape of a saved fold. Raise it when the state changes: older snapshots are then ignored.
FOLD_VERSION: Final = 3
# A part holds about so many entries, up to twice as many.
PART_ENTRIES: Final = 5_000
KEPT: Final = 64
# So many of the newest are kept, wherever the gaps are.
NEWEST: Final = 2


class LedgerState(Struct):
    """The state of the ledger up to a head, as far as it was read or written.

    `snapshot_position` is that of the newest snapshot.
    """

    fold: Fold
    head: Head
    recorded_at_us: int
    snapshot_position: int

    def take_snapshot(self) -> "LedgerState":
        """A copy to save: shallow ones do, as the records of customers and products are frozen."""
        self.snapshot_position = self.head.position
        fold = Fold(dict(self.fold.customers), dict(self.fold.products))
        return LedgerState(fold, self.head, self.recorded_at_us, self.snapshot_position)


class _Part(Struct, frozen=True, array_like=True):
    customers: dict[UUID, tuple[int, int]]
    products: dict[UUID, tuple[int, int, int, int]]


_encode = Encoder().encode
_decode = Decoder(_Part).decode


async def load(
    connection: AsyncConnection, after_page: Callable[[LedgerState], None] | None = None
) -> LedgerState:
    """Read the state of the ledger: from the newest snapshot, and from what came after it.

    `after_page` is called after each page: where no snapshot can be used, new ones may be made
    then.
    """
    state = await nearest(connection)
    await catch_up(connection, state, after_page)
    return state


async def catch_up(
    connection: AsyncConnection,
    state: LedgerState,
    after_page: Callable[[LedgerState], None] | None = None,
) -> None:
    """Apply what the ledger has beyond the state; raises LedgerDamaged if the chain breaks."""
    chain = ChainCheck(state.head.position, state.head.hash, state.recorded_at_us)
    async for page in EventReader(connection).pages(state.head.position, chain=chain):
        for event in page.effective_events():
            state.fold.apply(event)
        state.fold.orders.clear()
        state.head = Head(chain.position, chain.hash, state.head.epoch)
        state.recorded_at_us = chain.recorded_at_us
        if after_page:
            after_page(state)
    await connection.rollback()


def spread(positions: Iterable[int], kept: int = KEPT) -> list[int]:
    """Choose the snapshots to keep: the newest, and older ones with even gaps between them.

    While there are too many, the one goes whose neighbours (0 before the first) are closest
    together; never the NEWEST last ones. So while positions come one by one, no gap grows wider
    than the widest step between two that came, or than 2 / (kept - 1) of the whole.
    """
    left = sorted(positions)
    while len(left) > kept:
        befores = (0, *left)
        afters = left[1 : 1 - NEWEST]
        gaps_if_dropped = [a - before for before, a in zip(befores, afters, strict=False)]
        del left[gaps_if_dropped.index(min(gaps_if_dropped))]
    return left


async def save(engine: AsyncEngine, snapshot: LedgerState) -> None:
    """Store a snapshot in one transaction, and delete those that are useless or too many.

    It is encoded part by part in a thread, so that the event loop goes on beside it.
    """
    parts = await asyncio.to_thread(_split, snapshot.fold)
    position, hash_ = snapshot.head.position, snapshot.head.hash
    async with engine.begin() as connection:
        await _delete(connection, [position])
        for number, part in enumerate(parts):
            body = await asyncio.to_thread(lambda part: zlib.compress(_encode(part), level=1), part)
            await connection.exec_driver_sql(
                "INSERT INTO snapshots (position, part, parts, fold_version, hash, body)"
                " VALUES (%s, %s, %s, %s, %s, %s)",
                (position, number, len(parts), FOLD_VERSION, hash_, body),
            )
        result = await connection.exec_driver_sql("SELECT DISTINCT position FROM snapshots")
        usable = [record.position for record, _ in await _usable(connection, 0, MAX_POSITION)]
        await _delete(connection, set(result.scalars()) - set(spread(usable)))


async def _delete(connection: AsyncConnection, positions: Iterable[int]) -> None:
    for position in positions:
        await connection.exec_driver_sql("DELETE FROM snapshots WHERE position = %s", (position,))


async def nearest(connection: AsyncConnection, position: int = MAX_POSITION) -> LedgerState:
    """Return the newest usable snapshot at a position or before it; an empty state without one.

    It is whole, of today's shape, and of this very ledger.
    """
    for record, parts in await _usable(connection, 0, position):
        result = await connection.exec_driver_sql(
            "SELECT body FROM snapshots WHERE position = %s ORDER BY part", (record.position,)
        )
        fold, count = Fold(), 0
        # One part after the other: a million customers are in memory once, not twice.
        for part in map(_unpack, result.scalars()):
            if part:
                fold.customers.update({key: CustomerState(*c) for key, c in part.customers.items()})
                fold.products.update({key: ProductState(*p) for key, p in part.products.items()})
                count += 1
        if count == parts:
            head = Head(record.position, record.hash, 0)
            return LedgerState(fold, head, record.recorded_at_us, record.position)
        _warn(record.position)
    return LedgerState(Fold(), EMPTY, 0, 0)


async def entry(
    connection: AsyncConnection, key: UUID, since: int, position: int
) -> tuple[int, CustomerState | ProductState] | None:
    """Return a customer or product in the newest usable snapshot of a range, and its position.

    It must exist since the beginning of the range: a snapshot without it counts as damaged.
    """
    for record, parts in await _usable(connection, since, position):
        at = record.position
        result = await connection.exec_driver_sql(
            "SELECT body FROM snapshots WHERE position = %s AND part = %s",
            (at, key.int % parts),
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


async def _usable(connection: AsyncConnection, since: int, up_to: int) -> list[tuple[Record, int]]:
    """The snapshots between two positions, the newest first.

    Each is the record that it is of and its number of parts. They have all their parts and today's
    shape, and the ledger has the event that they name.
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
        (records[position], parts)
        for position, hash_, parts in rows
        if position in records and records[position].hash == hash_
    ]


def _split(fold: Fold) -> list[_Part]:
    """The entries, each in the part that its id alone tells: so one can be read without the others.

    The number of parts is odd, so that ids which differ in few bits are in different ones.
    """
    entries = len(fold.customers) + len(fold.products)
    parts = [_Part({}, {}) for _ in range(entries // PART_ENTRIES | 1)]
    for key, customer in fold.customers.items():
        parts[key.int % len(parts)].customers[key] = (customer.balance_minor, customer.position)
    for key, p in fold.products.items():
        entry_ = (p.base_price_minor, p.stock, p.initial_stock, p.position)
        parts[key.int % len(parts)].products[key] = entry_
    return parts


def _unpack(body: bytes) -> _Part | None:
    try:
        return _decode(zlib.decompress(body))
    except (DecodeError, zlib.error):
        return None
