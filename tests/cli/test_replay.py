"""`ledger replay` as lines: every selected event once and in order, through every interruption."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from typer.testing import CliRunner

from cli.commands.replay import ReplayStopped, Selection, print_events
from cli.main import app
from cli.settings import Settings
from ledger.core.events import TYPE_OF, OrderCompleted
from ledger.eventlog.codec import encode_recorded
from ledger.eventlog.records import Record
from projections.as_of import PositionBeyondHead
from tests.harness import DEADLINE_S, environment, eventually, make_ledger
from tests.ledger.pipeline import Ledger, running_ledger
from tests.private_servers import Servers
from tests.proxy import open_proxy
from tests.submissions import history, opening, orders
from tests.warm import COMMAND

from .conftest import Done, Run, shell

Capture = pytest.CaptureFixture[bytes]


@pytest.fixture(scope="module")
async def shop(servers: Servers) -> AsyncIterator[tuple[Ledger, list[Record]]]:
    """A ledger with a random history and its records; no test may change it."""
    async with running_ledger(await make_ledger(servers)) as ledger:
        yield ledger, await ledger.write(opening(), history(21, 300))


@pytest.fixture
def settings(shop: tuple[Ledger, list[Record]]) -> Settings:
    """The settings of that ledger, for `run`."""
    return shop[0].settings


@pytest.fixture
async def ledger(servers: Servers) -> AsyncIterator[Ledger]:
    """A ledger of the test's own, which it may write."""
    async with running_ledger(await make_ledger(servers)) as ledger:
        yield ledger


@pytest.fixture
def lines(shop: tuple[Ledger, list[Record]]) -> list[bytes]:
    """Each event of the shop as the feed has it."""
    return lines_of(shop[1])


def lines_of(records: list[Record]) -> list[bytes]:
    ids = {record.position: record.event_id for record in records}
    return [encode_recorded(record, ids.get(record.cause_position)) for record in records]


async def printed(settings: Settings, capture: Capture, **selected: Any) -> list[bytes]:
    """The lines that a replay prints."""
    capture.readouterr()
    await print_events(settings, Selection(**selected), follow=False)
    return capture.readouterr().out.splitlines()


async def test_every_event_is_a_line_as_the_feed_has_it(
    run: Run, settings: Settings, lines: list[bytes], capfdbinary: Capture
) -> None:
    assert await printed(settings, capfdbinary) == lines
    done = await run("replay", "--from", "7", "--to", "19")
    assert (done.status, done.err) == (0, "")
    assert done.out.encode().splitlines() == lines[6:19]


@pytest.mark.parametrize("page_size", [1, 7, 5_000])
async def test_only_selected_events_are_printed_wherever_a_page_ends(
    shop: tuple[Ledger, list[Record]],
    lines: list[bytes],
    capfdbinary: Capture,
    monkeypatch: pytest.MonkeyPatch,
    page_size: int,
) -> None:
    monkeypatch.setattr("cli.commands.replay.PAGE_SIZE", page_size)
    ledger, records = shop
    completed, refused = TYPE_OF[OrderCompleted], "submission.refused"
    stream = max(records, key=lambda record: record.version).stream_id
    of_stream = {"stream": UUID(bytes=stream)}
    numbered = list(zip(records, lines, strict=True))
    cases: list[tuple[dict[str, Any], list[bytes]]] = [
        ({}, lines),
        ({"first": 11, "last": 30}, lines[10:30]),
        ({"type": completed}, [line for r, line in numbered if r.type == completed]),
        (of_stream, [line for r, line in numbered if r.stream_id == stream]),
        (
            {"first": 40, "type": refused} | of_stream,
            [line for r, line in numbered[39:] if r.stream_id == stream and r.type == refused],
        ),
    ]
    for selected, expected in cases:
        assert expected, "the history has none of these: it proves nothing"
        assert await printed(ledger.settings, capfdbinary, **selected) == expected


async def test_positions_beyond_the_head_are_refused(
    settings: Settings, lines: list[bytes], capfdbinary: Capture
) -> None:
    for selected in ({"last": len(lines) + 1}, {"first": len(lines) + 2}):
        with pytest.raises(PositionBeyondHead, match=f"the ledger ends at position {len(lines)}"):
            await printed(settings, capfdbinary, **selected)
    assert await printed(settings, capfdbinary, first=len(lines) + 1) == []


async def test_an_empty_ledger_has_no_lines(servers: Servers, capfdbinary: Capture) -> None:
    assert await printed(await make_ledger(servers), capfdbinary) == []


async def test_a_database_that_fails_half_way_names_the_last_position_printed(
    settings: Settings,
    lines: list[bytes],
    capfdbinary: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cli.commands.replay.PAGE_SIZE", 50)
    async with open_proxy(settings.db_port) as proxy:
        through_proxy = settings.model_copy(update={"db_port": proxy.port})
        proxy.cut_after(100_000, "down")
        with pytest.raises(ReplayStopped, match=r"the database went away: ") as stopped:
            await print_events(through_proxy, Selection(), follow=False)
    output = capfdbinary.readouterr().out
    position = len(output.splitlines())
    assert 0 < position < len(lines)
    assert output == b"".join(line + b"\n" for line in lines[:position])
    assert str(stopped.value).endswith(f"it came as far as position {position}")


async def test_a_reader_that_closes_the_pipe_is_no_failure_and_a_full_disk_is(
    settings: Settings, lines: list[bytes], tmp_path: Path
) -> None:
    done = await shell(settings, "ledger replay | head -n 1", tmp_path)
    assert done == Done(0, f"{lines[0].decode()}\n", "")
    done = await shell(settings, "ledger replay --follow >/dev/full", tmp_path)
    assert done.status == 1
    assert "No space left on device" in done.said_one_sentence()


async def test_following_continues_through_outages_until_it_is_stopped(
    ledger: Ledger, tmp_path: Path
) -> None:
    records = await ledger.write(opening(), orders(3))
    output = tmp_path / "out"

    async def has_all() -> bool:
        return output.read_bytes().splitlines() == lines_of(records)

    async with open_proxy(ledger.settings.db_port) as proxy:
        with output.open("wb") as stdout:
            process = await asyncio.create_subprocess_exec(
                *(COMMAND, "replay", "--follow"),
                env=os.environ | environment(ledger.settings) | {"LEDGER_DB_PORT": str(proxy.port)},
                stdout=stdout,
                stderr=asyncio.subprocess.PIPE,
            )
        try:
            await eventually(has_all, "all events are printed")
            for database_goes_away in (False, True, False):
                if database_goes_away:
                    proxy.cut()
                records = await ledger.write(orders(2))
                if database_goes_away:
                    await proxy.heal()
                await eventually(has_all, "new events are printed")
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(DEADLINE_S):
                _, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, err
    assert b"Traceback" not in err
    assert await has_all()


async def test_following_ends_at_the_last_position_asked_for(
    ledger: Ledger, capfdbinary: Capture
) -> None:
    await ledger.write(opening(), orders(1))
    following = asyncio.create_task(print_events(ledger.settings, Selection(last=7), follow=True))
    records = await ledger.write(orders(3))
    async with asyncio.timeout(DEADLINE_S):
        await following
    assert capfdbinary.readouterr().out.splitlines() == lines_of(records)[:7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--from", "5", "--to", "4"), "--to 4 is before --from 5"),
        (("--type", "order.shipped"), "is not known: choose of customer.registered,"),
        (("--into-inbox", "h", "--type", "order.completed"), "is not submitted: choose of"),
        (("--into-inbox", "h", "--stream", str(UUID(int=1))), "can't be decided by itself"),
        (("--into-inbox", "nowhere"), "there is no nowhere/stack.env"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    arguments: tuple[str, ...], message: str
) -> None:
    done = CliRunner().invoke(app, ["replay", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [("--from", "0"), ("--to", "x"), ("--stream", "7"), ("--into", "d"), ("all",)]
)
def test_options_that_can_not_be_parsed_are_refused(arguments: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, ["replay", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
