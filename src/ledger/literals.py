"""Rows as the text of a statement: a third of the time that placeholders take in the driver.

Nothing is escaped because nothing needs to be: bytes and text are written in hexadecimal digits.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from msgspec.structs import astuple
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

PACKET_CHARACTERS: Final = 500_000
"""Far below the `max_allowed_packet` of any server, and enough to make the way there cheap."""

_LITERALS: Final[dict[type, Callable[[Any], str]]] = {
    int: str,
    bytes: lambda value: f"x'{value.hex()}'",
    type(None): lambda _: "NULL",
    UUID: lambda value: f"x'{value.hex}'",
    str: lru_cache(1024)(lambda value: f"_utf8mb4 x'{value.encode().hex()}'"),
    datetime: lru_cache(1024)(lambda value: f"'{value.isoformat(' ', 'microseconds')[:26]}'"),
}


async def write(connection: AsyncConnection, insert: str, rows: Iterable[Struct]) -> None:
    """Run `insert`, which ends before VALUES, with these rows.

    The rows are kept out of the errors, which are logged.
    """
    for packet in packets(rows):
        try:
            await connection.exec_driver_sql(f"{insert} VALUES {packet}")
        except DBAPIError as error:
            error.statement = insert
            raise


def packets(rows: Iterable[Struct]) -> Iterator[str]:
    """What follows VALUES, in pieces of about PACKET_CHARACTERS; times are in UTC."""
    packet: list[str] = []
    characters = 0
    for row in rows:
        packet.append(f"({','.join([_LITERALS[type(value)](value) for value in astuple(row)])})")
        characters += len(packet[-1])
        if characters > PACKET_CHARACTERS:
            yield ",".join(packet)
            packet.clear()
            characters = 0
    if packet:
        yield ",".join(packet)
