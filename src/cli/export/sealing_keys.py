"""The keys of customers' names, in exports that were asked to have them: a secret file."""

from collections.abc import AsyncIterator, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import UUID

from msgspec import Meta, Struct
from msgspec.json import Decoder, Encoder
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.export.directory import Draft
from cli.export.manifest import File
from ledger.eventlog.encryption import KEY_BYTES, KeyRow
from ledger.eventlog.store import PAGE, Store
from ledger.runtime.bulk_insert import write

FILE: Final = "customer_keys.jsonl"
_COLUMNS: Final = ", ".join(KeyRow.__struct_fields__)


class _Line(Struct, frozen=True):
    customer_id: UUID
    sealing_key: Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)] | None
    created_at_us: int
    erased_at_us: int | None


async def write_keys(connection: AsyncConnection, draft: Draft, position: int) -> File:
    """Write the keys of all customers that were registered up to a position, as they are now.

    A key that was destroyed since is written as destroyed.
    """
    file = draft.create(FILE, 0o600)
    encode = Encoder().encode_lines
    rows = 0
    async for page in _pages(connection, position):
        file.write(encode([_Line(UUID(bytes=id_), *rest) for id_, *rest in page]))
        rows += len(page)
    file.finish()
    return File(FILE, rows, file.bytes, file.sha256)


async def _pages(connection: AsyncConnection, position: int) -> AsyncIterator[list[Any]]:
    after = b""
    while True:
        found = await connection.exec_driver_sql(
            f"SELECT {_COLUMNS} FROM customer_keys WHERE customer_id > %s AND created_at_us <="
            " (SELECT recorded_at_us FROM events WHERE position = %s)"
            " ORDER BY customer_id LIMIT %s",
            (after, position, PAGE),
        )
        page: Any = found.all()
        if not page:
            return
        yield page
        after = page[-1][0]


async def restore_keys(connection: AsyncConnection, path: Path) -> None:
    """Store the keys of a file, those that are there already left as they are.

    Raises ValueError for a line that is no key.
    """
    for page in _read(path):
        there = await Store(connection).keys([row.customer_id for row in page])
        new = [row for row in page if row.customer_id not in there]
        await write(connection, f"INSERT INTO customer_keys ({_COLUMNS})", new)
        await connection.commit()


def _read(path: Path) -> Iterator[list[KeyRow]]:
    decode = Decoder(_Line).decode
    with path.open("rb") as file:
        while lines := [decode(line) for line in islice(file, PAGE)]:
            yield [
                KeyRow(
                    line.customer_id.bytes, line.sealing_key, line.created_at_us, line.erased_at_us
                )
                for line in lines
            ]
