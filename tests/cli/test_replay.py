"""`ledger replay` as lines and files: every event once, in order, whatever came between."""

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from typer.testing import CliRunner

from cli.localstack.servers import Servers
from cli.main import app
from cli.replay import ReplayRefused, ReplayStopped, directory
from cli.replay.directory import NAME, PART, last_whole
from cli.replay.reader import Wish
from cli.replay.run import Replayed, to_directory, to_output
from cli.settings import Settings
from ledger.core.events import TYPE_OF, OrderCompleted
from ledger.eventlog.codec import encode_recorded
from ledger.eventlog.records import Record
from projections.as_of import PositionBeyondHead
from tests.harness import environment, eventually, make_ledger
from tests.ledger.events import history, opening, orders
from tests.ledger.running import Ledger, running_ledger
from tests.proxy import open_proxy

from .conftest import LEDGER, Done, Run, shell


@pytest.fixture(scope="module")
async def told(servers: Servers) -> AsyncIterator[tuple[Ledger, list[Record]]]:
    """A random history, which these tests only read."""
    async with running_ledger(await make_ledger(servers)) as ledger:
        yield ledger, await ledger.write(opening(), history(21, 300))


@pytest.fixture
def settings(told: tuple[Ledger, list[Record]]) -> Settings:
    """Those of that history, for `run`."""
    return told[0].settings


@pytest.fixture
async def ledger(servers: Servers) -> AsyncIterator[Ledger]:
    """A ledger of the test's own, which it may write."""
    async with running_ledger(await make_ledger(servers)) as ledger:
        yield ledger


@pytest.fixture
def lines(told: tuple[Ledger, list[Record]]) -> list[bytes]:
    """Each event as the feed gives it out."""
    return lines_of(told[1])


def lines_of(records: list[Record]) -> list[bytes]:
    ids = {record.position: record.event_id for record in records}
    return [encode_recorded(record, ids.get(record.cause_position)) for record in records]


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a few events."""
    monkeypatch.setattr(directory, "FILE_EVENTS", 97)


def names(path: Path) -> list[str]:
    """The files of a directory, in order."""
    return sorted(file.name for file in path.glob("events-*"))


def content(path: Path) -> list[bytes]:
    """All lines of the files of a directory, in order."""
    files = sorted(path.glob("events-*"))
    assert not [file for file in files if file.suffix == PART], "a file was not finished"
    return [line for file in files for line in file.read_bytes().splitlines()]


async def replay(settings: Settings, path: Path, **wish: Any) -> Replayed:
    return await to_directory(settings, Wish(**wish), path, follow=False)


async def test_every_event_is_a_line_as_the_feed_gives_it(
    run: Run, settings: Settings, lines: list[bytes], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    await to_output(settings, Wish(), follow=False)
    assert capfdbinary.readouterr().out.splitlines() == lines
    done = await run("replay", "--from", "7", "--to", "19", "--into", "stdout")
    assert (done.status, done.err) == (0, "")
    assert done.out.encode().splitlines() == lines[6:19]


async def test_only_what_is_wanted_is_replayed(
    settings: Settings, told: tuple[Ledger, list[Record]], lines: list[bytes], tmp_path: Path
) -> None:
    completed = TYPE_OF[OrderCompleted]
    stream = max(told[1], key=lambda record: record.version).stream_id
    every = list(zip(told[1], lines, strict=True))
    wishes: list[tuple[dict[str, Any], list[bytes]]] = [
        ({"type": completed}, [line for r, line in every if r.type == completed]),
        ({"stream": UUID(bytes=stream)}, [line for r, line in every if r.stream_id == stream]),
        ({"first": 11, "last": 30}, lines[10:30]),
        (
            {"first": 40, "stream": UUID(bytes=stream), "type": "submission.refused"},
            [
                line
                for r, line in every[39:]
                if r.stream_id == stream and r.type == "submission.refused"
            ],
        ),
    ]
    for number, (wish, expected) in enumerate(wishes):
        assert expected, "the history has none of these: it proves nothing"
        path = tmp_path / str(number)
        done = await replay(settings, path, **wish)
        assert done == Replayed(len(expected), wish.get("last") or len(lines))
        assert content(path) == expected


@pytest.mark.usefixtures("small_files")
async def test_files_hold_so_many_events_and_are_named_by_their_first(
    settings: Settings, lines: list[bytes], tmp_path: Path
) -> None:
    assert await replay(settings, tmp_path) == Replayed(len(lines), len(lines))
    starts = range(1, len(lines) + 1, 97)
    assert names(tmp_path) == [f"events-{start:012}.jsonl" for start in starts]
    assert content(tmp_path) == lines


@pytest.mark.usefixtures("small_files")
async def test_to_go_on_leaves_no_gap_and_doubles_nothing(
    settings: Settings, lines: list[bytes], tmp_path: Path
) -> None:
    for last in (1, 2, 96, 97, 98, 250, 250, len(lines)):
        before = len(content(tmp_path))
        assert await replay(settings, tmp_path, last=last) == Replayed(last - before, last)
        assert content(tmp_path) == lines[:last]
    assert await replay(settings, tmp_path) == Replayed(0, len(lines))
    assert await replay(settings, tmp_path, last=5) == Replayed(0, len(lines))


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("wish", [{}, {"type": "submission.refused"}], ids=["all", "some"])
async def test_a_replay_that_was_killed_anywhere_is_healed_by_the_next(
    settings: Settings, wish: dict[str, Any], tmp_path: Path
) -> None:
    """The file under way ends anywhere, and nobody noted how far it came."""
    await replay(settings, tmp_path / "whole", **wish)
    whole = content(tmp_path / "whole")
    last_file = max((tmp_path / "whole").glob("events-*"))
    text = last_file.read_bytes()
    chance = random.Random(1)
    torn = {0, 1, len(text) - 1, len(text), text.index(b"\n"), text.index(b"\n") + 1}
    for end in (*torn, *chance.sample(range(len(text)), 12)):
        path = tmp_path / f"{end}-{bool(wish)}"
        await replay(settings, path, **wish, last=1)
        for file in (tmp_path / "whole").glob("events-*"):
            if file != last_file:
                (path / file.name).write_bytes(file.read_bytes())
        (path / f"{last_file.name}{PART}").write_bytes(text[:end])
        await replay(settings, path, **wish)
        assert content(path) == whole, end


async def test_garbage_after_the_last_line_is_cut_off(tmp_path: Path) -> None:
    """As a disk may have it that lost its power."""
    file = tmp_path / "x"
    for text, end in (
        (b"", 0),
        (b"{", 0),
        (b"\n\n", 0),
        (b'{"position":1,"hash":"a"}\n', 26),
        (b'{"position":1,"hash":"a"}\n{"position":2,"ha', 26),
        (b'{"position":1,"hash":"a"}\n\0\0\0\n\0', 26),
        (b'{"position":1,"hash":"a"}\n\xff\n', 26),
    ):
        file.write_bytes(text)
        assert last_whole(file)[0] == end


async def test_files_that_were_taken_away_do_not_come_again(
    settings: Settings, lines: list[bytes], tmp_path: Path
) -> None:
    await replay(settings, tmp_path, last=50)
    for name in names(tmp_path):
        (tmp_path / name).unlink()
    await replay(settings, tmp_path)
    assert content(tmp_path) == lines[50:]


async def test_a_directory_of_other_events_is_refused(
    settings: Settings, servers: Servers, tmp_path: Path
) -> None:
    await replay(settings, tmp_path / "all")
    with pytest.raises(ReplayRefused, match="holds the replay of other events"):
        await replay(settings, tmp_path / "all", first=2)
    with pytest.raises(ReplayRefused, match="holds the replay of other events"):
        await replay(settings, tmp_path / "all", type="order.placed")
    (tmp_path / "all" / NAME).unlink()
    with pytest.raises(ReplayRefused, match="holds the replay of other events"):
        await replay(settings, tmp_path / "all")
    async with running_ledger(await make_ledger(servers)) as other:
        await other.write(opening(), orders(3))
        await replay(other.settings, tmp_path / "other")
    with pytest.raises(ReplayRefused, match="of another ledger"):
        await replay(settings, tmp_path / "other")
    (tmp_path / "other" / NAME).write_text("{}")
    with pytest.raises(ReplayRefused, match="is not that of a replay"):
        await replay(settings, tmp_path / "other")


async def test_two_replays_into_one_directory_take_turns(
    settings: Settings, tmp_path: Path
) -> None:
    with (
        directory.open_directory(tmp_path, Wish()),
        pytest.raises(ReplayRefused, match=r"another replay into .* is under way"),
    ):
        await replay(settings, tmp_path)
    await replay(settings, tmp_path)


async def test_a_directory_that_can_not_be_is_told(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReplayRefused, match="can't write"):
        await replay(settings, tmp_path / "file")


async def test_what_lies_ahead_is_refused(
    settings: Settings, lines: list[bytes], tmp_path: Path
) -> None:
    for wish in ({"last": len(lines) + 1}, {"first": len(lines) + 2}):
        with pytest.raises(PositionBeyondHead, match=f"the ledger ends at position {len(lines)}"):
            await replay(settings, tmp_path / str(wish), **wish)
    await replay(settings, tmp_path / "next", first=len(lines) + 1)
    assert content(tmp_path / "next") == []


async def test_an_empty_ledger_is_an_empty_replay(
    servers: Servers, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    empty = await make_ledger(servers)
    assert await replay(empty, tmp_path) == Replayed(0, 0)
    await to_output(empty, Wish(), follow=False)
    assert capfdbinary.readouterr().out == b""


async def test_a_database_that_goes_half_way_says_how_far_it_came(
    settings: Settings, lines: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.replay.reader.WINDOW", 50)
    async with open_proxy(settings.db_port) as proxy:
        changed = settings.model_copy(update={"db_port": proxy.port})
        proxy.cut_after(100_000, "down")
        with pytest.raises(ReplayStopped, match=r"the database went away: .*as position \d*50|00"):
            await replay(changed, tmp_path)
    assert content(tmp_path) == lines[: len(content(tmp_path))]
    assert 0 < len(content(tmp_path)) < len(lines)
    await replay(settings, tmp_path)
    assert content(tmp_path) == lines


async def test_ctrl_c_leaves_whole_lines(
    told: tuple[Ledger, list[Record]], lines: list[bytes], tmp_path: Path
) -> None:
    ledger = told[0]
    async with open_proxy(ledger.settings.db_port) as proxy:
        proxy.trickle(0.001)
        process = await asyncio.create_subprocess_exec(
            *(LEDGER, "replay", "--into", tmp_path / "d"),
            env=os.environ | environment(ledger.settings) | {"LEDGER_DB_PORT": str(proxy.port)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

        async def has_begun() -> bool:
            return (tmp_path / "d" / NAME).exists()

        await eventually(has_begun, "the replay has begun")
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            _, said = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in said
    assert content(tmp_path / "d") == lines[: len(content(tmp_path / "d"))]
    await replay(ledger.settings, tmp_path / "d")
    assert content(tmp_path / "d") == lines


async def test_a_full_disk_leaves_whole_lines_and_the_next_replay_goes_on(
    settings: Settings, lines: list[bytes], tmp_path: Path
) -> None:
    done = await shell(settings, "ulimit -f 64; ledger replay --into d", tmp_path)
    assert done.status == 1
    said = done.said_one_sentence()
    assert said.startswith("✗ ReplayStopped: can't write d")
    assert "File too large; it came as far as position" in said
    before = content(tmp_path / "d")
    assert before == lines[: len(before)]
    done = await shell(settings, "ledger replay --into d", tmp_path)
    assert (done.status, done.err) == (0, "")
    assert content(tmp_path / "d") == lines


async def test_a_reader_that_has_enough_is_no_failure_and_a_full_disk_is(
    settings: Settings, lines: list[bytes], tmp_path: Path
) -> None:
    done = await shell(settings, "ledger replay | head -n 1", tmp_path)
    assert done == Done(0, f"{lines[0].decode()}\n", "")
    done = await shell(settings, "ledger replay --follow >/dev/full", tmp_path)
    assert done.status == 1
    assert "No space left on device" in done.said_one_sentence()


@pytest.mark.parametrize("into", ["d", "stdout"])
async def test_following_goes_on_until_it_is_told_to_stop(
    ledger: Ledger, tmp_path: Path, into: str
) -> None:
    """Through a database that goes and comes back."""
    records = await ledger.write(opening(), orders(3))
    out = tmp_path / "out"
    async with open_proxy(ledger.settings.db_port) as proxy:
        with out.open("wb") as stdout:
            process = await asyncio.create_subprocess_exec(
                *(LEDGER, "replay", "--follow", "--into", into),
                cwd=tmp_path,
                env=os.environ | environment(ledger.settings) | {"LEDGER_DB_PORT": str(proxy.port)},
                stdout=stdout,
                stderr=asyncio.subprocess.PIPE,
            )

        async def shows_all() -> bool:
            files = (tmp_path / "d").glob("events-*") if into == "d" else [out]
            shown = b"".join(file.read_bytes() for file in sorted(files))
            return shown.splitlines() == lines_of(records)

        await eventually(shows_all, "all events are replayed")
        for step in range(3):
            if step == 1:
                proxy.cut()
                records = await ledger.write(orders(2))
                await proxy.heal()
            else:
                records = await ledger.write(orders(2))
            await eventually(shows_all, "new events are replayed")
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            _, said = await process.communicate()
    assert process.returncode == 0, said
    assert b"Traceback" not in said
    if into == "d":
        assert content(tmp_path / "d") == lines_of(records)
        assert json.loads((tmp_path / "d" / NAME).read_text())["position"] == len(records)


async def test_following_ends_where_it_is_told_to(ledger: Ledger, tmp_path: Path) -> None:
    await ledger.write(opening(), orders(1))
    following = asyncio.create_task(
        to_directory(ledger.settings, Wish(last=7), tmp_path, follow=True)
    )
    records = await ledger.write(orders(3))
    async with asyncio.timeout(20):
        assert await following == Replayed(7, 7)
    assert content(tmp_path) == lines_of(records)[:7]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--from", "5", "--to", "4"), "--to 4 is before --from 5"),
        (("--type", "order.shipped"), "is not known: choose of customer.registered,"),
        (("--into", "d", "--into-inbox", "h"), "choose one of --into and --into-inbox"),
        (("--into-inbox", "h", "--type", "order.completed"), "is not submitted: choose of"),
        (("--into-inbox", "h", "--stream", str(UUID(int=1))), "can't be decided by itself"),
        (("--into-inbox", "nowhere"), "there is no nowhere/stack.env"),
    ],
)
def test_options_that_can_not_be_meant(arguments: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(app, ["replay", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [("--from", "0"), ("--to", "x"), ("--stream", "7"), ("--into",), ("all",)]
)
def test_options_that_can_not_be_read(arguments: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, ["replay", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
