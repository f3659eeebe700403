"""`ledger status`: where the ledger, its views and its queues are."""

import asyncio
from typing import Any, Final

from msgspec import Struct
from rich.table import Table

from cli import connections, console
from cli.drift import fail_on_drift
from cli.policies import read_problems
from cli.settings import Settings
from ledger.eventlog.reader import EventReader
from ledger.messaging.consumer import PREFETCH
from ledger.messaging.rabbitmq import CALL_TIMEOUT_S, Connection
from ledger.messaging.topology import INBOX, PARKING
from projections.table_swap import OLD, REBUILDS, existing_tables
from projections.views.registry import PROJECTIONS

READ_TIMEOUT_S: Final = 15
CODE_VERSIONS: Final = {projection.name: projection.version for projection in PROJECTIONS}


class ViewStatus(Struct, frozen=True):
    """A view's checkpoint, and how many positions it is behind the head.

    `version` is that of the code that made the view, `code_version` that of this code.
    """

    name: str
    position: int
    lag: int
    version: int
    code_version: int | None


class SideTable(Struct, frozen=True):
    """A table that a rebuild left beside a view: a shadow that is not swapped in, or an old one."""

    name: str
    position: int
    version: int


class LedgerStatus(Struct, frozen=True, omit_defaults=True):
    """The whole at one moment. The inbox is counted in messages, each a group of events.

    A broker counts only messages that no consumer holds. So `inbox_messages` leaves out what the
    writer got and has not acked, `held_messages_at_most`; `parked_messages` leaves out what
    `ledger parked` reads just now.
    """

    position: int
    hash: str
    epoch: int
    views: list[ViewStatus]
    inbox_messages: int
    held_messages_at_most: int
    parked_messages: int
    side_tables: list[SideTable] = []


def status(
    as_json: console.AsJson = False,
) -> None:
    """Run `ledger status`."""
    settings = console.read_settings()
    current, (unknown, problems) = console.run(_read(settings))
    if as_json:
        console.print_json(current)
    else:
        _print_for_people(current, unknown)
    fail_on_drift(settings, problems)


def _print_for_people(current: LedgerStatus, unknown: str | None) -> None:
    table = Table(show_header=False, box=None)
    table.add_row("head", f"position {current.position}, epoch {current.epoch}")
    table.add_row("", f"hash {current.hash}")
    for view in current.views:
        version = f"version {view.version}"
        if view.version != view.code_version:
            version += f", which is not that of this code: {view.code_version}"
        table.add_row(view.name, f"position {view.position}, {view.lag} behind, {version}")
    for side in current.side_tables:
        kept = "of a rebuild under way, or that ended early: `ledger rebuild` goes on with it"
        if side.name.endswith(OLD):
            kept = "before the last rebuild: `ledger rebuild --undo` swaps it back in"
        table.add_row(side.name, f"position {side.position}, version {side.version}, {kept}")
    held = "no writer is connected"
    if current.held_messages_at_most:
        held = f"up to {current.held_messages_at_most} more are with the writer"
    table.add_row("inbox", f"{current.inbox_messages} messages wait, {held}")
    see = ", see `ledger parked list`" if current.parked_messages else ""
    table.add_row("parking", f"{current.parked_messages} messages{see}")
    if unknown:
        table.add_row("policies", f"not checked: {unknown}")
    console.out.print(table)


async def _read(settings: Settings) -> tuple[LedgerStatus, tuple[str | None, list[str]]]:
    status, problems = await asyncio.gather(read_status(settings), read_problems(settings))
    return status, problems


async def read_status(settings: Settings) -> LedgerStatus:
    """Ask the database and the broker; raises what they raise when they are away."""
    async with connections.connection(
        settings, "projector", read_timeout_s=READ_TIMEOUT_S
    ) as connection:
        # Checkpoints first: a head read before them could be behind a view.
        result = await connection.exec_driver_sql(
            "SELECT name, position, view_version FROM checkpoints ORDER BY name"
        )
        checkpoints: Any = result.all()
        head = await EventReader(connection).head()
        side_tables: Any = ()
        # The account sees it once `ledger migrate` of this version has run.
        if await existing_tables(connection, [REBUILDS.name]):
            result = await connection.exec_driver_sql(
                "SELECT name, position, view_version FROM rebuilds ORDER BY name"
            )
            side_tables = result.all()
    # Since 4.2.6 a broker tells only who has rights on the queues.
    broker = Connection(settings.amqp_url("migrate"), "status")
    async with broker.channel(confirms=False) as channel:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            inbox = (await channel.declare_queue(INBOX, passive=True)).declaration_result
            parking = (await channel.declare_queue(PARKING, passive=True)).declaration_result
    return LedgerStatus(
        head.position,
        head.hash.hex(),
        head.epoch,
        [
            ViewStatus(name, position, head.position - position, version, CODE_VERSIONS.get(name))
            for name, position, version in checkpoints
        ],
        inbox.message_count or 0,
        # Of several writers the broker feeds one.
        PREFETCH if inbox.consumer_count else 0,
        parking.message_count or 0,
        [SideTable(*row) for row in side_tables],
    )
