"""The state of the ledger, and snapshots of it that spare the reading of the whole ledger.

Any snapshot may be deleted. They are spread over the history, so that a restart reads little and an
as-of read not much.

What a snapshot says is believed only with a seal: an HMAC (RFC 2104) by a key that is a file of the
processes and never in the database, over the contents and the hash of the ledger where it was
taken. So whoever may only write the table, the writer's account included, can make none.
"""

import asyncio
import hmac
import logging
import zlib
from collections.abc import Callable, Iterable
from struct import Struct as Layout
from typing import Any, Final
from uuid import UUID

from msgspec import DecodeError, Struct
from msgspec.msgpack import Decoder, Encoder
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.core.decider import CustomerState, Fold, ProductState
from ledger.eventlog.reader import MAX_POSITION, EventReader
from ledger.eventlog.records import EMPTY, ChainCheck, Head, Record
from ledger.runtime.database import snapshot_key
from ledger.runtime.metrics import SNAPSHOTS_REFUSED

log = logging.getLogger(__name__)

# The shape of a saved fold. Raise it when the state changes: older snapshots are then ignored.
FOLD_VERSION: Final = 4
_SEAL_BYTES: Final = 32
_SEAL_PURPOSE: Final = b"order-ledger snapshot 1\n"
_SEALED_HEADER: Final = Layout(">QIII")
NO_KEY: Final = (
    "there is no file snapshot_key in the secrets directory, so no snapshot is made or believed,"
    " and every start reads the whole ledger"
)
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

    It is encoded part by part in a thread, so that the event loop goes on beside it. Without the
    key for its seal nothing is stored, as nobody would believe it.
    """
    key = snapshot_key(engine)
    if key is None:
        log.warning("no snapshot at position %s: %s", snapshot.head.position, NO_KEY)
        return
    parts = await asyncio.to_thread(_split, snapshot.fold)
    position, hash_ = snapshot.head.position, snapshot.head.hash
    async with engine.begin() as connection:
        await _delete(connection, [position])
        for number, part in enumerate(parts):
            header = _SEALED_HEADER.pack(position, FOLD_VERSION, number, len(parts)) + hash_
            body = await asyncio.to_thread(_pack, key, header, part)
            await connection.exec_driver_sql(
                "INSERT INTO snapshots (position, part, parts, fold_version, hash, body)"
                " VALUES (%s, %s, %s, %s, %s, %s)",
                (position, number, len(parts), FOLD_VERSION, hash_, body),
            )
        result = await connection.exec_driver_sql("SELECT DISTINCT position FROM snapshots")
        # One part of each tells whether it is sealed: forged ones must not push out the others.
        usable = [
            record.position
            for record, parts_ in await _usable(connection)
            if await _read_part(connection, record, 0, parts_)
        ]
        await _delete(connection, set(result.scalars()) - set(spread(usable)))


async def _delete(connection: AsyncConnection, positions: Iterable[int]) -> None:
    for position in positions:
        await connection.exec_driver_sql("DELETE FROM snapshots WHERE position = %s", (position,))


async def nearest(connection: AsyncConnection, position: int = MAX_POSITION) -> LedgerState:
    """Return the newest usable snapshot at a position or before it; an empty state without one.

    It is whole, of today's shape, of this very ledger, and sealed.
    """
    for record, parts in await _usable(connection, 0, position):
        fold, count = Fold(), 0
        # One part after the other: a million customers are in memory once, not twice.
        while count < parts and (part := await _read_part(connection, record, count, parts)):
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
        part = await _read_part(connection, record, key.int % parts, parts)
        if part and (customer := part.customers.get(key)):
            return at, CustomerState(*customer)
        if part and (product := part.products.get(key)):
            return at, ProductState(*product)
        _warn(at)
    return None


async def refused(connection: AsyncConnection) -> list[int]:
    """Where snapshots of today's shape are that nobody believes: not sealed by this key, or torn.

    Raises nothing where there is no key: then they are all of them.
    """
    result = await connection.exec_driver_sql(
        "SELECT DISTINCT position FROM snapshots WHERE fold_version = %s ORDER BY position",
        (FOLD_VERSION,),
    )
    positions = list(result.scalars())
    usable = {record.position: (record, parts) for record, parts in await _usable(connection)}
    return [
        position
        for position in positions
        if position not in usable or not await _is_sealed(connection, *usable[position])
    ]


async def _is_sealed(connection: AsyncConnection, record: Record, parts: int) -> bool:
    for number in range(parts):
        if await _read_part(connection, record, number, parts) is None:
            return False
    return True


def _warn(position: int) -> None:
    SNAPSHOTS_REFUSED.inc()
    log.warning(
        "the snapshot at position %s can't be used, as it is torn or not sealed with the key of"
        " this ledger's processes; trying an older one",
        position,
    )


async def _read_part(
    connection: AsyncConnection, record: Record, number: int, parts: int
) -> _Part | None:
    """A part of the snapshot of a record; None if it is missing, torn or not sealed."""
    key = snapshot_key(connection)
    result = await connection.exec_driver_sql(
        "SELECT body FROM snapshots WHERE position = %s AND part = %s", (record.position, number)
    )
    body = result.scalar()
    if key is None or body is None:
        return None
    header = _SEALED_HEADER.pack(record.position, FOLD_VERSION, number, parts) + record.hash
    return await asyncio.to_thread(_unpack, key, header, body)


async def _usable(
    connection: AsyncConnection, since: int = 0, up_to: int = MAX_POSITION
) -> list[tuple[Record, int]]:
    """The snapshots between two positions, the newest first.

    Each is the record that it is of and its number of parts. They have all their parts and today's
    shape, and the ledger has the event that they name; whether they are sealed, their parts tell.
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


def _pack(key: bytes, header: bytes, part: _Part) -> bytes:
    body = zlib.compress(_encode(part), level=1)
    return body + hmac.digest(key, _SEAL_PURPOSE + header + body, "sha256")


def _unpack(key: bytes, header: bytes, sealed: bytes) -> _Part | None:
    body, seal = sealed[:-_SEAL_BYTES], sealed[-_SEAL_BYTES:]
    # Before anything is decoded: bytes of a stranger may inflate to any size.
    expected = hmac.digest(key, _SEAL_PURPOSE + header + body, "sha256")
    if not hmac.compare_digest(seal, expected):
        return None
    try:
        return _decode(zlib.decompress(body))
    except (DecodeError, zlib.error):
        return None
