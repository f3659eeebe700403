"""Who looks at the ledger and the views while the run goes on, past every proxy."""

import asyncio
from contextlib import suppress
from typing import Any, Final

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.eventlog.reader import EventReader
from projections.views.projection import from_columns
from projections.views.registry import PROJECTIONS
from tests.faults.evidence import HeadSeen, Views
from tests.ledger.pipeline import Ledger

HEAD_EVERY_S: Final = 0.25
READ_TIMEOUT_S: Final = 5.0


class Observer:
    """Keeps what it saw for the checker; with the database away it sees nothing."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.heads: list[HeadSeen] = []
        self.views: list[tuple[int, Views]] = []

    async def run(self) -> None:
        """Look where the ledger ends, again and again."""
        while True:
            with suppress(DBAPIError, OSError):
                async with asyncio.timeout(READ_TIMEOUT_S):
                    head = await self._ledger.head()
                self.heads.append(HeadSeen(head.position, head.hash, head.epoch))
            await asyncio.sleep(HEAD_EVERY_S)

    async def look_at_views(self) -> None:
        """Keep all views as they are at one moment, if the database can be asked."""
        with suppress(DBAPIError, OSError):
            async with asyncio.timeout(READ_TIMEOUT_S), self._ledger.connection("analyst") as views:
                await views.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                await views.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT")
                self.views += await _views(views)
                await views.rollback()


async def _views(connection: AsyncConnection) -> list[tuple[int, Views]]:
    """Each view with the position that it had reached."""
    found: Any = await connection.exec_driver_sql("SELECT name, position FROM checkpoints")
    positions: dict[str, int] = dict(found.all())
    shown: list[tuple[int, Views]] = []
    for view in PROJECTIONS:
        columns = ", ".join(view.columns)
        rows = await connection.exec_driver_sql(f"SELECT {columns} FROM {view.name}")
        made = [from_columns(view.row, tuple(row)) for row in rows]
        shown.append((positions[view.name], {view.name: {view.key_of(row): row for row in made}}))
    return shown


async def head_of(connection: AsyncConnection) -> HeadSeen:
    """Where the ledger ends now."""
    head = await EventReader(connection).head()
    return HeadSeen(head.position, head.hash, head.epoch)
