"""`ledger rebuild`: what it says, and what it leaves behind however it ends."""

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.settings import Settings
from projections.tables import begin_consistent_read
from projections.views.registry import PROJECTIONS
from tests.harness import DEADLINE_S, environment, eventually, free_port
from tests.ledger.pipeline import Ledger, running_ledger
from tests.projections.rebuilding import rebuilt, tables
from tests.projections.view_rows import (
    advance_to_the_end,
    all_live,
    all_replayed,
    checkpoints,
    until_projected,
)
from tests.submissions import history, opening, orders
from tests.warm import COMMAND

from .conftest import Run

RENAMING = "WHERE db = DATABASE() AND info LIKE 'RENAME%%'"
NAMES = {view.name for view in PROJECTIONS}


async def test_status_shows_what_rebuilds_left(ledger: Ledger, run: Run) -> None:
    assert "side_tables" not in (await run("status", "--json")).json
    await rebuilt(ledger, "orders")
    (left,) = (await run("status", "--json")).json["side_tables"]
    assert (left["name"], left["position"]) == ("orders_old", (await ledger.head()).position)
    shown = await run("status")
    assert "orders_old" in shown.out
    assert "--undo" in shown.out


@pytest.fixture
async def ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """A ledger whose views show all of it."""
    async with running_ledger(settings) as ledger:
        await ledger.write(opening(), history(31, 200))
        async with ledger.connection("projector") as connection:
            await advance_to_the_end(connection)
        yield ledger


async def begun(ledger: Ledger, failpoint: str) -> Process:
    """`ledger rebuild --all`, once it has reached a failpoint."""
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        "rebuild",
        "--all",
        env=os.environ | environment(ledger.settings) | {"LEDGER_FAILPOINTS": failpoint},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
    )
    assert process.stderr
    async with asyncio.timeout(DEADLINE_S):
        while b", pass 1" not in (line := await process.stderr.readline()):
            assert line, "it ended before it got there"
    return process


async def ended(process: Process) -> tuple[int, str, str]:
    """The status of a process that is about to end, and what it said."""
    async with asyncio.timeout(DEADLINE_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def whole_again(ledger: Ledger) -> None:
    """The views are those of the ledger and go on, and the next rebuild leaves nothing behind."""
    assert await all_live(ledger) == await all_replayed(ledger)
    await ledger.write(orders(3))
    async with ledger.connection("projector") as connection:
        await advance_to_the_end(connection)
    assert await all_live(ledger) == await all_replayed(ledger)
    assert all(outcome.swapped for outcome in await rebuilt(ledger))
    assert await all_live(ledger) == await all_replayed(ledger)
    assert await tables(ledger) == {f"{name}_old" for name in NAMES}


async def test_the_result_of_each_view_is_reported(run: Run, ledger: Ledger) -> None:
    position = (await ledger.head()).position
    done = await run("rebuild", "orders", "stock")
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines() == [
        f"{name}: rebuilt, the same as before, at position {position};"
        f" the table before is kept as {name}_old"
        for name in ("stock", "orders")
    ]
    assert (await run("rebuild", "orders", "--undo", "--json")).json["views"][0]["swapped"]
    done = await run("rebuild", "--all", "--drop-old", "--json")
    assert done.json["dropped"] == ["orders_old", "stock_old"]
    assert await tables(ledger) == set()


async def test_a_difference_is_one_sentence_and_status_1(run: Run, ledger: Ledger) -> None:
    await ledger.execute("UPDATE wallets SET balance_minor = balance_minor + 1 LIMIT 1")
    before = await all_live(ledger)
    done = await run("rebuild", "--all", "--json")
    assert done.status == 1
    said = done.said_one_sentence()
    assert "wallets differs in the row of customer_id" in said
    assert "balance_minor is" in said
    (difference,) = [v["difference"] for v in done.json["views"] if v["difference"]]
    assert set(difference["columns"]) == {"balance_minor"}
    assert not any(view["swapped"] for view in done.json["views"])
    assert await all_live(ledger) == before
    done = await run("rebuild", "wallets", "--repair")
    assert (done.status, done.err) == (0, "")
    assert "wallets: rebuilt, other than before" in done.out
    assert str(difference["columns"]["balance_minor"][1]) in done.out
    await whole_again(ledger)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say what to rebuild: one or more of stock, wallets"),
        (("orders", "--all"), "say what to rebuild"),
        (("order",), "there is no view order: choose of stock, wallets"),
        (("orders", "--undo", "--drop-old"), "exclude each other"),
        (("orders", "--undo", "--restart"), "exclude each other"),
        (("orders", "--undo", "--repair"), "exclude each other"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_in_one_sentence(
    arguments: tuple[str, ...], said: str
) -> None:
    done = CliRunner().invoke(app, ["rebuild", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


async def test_a_database_that_is_away_is_one_sentence(run: Run) -> None:
    done = await run("rebuild", "--all", LEDGER_DB_PORT=str(free_port()))
    assert done.status == 1
    assert done.said_one_sentence().startswith("✗")


async def test_nothing_to_undo_is_one_sentence(run: Run) -> None:
    done = await run("rebuild", "orders", "--undo")
    assert done.status == 1
    assert "there is no orders_old" in done.said_one_sentence()


@pytest.mark.parametrize(
    "failpoint",
    [
        "after-create",
        "before-commit",
        "after-commit",
        "after-load",
        "before-swap",
        "swap-sent",
        "after-swap",
    ],
)
async def test_a_rebuild_killed_anywhere_leaves_whole_views_and_is_resumed(
    ledger: Ledger, failpoint: str
) -> None:
    process = await begun(ledger, f"rebuild.{failpoint}=die")
    status, _, _ = await ended(process)
    assert status == -signal.SIGKILL
    await whole_again(ledger)


async def test_killed_while_orders_come_in_it_tears_no_view(ledger: Ledger) -> None:
    """The server may still be at work on the RENAME when the projector comes back to the views."""
    async with ledger.writing(), ledger.projecting():
        for failpoint in ("before-swap", "swap-sent", "swap-sent", "after-swap"):
            await ledger.put_events(*(orders(2) for _ in range(30)))
            await ended(await begun(ledger, f"rebuild.{failpoint}=die"))
        await ledger.until_inbox_empty()
        await until_projected(ledger)
    await whole_again(ledger)


async def test_killed_while_its_rename_waits_it_lets_no_projector_write_before_that_ends(
    ledger: Ledger,
) -> None:
    """Else views would be swapped that are behind what was written and shown meanwhile."""
    head = (await ledger.write(orders(3)))[-1].position
    async with ledger.connection("analyst") as reader, ledger.connection("projector") as other:
        await begin_consistent_read(reader, PROJECTIONS)
        await ended(await begun(ledger, "rebuild.swap-sent=die"))
        moving = asyncio.create_task(advance_to_the_end(other))

        async def has_to_wait() -> bool:
            return moving.done() or await waits(ledger)

        await eventually(has_to_wait, "the projector waits, unless the RENAME is over by now")
        await reader.rollback()
        await moving
    assert set((await checkpoints(ledger)).values()) == {head}
    assert await ledger.rows(f"SELECT 1 FROM information_schema.processlist {RENAMING}") == []
    await whole_again(ledger)


async def waits(ledger: Ledger) -> bool:
    """Whether a projector waits: for the lock, or already for the table that is renamed."""
    found = await ledger.rows(
        "SELECT 1 FROM information_schema.processlist WHERE db = DATABASE()"
        " AND (info LIKE '%%GET_LOCK%%' OR state = 'Waiting for table metadata lock')"
        " AND id <> CONNECTION_ID()",
        "projector",
    )
    return bool(found)


async def test_ctrl_c_leaves_whole_views_and_the_next_goes_on(ledger: Ledger) -> None:
    where = await checkpoints(ledger)
    process = await begun(ledger, "rebuild.after-load=delay:20")
    process.send_signal(signal.SIGINT)
    status, out, err = await ended(process)
    assert (status, out) == (130, "")
    assert "Traceback" not in err
    assert await checkpoints(ledger) == where
    await whole_again(ledger)


async def test_a_database_that_goes_away_half_way_is_one_sentence(ledger: Ledger) -> None:
    process = await begun(ledger, "rebuild.after-load=delay:1")
    await ledger.kill_connections("migrate")
    status, _, err = await ended(process)
    assert status == 1
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1].startswith("✗")
    await whole_again(ledger)
