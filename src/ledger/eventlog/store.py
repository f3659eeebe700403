"""The ledger in the database: read, append under the fence, look up."""

from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.core.events import Recorded
from ledger.eventlog import codec
from ledger.eventlog.chain import LedgerDamaged
from ledger.eventlog.encryption import CustomerKeys, KeyRow, sealed_customers
from ledger.eventlog.reader import PAGE, EventReader
from ledger.eventlog.records import COLUMNS, Head, Record
from ledger.runtime.bulk_insert import insert_rows
from ledger.runtime.failpoints import failpoint, failpoint_after_send

__all__ = ["PAGE", "Fenced", "Head", "LedgerDamaged", "Store"]

_INSERT = f"INSERT INTO events ({COLUMNS})"
_INSERT_KEY = f"INSERT INTO customer_keys ({', '.join(KeyRow.__struct_fields__)})"


class Fenced(Exception):
    """Another writer took over, or the head moved: this one's view of the ledger is out of date."""


class Store:
    """The ledger on one connection. Transactions are the caller's."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def head(self) -> Head:
        """The head as it is now."""
        (row,) = await self._rows("SELECT position, hash, epoch FROM ledger_head WHERE id = 1")
        return Head(*row)

    async def raise_epoch(self) -> Head:
        """Take the head over, in a transaction of its own; every older writer is fenced off."""
        await self._connection.exec_driver_sql("UPDATE ledger_head SET epoch = epoch + 1")
        head = await self.head()
        await self._connection.commit()
        return head

    async def append(
        self, head: Head, records: Sequence[Record], keys: CustomerKeys | None = None
    ) -> Head:
        """Append records after `head`, with what became of `keys`, and commit; the new head.

        Raises Fenced, with nothing appended, when `head` is no longer the head. After a database
        error it is not known whether they were appended: only a new look at the head can tell.
        """
        last = records[-1]
        await insert_rows(self._connection, _INSERT, records)
        await failpoint("writer.after-insert")
        if keys:
            await self._keep(keys)
        moved = await self._connection.exec_driver_sql(
            "UPDATE ledger_head SET position = %s, hash = %s"
            " WHERE id = 1 AND epoch = %s AND position = %s",
            (last.position, last.hash, head.epoch, head.position),
        )
        if moved.rowcount != 1:
            await self._connection.rollback()
            raise Fenced(f"epoch {head.epoch} at position {head.position} is out of date")
        await failpoint("writer.before-commit")
        await failpoint_after_send("writer.commit-sent", self._connection.commit())
        return Head(last.position, last.hash, head.epoch)

    async def _keep(self, keys: CustomerKeys) -> None:
        await insert_rows(self._connection, _INSERT_KEY, keys.made.values())
        if keys.destroyed:
            await self._connection.exec_driver_sql(
                "UPDATE customer_keys SET sealing_key = NULL, erased_at_us = %s"
                " WHERE customer_id = %s",
                [(at_us, customer_id) for customer_id, at_us in keys.destroyed.items()],
            )

    async def events(self, records: Iterable[Record]) -> list[Recorded]:
        """The events of records, with the names of those customers who are not erased."""
        records = list(records)
        keys = await self.keys(sealed_customers(records))
        return [codec.recorded(record, keys) for record in records]

    async def keys(self, customer_ids: Collection[bytes]) -> dict[bytes, bytes | None]:
        """The same as `EventReader.keys`."""
        return await EventReader(self._connection).keys(customer_ids)

    async def read(self, after: int, limit: int | None = None) -> list[Record]:
        """The records of `EventReader.page`."""
        return list((await EventReader(self._connection).page(after, limit)).records)

    async def pages(self, after: int, up_to: int) -> AsyncIterator[list[Record]]:
        """The records of `EventReader.pages`."""
        async for page in EventReader(self._connection).pages(after, up_to):
            yield list(page.records)

    async def stream(self, stream_id: UUID) -> list[Record]:
        """The same as `EventReader.stream`."""
        return await EventReader(self._connection).stream(stream_id)

    async def streams(self, stream_ids: Sequence[bytes]) -> dict[bytes, list[Record]]:
        """The same as `EventReader.streams`."""
        return await EventReader(self._connection).streams(stream_ids)

    async def known(
        self, event_ids: Collection[bytes], stream_ids: Collection[bytes]
    ) -> tuple[set[bytes], dict[bytes, int]]:
        """Those of the events that the ledger has, and of the streams, each with its version.

        One question instead of two: half of the time that a small batch is asked for.
        """
        rows = await self._rows(
            f"SELECT event_id, 0 FROM events WHERE event_id IN ({_marks(event_ids)})"
            " UNION ALL SELECT stream_id, MAX(version) FROM events"
            f" WHERE stream_id IN ({_marks(stream_ids)}) GROUP BY stream_id",
            (*event_ids, *stream_ids),
        )
        recorded = {event_id for event_id, version in rows if not version}
        # The union of two kinds of integer may come as a decimal.
        return recorded, {stream_id: int(version) for stream_id, version in rows if version}

    async def _rows(self, statement: str, parameters: Sequence[object] = ()) -> Sequence[Any]:
        found = await self._connection.exec_driver_sql(statement, tuple(parameters))
        return found.all()


def _marks(values: Collection[object]) -> str:
    return ", ".join(["%s"] * len(values))
