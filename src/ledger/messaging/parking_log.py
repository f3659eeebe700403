"""The log of what operators did with parked messages: append-only, with the messages' bytes."""

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
# More than a row needs besides its body.
_ROW_OVERHEAD_BYTES: Final = 16 * 1024


class MessageTooLarge(Exception):
    """The message does not fit into a statement that the database takes."""


class Entry(Struct, frozen=True):
    """An action on a parked message and its copies; the id is the SHA-256 of the message."""

    at_us: int
    action: Action
    operator: str
    id: str
    reason: str
    whole: bool
    copies: int
    size: int


async def append(connection: AsyncConnection, entries: Sequence[tuple[Entry, bytes]]) -> None:
    """Insert entries with the messages' bytes, in the caller's transaction."""
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
    rows = await connection.exec_driver_sql(f"{_SELECT} ORDER BY id DESC LIMIT %s", (limit,))
    return [_entry(row) for row in reversed(rows.all())]


async def find(connection: AsyncConnection, prefix: str) -> list[Entry]:
    """The entries of messages whose id begins with a prefix in hex, the oldest first."""
    rows = await connection.exec_driver_sql(
        f"{_SELECT} WHERE HEX(message_id) LIKE %s ORDER BY id", (f"{prefix.upper()}%",)
    )
    return [_entry(row) for row in rows.all()]


async def body_of(connection: AsyncConnection, id_: str) -> bytes | None:
    """The bytes of a message in the log; None if they were erased."""
    rows = await connection.exec_driver_sql(
        "SELECT id, size FROM parking_log WHERE message_id = %s AND body IS NOT NULL LIMIT 1",
        (bytes.fromhex(id_),),
    )
    row = rows.one_or_none()
    if row is None:
        return None
    # Part by part: asyncmy 0.2.18 loses its place in the stream behind a row of 16 MiB.
    parts = []
    for offset in range(0, row.size, PART_BYTES):
        part = await connection.exec_driver_sql(
            "SELECT SUBSTRING(body, %s, %s) FROM parking_log WHERE id = %s",
            (offset + 1, PART_BYTES, row.id),
        )
        parts.append(bytes(part.scalar_one()))
    return b"".join(parts)


async def refuse_too_large(connection: AsyncConnection, size: int) -> None:
    """Raise MessageTooLarge if a body of `size` bytes might not fit into one INSERT."""
    setting = await connection.exec_driver_sql("SELECT @@max_allowed_packet")
    max_bytes = int(setting.scalar_one())
    # The driver may escape every byte of the body with a second one.
    if 2 * size + _ROW_OVERHEAD_BYTES > max_bytes:
        raise MessageTooLarge(
            f"a message of {size} bytes may not go into the record: set the database's"
            f" max_allowed_packet, which is {max_bytes}, to 64M and try again"
        )


def _entry(row: Any) -> Entry:
    at_us, action, operator, id_, reason, whole, copies, size = row
    return Entry(at_us, action, operator, id_.hex(), reason, bool(whole), copies, size)
