"""`ledger status`: where the ledger, its views and its queues are."""

import asyncio
from typing import Any, Final

from msgspec import Struct
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.settings import Settings
from ledger.eventlog.store import Store
from ledger.messaging.consumer import PREFETCH
from ledger.messaging.rabbitmq import CALL_TIMEOUT_S, open_channel
from ledger.messaging.topology import INBOX, PARKING
from ledger.runtime.database import make_engine
from projections.views.registry import PROJECTIONS

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
    """The whole at one moment. The inbox is counted in messages, each a group of events.

    A broker tells its clients only of messages that nobody holds. So `inbox_messages` leaves out
    what the writer got and has not acked, `held_messages_at_most`; `parked_messages` leaves out
    what somebody reads just now.
    """

    position: int
    hash: str
    epoch: int
    views: list[ViewStatus]
    inbox_messages: int
    held_messages_at_most: int
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
    depths = await _depths(settings)
    views = [
        ViewStatus(name, position, head.position - position, version, CODE_VERSIONS.get(name))
        for name, position, version in checkpoints
    ]
    return Status(head.position, head.hash.hex(), head.epoch, views, *depths)


async def _checkpoints(connection: AsyncConnection) -> list[tuple[str, int, int]]:
    found = await connection.exec_driver_sql(
        "SELECT name, position, view_version FROM checkpoints ORDER BY name"
    )
    rows: Any = found.all()
    return list(rows)


async def _depths(settings: Settings) -> tuple[int, int, int]:
    async with open_channel(settings.amqp_url("api"), "status", confirms=False) as channel:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            inbox = (await channel.declare_queue(INBOX, passive=True)).declaration_result
            parking = (await channel.declare_queue(PARKING, passive=True)).declaration_result
    # Of several writers the broker feeds one.
    held_at_most = PREFETCH if inbox.consumer_count else 0
    return inbox.message_count or 0, held_at_most, parking.message_count or 0


def as_table(status: Status) -> Table:
    """The status for a person to read."""
    table = Table(show_header=False, box=None)
    table.add_row("head", f"position {status.position}, epoch {status.epoch}")
    table.add_row("", f"hash {status.hash}")
    for view in status.views:
        table.add_row(view.name, f"position {view.position}, {view.lag} behind{_version(view)}")
    table.add_row("inbox", f"{status.inbox_messages} messages wait, {_held(status)}")
    see = ", see `ledger parked list`" if status.parked_messages else ""
    table.add_row("parking", f"{status.parked_messages} messages{see}")
    return table


def _held(status: Status) -> str:
    if status.held_messages_at_most:
        return f"the writer holds {status.held_messages_at_most} more at most"
    return "no writer is there"


def _version(view: ViewStatus) -> str:
    if view.version == view.code_version:
        return f", version {view.version}"
    return f", version {view.version}, which is not that of this code: {view.code_version}"
