"""`ledger status`: where the ledger, its views and its queues are."""

import asyncio
from typing import Any, Final

from msgspec import Struct
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.settings import Settings
from ledger.broker import CALL_TIMEOUT_S, open_channel
from ledger.database import make_engine
from ledger.store import Store
from ledger.topology import INBOX, PARKING
from projections.registry import PROJECTIONS

CODE_VERSIONS: Final = {projection.name: projection.version for projection in PROJECTIONS}


class ViewStatus(Struct, frozen=True):
    """A view's checkpoint, and how many positions it is behind the head.

    `version` is that of the code that made it, `code_version` that of the code which asks.
    """

    name: str
    position: int
    lag: int
    version: int
    code_version: int | None


class Status(Struct, frozen=True):
    """The whole at one moment. The inbox is counted in messages, each a group of events."""

    position: int
    hash: str
    epoch: int
    views: list[ViewStatus]
    inbox_messages: int
    parked_messages: int


async def read_status(settings: Settings) -> Status:
    """Ask the database and the broker; raises what they raise when they are away."""
    engine = make_engine(settings.db_url("projector"), settings.db_ca_file)
    try:
        async with engine.connect() as connection:
            checkpoints = await _checkpoints(connection)
            head = await Store(connection).head()
    finally:
        await engine.dispose()
    inbox_messages, parked_messages = await _depths(settings)
    views = [
        ViewStatus(name, position, head.position - position, version, CODE_VERSIONS.get(name))
        for name, position, version in checkpoints
    ]
    return Status(
        head.position, head.hash.hex(), head.epoch, views, inbox_messages, parked_messages
    )


async def _checkpoints(connection: AsyncConnection) -> list[tuple[str, int, int]]:
    found = await connection.exec_driver_sql(
        "SELECT name, position, view_version FROM checkpoints ORDER BY name"
    )
    rows: Any = found.all()
    return list(rows)


async def _depths(settings: Settings) -> tuple[int, int]:
    async with open_channel(settings.amqp_url("api"), "status", confirms=False) as channel:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            inbox = await channel.declare_queue(INBOX, passive=True)
            parking = await channel.declare_queue(PARKING, passive=True)
    return (
        inbox.declaration_result.message_count or 0,
        parking.declaration_result.message_count or 0,
    )


def as_table(status: Status) -> Table:
    """The status for a person to read."""
    table = Table(show_header=False, box=None)
    table.add_row("head", f"position {status.position}, epoch {status.epoch}")
    table.add_row("", f"hash {status.hash}")
    for view in status.views:
        table.add_row(view.name, f"position {view.position}, {view.lag} behind{_version(view)}")
    table.add_row("inbox", f"{status.inbox_messages} messages")
    table.add_row("parking", f"{status.parked_messages} messages")
    return table


def _version(view: ViewStatus) -> str:
    if view.version == view.code_version:
        return f", version {view.version}"
    return f", version {view.version}, which is not that of this code: {view.code_version}"
