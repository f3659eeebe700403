"""`ledger migrate`: tables, accounts and topology, each made where it is missing."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Final

import typer
from aio_pika.exceptions import ChannelPreconditionFailed
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import CreateTable

from cli import connections, console
from cli.drift import LEDGER_GRANTS, find_drift, grants, make_missing_triggers
from cli.policies import read_problems
from cli.settings import Settings
from ledger.eventlog.migrations import upgrade
from ledger.messaging import topology
from ledger.messaging.rabbitmq import CALL_TIMEOUT_S, Connection
from ledger.runtime.database import refuse_unsafe
from projections.rebuild import Outdated, Rebuilt, open_rebuild, outdated_views
from projections.table_swap import REBUILDS, SESSION_S
from projections.tables import create_indexes, register
from projections.views.projection import METADATA
from projections.views.registry import PROJECTIONS, views_named

# Adding an index to a table of many millions of rows takes its time.
INDEX_TIMEOUT_S: Final = 3600
# The most connections of each account, as eighths of what the server allows in all: whatever the
# others do, there is room for the writer, and for the operator who looks into it.
CONNECTION_EIGHTHS: Final = {"writer": 1, "projector": 2, "api": 3, "analyst": 1}
# Only MariaDB has it for an account. Sessions of our own set a limit of theirs, on MySQL too.
STATEMENT_LIMIT_S: Final = 600


class NoSchema(Exception):
    """The schema is missing, and the account may not make it."""


def migrate_command(
    *,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="rebuild views that an older version made")
    ] = False,
) -> None:
    """Run `ledger migrate`."""
    settings = console.read_settings()
    outdated = console.run(migrate(settings))
    rebuilds = {view.remedy for view in outdated}
    differences = console.run(find_drift(settings))
    if left := [str(each) for each in differences if each.remedy not in rebuilds]:
        console.fail("migrated, but somebody has changed what migrate made\n" + "\n".join(left))
    console.out.print(
        "migrated: tables, accounts, grants and queues are as this version needs them"
    )
    unknown, problems = console.run(read_problems(settings))
    if unknown:
        console.out.print(f"not checked: {unknown}")
    names = [view.name for view in outdated if rebuild and not view.is_newer]
    for view in outdated:
        if view.name not in names:
            console.out.print(f"still to do: {view}")
    if names:
        for done in console.run(_rebuild(settings, names)):
            console.out.print(
                f"{done.view}: rebuilt for this version, at position {done.position}; the table"
                f" before is kept as {done.view}_old"
            )
    if problems:
        console.fail("; ".join(problems))


async def _rebuild(settings: Settings, names: Sequence[str]) -> Sequence[Rebuilt]:
    async with (
        connections.engine(settings, "migrate", read_timeout_s=SESSION_S) as engine,
        open_rebuild(engine, PROJECTIONS, views_named(names), console.progress) as process,
    ):
        return await process.rebuild()


async def migrate(settings: Settings) -> list[Outdated]:
    """Bring database and broker to what this version needs; a second time changes nothing.

    Views that another version made are left as they are, and returned. Raises UnsafeDatabase where
    a COMMIT could be lost, NoSchema and MadeByNewerCode.
    """
    await _make_missing_schema(settings)
    async with (
        connections.connection(settings, "migrate", read_timeout_s=INDEX_TIMEOUT_S) as connection,
        connection.begin(),
    ):
        await refuse_unsafe(connection)
        await connection.exec_driver_sql(
            f"ALTER DATABASE `{settings.db_name}` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
        )
        await connection.run_sync(upgrade)
        for name in await make_missing_triggers(connection):
            console.err.print(f"the trigger {name} was missing: it is there again")
        await connection.run_sync(METADATA.create_all)
        await connection.execute(CreateTable(REBUILDS, if_not_exists=True))
        await register(connection, PROJECTIONS)
        outdated = await outdated_views(connection, PROJECTIONS)
        # `ledger rebuild` makes these anew, with their indexes.
        left_as_they_are = {view.name for view in outdated}
        for view in PROJECTIONS:
            if view.name not in left_as_they_are:
                # Tables that an earlier release made may miss some.
                await create_indexes(connection, view)
        await _create_accounts(connection, settings)
    broker = Connection(settings.amqp_url("migrate"), "migrate")
    try:
        await _declare(broker, settings, at_least_once=True)
    except ChannelPreconditionFailed:
        # An earlier release made the inbox, and no queue's arguments can change.
        await _declare(broker, settings, at_least_once=False)
    return outdated


async def _make_missing_schema(settings: Settings) -> None:
    # Every account may connect to this one.
    server = settings.model_copy(update={"db_name": "information_schema"})
    async with connections.connection(server, "migrate") as connection:
        found = await connection.exec_driver_sql(
            "SELECT 1 FROM schemata WHERE schema_name = %s", (settings.db_name,)
        )
        if not found.first():
            try:
                await connection.exec_driver_sql(f"CREATE DATABASE `{settings.db_name}`")
            except OperationalError as error:
                raise NoSchema(
                    f"there is no schema {settings.db_name}, and the account ledger_migrate can't"
                    f" make it ({error.orig}): make it as an administrator, with all rights on it"
                    " for this account; on the local stack choose a name that begins with ledger_"
                ) from None
            console.err.print(f"the schema {settings.db_name} was missing: it is there now, empty")


async def _declare(broker: Connection, settings: Settings, *, at_least_once: bool) -> None:
    async with broker.channel(confirms=False) as channel, asyncio.timeout(CALL_TIMEOUT_S):
        await topology.declare(channel, settings.inbox_max_length, at_least_once=at_least_once)


async def _create_accounts(connection: AsyncConnection, settings: Settings) -> None:
    allowed = await connection.exec_driver_sql("SELECT @@GLOBAL.max_connections")
    max_connections = int(allowed.scalar_one())
    for role, password in settings.db_passwords().items():
        if role in LEDGER_GRANTS:
            account = f"'ledger_{role}'@'%%'"
            connections_of_role = max(1, max_connections * CONNECTION_EIGHTHS[role] // 8)
            await connection.exec_driver_sql(
                f"CREATE USER IF NOT EXISTS {account} IDENTIFIED BY %s", (password,)
            )
            # The account may be there with an earlier password, and without limits.
            await connection.exec_driver_sql(
                f"ALTER USER {account} IDENTIFIED BY %s"
                f" WITH MAX_USER_CONNECTIONS {connections_of_role}"
                f" /*M! MAX_STATEMENT_TIME {STATEMENT_LIMIT_S} */",
                (password,),
            )
            for table, rights in grants(role, PROJECTIONS).items():
                await connection.exec_driver_sql(
                    f"GRANT {rights} ON `{settings.db_name}`.{table} TO {account}"
                )
