"""The record of what operators did with parked messages: append-only, with the bytes."""

from collections.abc import Sequence
from typing import Any, Final, Literal

from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

Action = Literal["resubmitted", "discarded"]

_COLUMNS: Final = "at_us, action, operator, message_id, reason, whole, copies, size"
_SELECT: Final = f"SELECT {_COLUMNS} FROM parking_log"
_INSERT: Final = (
    f"INSERT INTO parking_log ({_COLUMNS}, body) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"
)
PART_BYTES: Final = 4 * 2**20
_OVERHEAD: Final = 16 * 1024
"""What a row needs besides its body, with room to spare."""


class MessageTooLarge(Exception):
    """The database does not take a statement that a message would fit into."""


class Entry(Struct, frozen=True):
    """What was done with a parked message and its copies; the id is the SHA-256 of its bytes."""

    at_us: int
    action: Action
    operator: str
    id: str
    reason: str
    whole: bool
    copies: int
    size: int


async def append(connection: AsyncConnection, entries: Sequence[tuple[Entry, bytes]]) -> None:
    """Record what is about to be done, in a transaction of the caller's."""
    rows = [
        (
            entry.at_us,
            entry.action,
            entry.operator,
            bytes.fromhex(entry.id),
            entry.reason,
            entry.whole,
            entry.copies,
            entry.size,
            body,
        )
        for entry, body in entries
    ]
    await connection.exec_driver_sql(_INSERT, rows)


async def newest(connection: AsyncConnection, limit: int) -> list[Entry]:
    """The last entries, the oldest of them first."""
    found = await connection.exec_driver_sql(f"{_SELECT} ORDER BY id DESC LIMIT %s", (limit,))
    return [_entry(row) for row in reversed(found.all())]


async def find(connection: AsyncConnection, prefix: str) -> list[Entry]:
    """The entries of messages whose id begins so, the oldest first."""
    found = await connection.exec_driver_sql(
        f"{_SELECT} WHERE HEX(message_id) LIKE %s ORDER BY id", (f"{prefix.upper()}%",)
    )
    return [_entry(row) for row in found.all()]


async def body_of(connection: AsyncConnection, id_: str) -> bytes | None:
    """The bytes of a message that was recorded; None once they were erased.

    Part by part: asyncmy 0.2.18 loses its place behind a row of 16 MiB.
    """
    found = await connection.exec_driver_sql(
        "SELECT id, size FROM parking_log WHERE message_id = %s AND body IS NOT NULL LIMIT 1",
        (bytes.fromhex(id_),),
    )
    row = found.one_or_none()
    if row is None:
        return None
    parts = []
    for begun in range(0, row.size, PART_BYTES):
        found = await connection.exec_driver_sql(
            "SELECT SUBSTRING(body, %s, %s) FROM parking_log WHERE id = %s",
            (begun + 1, PART_BYTES, row.id),
        )
        parts.append(bytes(found.scalar_one()))
    return b"".join(parts)


async def refuse_too_large(connection: AsyncConnection, size: int) -> None:
    """Raises MessageTooLarge where a body of this size might not go into the record.

    It goes there in one statement, in which every byte may take two.
    """
    found = await connection.exec_driver_sql("SELECT @@max_allowed_packet")
    most = int(found.scalar_one())
    if 2 * size + _OVERHEAD > most:
        raise MessageTooLarge(
            f"a message of {size} bytes may not go into the record: set the database's"
            f" max_allowed_packet, which is {most}, to 64M and try again"
        )


def _entry(row: Any) -> Entry:
    at_us, action, operator, id_, reason, whole, copies, size = row
    return Entry(at_us, action, operator, id_.hex(), reason, bool(whole), copies, size)
