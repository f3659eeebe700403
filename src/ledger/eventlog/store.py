"""The append to the ledger, under the fence that keeps every writer but one from it."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.eventlog.encryption import CustomerKeys, KeyRow
from ledger.eventlog.reader import EventReader
from ledger.eventlog.records import COLUMNS, Head, Record
from ledger.runtime.database import insert_rows, placeholders
from ledger.runtime.failpoints import failpoint, failpoint_after_send

_INSERT = f"INSERT INTO events ({COLUMNS})"
_INSERT_KEY = f"INSERT INTO customer_keys ({', '.join(KeyRow.__struct_fields__)})"


class Fenced(Exception):
    """Another writer took over, or the head moved: what this one knows is out of date."""


class Store:
    """Appends to the ledger on one connection."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def raise_epoch(self) -> Head:
        """Take the head over, in a transaction of its own; every older writer is fenced off."""
        await self._connection.exec_driver_sql("UPDATE ledger_head SET epoch = epoch + 1")
        head = await EventReader(self._connection).head()
        await self._connection.commit()
        return head

    async def duplicates_and_versions(
        self, event_ids: Collection[bytes], stream_ids: Collection[bytes]
    ) -> tuple[set[bytes], dict[bytes, int]]:
        """Return the ids of these that are recorded already, and each existing stream's version."""
        # One statement for two questions takes half of the time that a small batch is asked for.
        result = await self._connection.exec_driver_sql(
            f"SELECT event_id, 0 FROM events WHERE event_id IN ({placeholders(event_ids)})"
            " UNION ALL SELECT stream_id, MAX(version) FROM events"
            f" WHERE stream_id IN ({placeholders(stream_ids)}) GROUP BY stream_id",
            (*event_ids, *stream_ids),
        )
        rows: Any = result.all()
        duplicates = {event_id for event_id, version in rows if not version}
        # The union of two kinds of integer may come as a decimal.
        return duplicates, {stream_id: int(version) for stream_id, version in rows if version}

    async def insert_keys(self, rows: Iterable[KeyRow]) -> None:
        """Add encryption keys of customers that have none, in the transaction at hand."""
        await insert_rows(self._connection, _INSERT_KEY, rows)

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
            await self.insert_keys(keys.made.values())
            if keys.destroyed:
                await self._connection.exec_driver_sql(
                    "UPDATE customer_keys SET sealing_key = NULL, erased_at_us = %s"
                    " WHERE customer_id = %s",
                    [(at_us, customer_id) for customer_id, at_us in keys.destroyed.items()],
                )
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
