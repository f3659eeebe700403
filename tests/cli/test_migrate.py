"""`ledger migrate`: what it says is left to do, and that one which was killed is finished."""

import contextlib
import re
from typing import Any

import pytest
from sqlalchemy import Engine, event

from cli import connections
from cli.commands.migrate import migrate
from cli.settings import Settings
from tests.harness import create_database
from tests.ledger.pipeline import Ledger
from tests.projections.rebuilding import EARLIER_RELEASE
from tests.projections.view_rows import advance_to_the_end, all_live, all_replayed
from tests.submissions import history, opening

from .conftest import Run

DONE = "migrated: tables, accounts, grants and queues are as this version needs them\n"


@pytest.fixture
async def projected(ledger: Ledger) -> Ledger:
    """A ledger whose views show all of it."""
    await ledger.write(opening(), history(31, 50))
    async with ledger.connection("projector") as connection:
        await advance_to_the_end(connection)
    return ledger


async def test_a_view_of_an_earlier_release_is_left_with_a_line_or_rebuilt_if_asked(
    run: Run, projected: Ledger
) -> None:
    position = (await projected.head()).position
    for statement in EARLIER_RELEASE:
        await projected.execute(statement)
    made_by = "view stock was made by version 1, this code makes version 2"
    for _ in range(2):
        done = await run("migrate")
        assert (done.status, done.err) == (0, "")
        assert done.out == f"{DONE}still to do: {made_by}: run `ledger rebuild stock`\n"
    done = await run("migrate", "--rebuild")
    assert (done.status, done.err) == (0, "")
    assert done.out == (
        f"{DONE}stock: rebuilt for this version, at position {position}; the table before is kept"
        " as stock_old\n"
    )
    assert await all_live(projected) == await all_replayed(projected)
    assert (await run("migrate", "--rebuild")).out == DONE


async def test_a_view_of_a_newer_release_is_left_to_that_one(run: Run, projected: Ledger) -> None:
    await projected.execute("UPDATE checkpoints SET view_version = 9 WHERE name = 'orders'")
    done = await run("migrate", "--rebuild")
    assert (done.status, done.err) == (0, "")
    made_by = "view orders was made by version 9, this code makes version 1"
    assert done.out == f"{DONE}still to do: {made_by}: run the newer code\n"


@pytest.mark.parametrize(
    "change",
    ["ADD extra INT NULL", "MODIFY balance_minor INT NOT NULL", "DROP COLUMN balance_minor"],
)
async def test_a_view_with_other_columns_is_named_and_rebuilt_though_its_version_is_the_same(
    run: Run, projected: Ledger, change: str
) -> None:
    await projected.execute(f"ALTER TABLE wallets {change}")
    left = "view wallets has other columns than this code makes: run `ledger rebuild wallets`"
    assert (await run("migrate")).out == f"{DONE}still to do: {left}\n"
    done = await run("rebuild", "wallets")
    assert (done.status, done.err) == (0, "")
    assert "wallets: rebuilt, not compared (the view had other columns)" in done.out
    assert await all_live(projected) == await all_replayed(projected)
    assert (await run("migrate")).out == DONE


async def test_tables_of_a_newer_release_are_refused_in_one_sentence(
    run: Run, projected: Ledger
) -> None:
    await projected.execute("UPDATE ledger_migrations SET version_num = '9999'")
    done = await run("migrate")
    assert done.status == 1
    assert "were made by a newer version (Can't locate revision" in done.said_one_sentence()


class Killed(Exception):
    """The process was killed here."""


async def test_a_migration_that_was_killed_after_any_statement_is_finished_by_the_next(
    settings: Settings,
) -> None:
    """No transaction is around DDL: a table may be there and its revision not noted."""
    name = f"{settings.db_name}_killed"
    unfinished = settings.model_copy(update={"db_name": name})
    await create_database(unfinished, [])
    begun: set[str] = set()

    def die(_: object, __: object, statement: str, ___: Any, ____: object, _____: object) -> None:
        changes = re.search(r"^(CREATE T|INSERT|UPDATE)", statement, re.MULTILINE)
        if changes and statement not in begun:
            begun.add(statement)
            raise Killed

    event.listen(Engine, "before_cursor_execute", die)
    try:
        while True:
            with contextlib.suppress(Killed):
                assert await migrate(unfinished) == []
                break
    finally:
        event.remove(Engine, "before_cursor_execute", die)
    assert len(begun) > 20
    async with connections.connection(unfinished, "migrate") as connection:
        version = await connection.exec_driver_sql("SELECT version_num FROM ledger_migrations")
        assert version.scalar_one() == "0005"


async def test_a_schema_that_the_account_may_not_make_is_named(run: Run) -> None:
    done = await run("migrate", LEDGER_DB_NAME="of_somebody_else")
    assert done.status == 1
    said = done.said_one_sentence()
    assert "there is no schema of_somebody_else" in said
    assert "choose a name that begins with ledger_" in said
