"""`ledger asof`: what it shows is what was, and however it ends, it says why in one sentence."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from datetime import timedelta, timezone
from uuid import uuid4

import msgspec
import pytest
from typer.testing import CliRunner

from cli.commands.asof import VIEWS, read_row, show_view
from cli.main import app
from cli.settings import Settings
from ledger.eventlog.records import Record
from ledger.runtime.timestamps import from_us
from projections.as_of import AsOf, PositionBeyondHead
from tests.harness import DEADLINE_S, environment, eventually, make_ledger
from tests.ledger.pipeline import Ledger, running_ledger
from tests.private_servers import Servers
from tests.projections.as_of_states import Then, write_history
from tests.proxy import open_proxy
from tests.warm import COMMAND

from .conftest import Run, shell


@pytest.fixture(scope="module")
async def history(servers: Servers) -> AsyncIterator[tuple[Ledger, list[Record]]]:
    """A random history with snapshots, which these tests only read."""
    async with running_ledger(await make_ledger(servers)) as ledger:
        yield ledger, await write_history(ledger)


@pytest.fixture
def settings(history: tuple[Ledger, list[Record]]) -> Settings:
    """Those of that history, for `run`."""
    return history[0].settings


async def rows_at(history: tuple[Ledger, list[Record]], view: str, position: int) -> list[bytes]:
    """The rows of a view as JSON, by a fold of the ledger that was cut at a position."""
    then = Then(history[1], position, await history[0].keys())
    rows = list(getattr(then, view)().values())
    if view != "orders":
        rows.sort(key=lambda row: getattr(row, row.__struct_fields__[0]).bytes)
    return [msgspec.json.encode(row) for row in rows]


Capture = pytest.CaptureFixture[bytes]


@pytest.mark.parametrize("view", VIEWS)
async def test_a_view_as_of_a_position_is_the_fold_up_to_it(
    history: tuple[Ledger, list[Record]], view: str, capfdbinary: Capture
) -> None:
    position = len(history[1]) * 2 // 3
    expected = await rows_at(history, view, position)
    await show_view(history[0].settings, VIEWS[view], AsOf(position), as_json=True)
    assert capfdbinary.readouterr().out.splitlines() == expected
    await show_view(history[0].settings, VIEWS[view], AsOf(position), as_json=False)
    assert len(capfdbinary.readouterr().out.splitlines()) == 1 + len(expected)


@pytest.mark.parametrize("view", VIEWS)
async def test_one_row_is_found_by_its_id(
    run: Run, history: tuple[Ledger, list[Record]], view: str
) -> None:
    position = len(history[1]) // 2
    row = (await rows_at(history, view, position))[-1]
    row_id = next(iter(msgspec.json.decode(row).values()))
    arguments = ("asof", "--position", str(position), view, row_id)
    assert (await run(*arguments, "--json")).out.encode() == row + b"\n"
    assert row_id in (await run(*arguments)).out


async def test_a_time_is_the_last_position_recorded_by_then(
    run: Run, history: tuple[Ledger, list[Record]]
) -> None:
    time_us = history[1][len(history[1]) // 2].recorded_at_us
    last = sum(record.recorded_at_us <= time_us for record in history[1])
    local = from_us(time_us).astimezone(timezone(timedelta(hours=-3, minutes=-30)))
    done = await run("asof", "--time", local.isoformat(), "stock", "--json")
    assert (done.status, done.err) == (0, "")
    assert done.out.encode().splitlines() == await rows_at(history, "stock", last)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("stock",), "either --position N or --time T"),
        (("stock", "--position", "1", "--time", "2026-01-01T00:00:00Z"), "either --position N or"),
        (("stock", "--time", "2026-01-01T00:00:00"), "write 2026-01-01T00:00:00Z for UTC"),
        (("stock", "--time", "yesterday"), "--time must be a time such as"),
    ],
)
def test_contradictory_arguments_are_refused(arguments: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(app, ["asof", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.startswith("✗")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--position", "1"),
        ("--position", "1", "journal"),
        ("--position", "-1", "stock"),
        ("--position", "x", "stock"),
        ("--position", "1", "stock", "no-id"),
        ("--position", "1", "stock", str(uuid4()), str(uuid4())),
    ],
)
def test_invalid_arguments_are_refused(arguments: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, ["asof", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Usage:" in done.stderr


async def test_a_position_beyond_the_head_is_refused_and_the_head_named(
    run: Run, history: tuple[Ledger, list[Record]]
) -> None:
    settings, head = history[0].settings, len(history[1])
    for when in (AsOf(head + 1), AsOf(None, 2**50 * 100)):
        with pytest.raises(PositionBeyondHead, match=f"the ledger ends at position {head}"):
            await show_view(settings, VIEWS["orders"], when, as_json=True)
        with pytest.raises(PositionBeyondHead, match=f"the ledger ends at position {head}"):
            await read_row(settings, VIEWS["stock"], uuid4(), when)
    done = await run("asof", "--position", str(head + 1), "orders")
    assert (done.status, done.out) == (1, "")
    assert f"the ledger ends at position {head}" in done.said_one_sentence()


async def test_a_row_that_did_not_exist_is_status_1(run: Run) -> None:
    done = await run("asof", "--position", "9", "wallets", nobody := str(uuid4()), "--json")
    assert (done.status, done.out) == (1, "")
    assert f"no such customer then: {nobody}" in done.said_one_sentence()


async def test_an_empty_ledger_has_no_rows_as_of_any_position(
    servers: Servers, capfdbinary: Capture
) -> None:
    empty = await make_ledger(servers)
    for view in VIEWS:
        for when in (AsOf(0), AsOf(None, 0)):
            await show_view(empty, VIEWS[view], when, as_json=True)
    assert capfdbinary.readouterr().out == b""
    with pytest.raises(PositionBeyondHead, match="the ledger ends at position 0"):
        await show_view(empty, VIEWS["stock"], AsOf(1), as_json=True)


async def test_a_pipe_that_is_closed_early_is_no_failure(settings: Settings) -> None:
    done = await shell(settings, "ledger asof --position 600 orders --json | head -n 1")
    assert (done.status, done.err) == (0, "")
    assert len(done.out.splitlines()) == 1
    done = await shell(settings, "ledger asof --position 600 orders | true")
    assert (done.status, done.out, done.err) == (0, "", "")


async def test_a_full_disk_is_one_sentence(settings: Settings) -> None:
    done = await shell(settings, "ledger asof --position 600 orders >/dev/full")
    assert done.status == 1
    assert "No space left on device" in done.said_one_sentence()


async def test_a_database_that_fails_half_way_is_one_sentence(run: Run, settings: Settings) -> None:
    async with open_proxy(settings.db_port) as proxy:
        proxy.cut_after(20_000, "down")
        done = await run("asof", "--position", "600", "orders", LEDGER_DB_PORT=str(proxy.port))
    assert done.status == 1
    assert "Traceback" not in done.err
    assert done.err.startswith("✗")


async def test_ctrl_c_ends_it_at_once(
    settings: Settings, history: tuple[Ledger, list[Record]]
) -> None:
    async with open_proxy(settings.db_port) as proxy:
        proxy.delay(0.3)
        process = await asyncio.create_subprocess_exec(
            *(COMMAND, "asof", "--position", "600", "orders"),
            env=os.environ | environment(settings) | {"LEDGER_DB_PORT": str(proxy.port)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

        async def is_reading() -> bool:
            found = await history[0].rows(
                "SELECT COUNT(*) FROM information_schema.processlist"
                " WHERE db = DATABASE() AND id <> CONNECTION_ID()",
                "projector",
            )
            return found[0][0] > 0

        await eventually(is_reading, "the command reads the ledger")
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(DEADLINE_S):
            out, err = await process.communicate()
    assert process.returncode == 130
    assert out == b""
    assert b"Traceback" not in err
