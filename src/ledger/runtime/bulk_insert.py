"""Bulk INSERT: rows as literals in the text of a statement.

Making literals takes a third of the client's time that placeholders take in the driver. Nothing has
to be escaped: bytes and text are hexadecimal literals, except words of letters, digits and
underscores, which stand in quotes.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from msgspec.structs import astuple
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

# Far below the `max_allowed_packet` of any server, and enough to make round trips cheap.
PACKET_CHARACTERS: Final = 250_000


@lru_cache(maxsize=1024)  # most text in views and records is one of a few words
def _text(value: str) -> str:
    if value.isascii() and value.replace("_", "").isalnum():
        return f"'{value}'"
    return f"_utf8mb4 x'{value.encode().hex()}'"


# The driver sends times without a zone; views have them in UTC, with or without one.
_LITERALS: Final[dict[type, Callable[[Any], str]]] = {
    int: str,
    bytes: lambda value: f"x'{value.hex()}'",
    type(None): lambda _: "NULL",
    UUID: lambda value: f"x'{value.hex}'",
    str: _text,
    datetime: lru_cache(1024)(lambda value: f"'{value.isoformat(' ', 'microseconds')[:26]}'"),
}


def packets(rows: Iterable[Struct]) -> Iterator[str]:
    """Render rows as what follows VALUES, in pieces of about PACKET_CHARACTERS."""
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


async def insert_rows(connection: AsyncConnection, insert: str, rows: Iterable[Struct]) -> None:
    """Run `insert`, the text of a statement before VALUES, for these rows."""
    await run_inserts(connection, ((insert, packet) for packet in packets(rows)))


async def run_inserts(connection: AsyncConnection, inserts: Iterable[tuple[str, str]]) -> None:
    """Run INSERT statements in order, each given as its text before VALUES and a packet.

    Errors, which are logged, contain the statement without its rows.
    """

    async def run(insert: str, packet: str) -> None:
        try:
            await connection.exec_driver_sql(f"{insert} VALUES {packet}")
        except DBAPIError as error:
            error.statement = insert
            raise

    remaining = iter(inserts)
    current = next(remaining, None)
    while current:
        running = asyncio.create_task(run(*current))
        try:
            # Let the statement leave, then make the next packet while the database works on it.
            await asyncio.sleep(0)
            current = next(remaining, None)
        finally:
            await running
