"""Supervision: what ends is started again, with a line that says which and why."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import psutil
import pytest

from cli.localstack import StackRefused
from cli.localstack.programs import Program, find_processes, stop_processes
from cli.localstack.supervisor import Supervision
from tests.harness import eventually

TIMEOUT_S = 20.0


def program(name: str, code: str) -> Program:
    return Program(name, ("/bin/sh", "-c", code), {"PATH": "/usr/bin:/bin"}, bare=True)


STEADY = "echo started; trap 'echo $0 >>order; exit 0' TERM; while :; do sleep 0.1; done"


def steady(name: str) -> Program:
    return Program(name, ("/bin/sh", "-c", STEADY, name), {"PATH": "/usr/bin:/bin"}, bare=True)


class Watched(Supervision):
    """A supervision that remembers the lines it reported."""

    def __init__(self, home: Path, groups: Mapping[str, tuple[Program, ...]]) -> None:
        self.lines: list[str] = []
        super().__init__(home, groups, self.lines.append)

    async def run(self, name: str) -> None:
        await self.start(name, lambda: self.is_running(name), TIMEOUT_S)


@pytest.fixture
async def supervision(tmp_path: Path) -> AsyncIterator[Watched]:
    groups = {"servers": (steady("server"),), "ledger": (steady("worker"),)}
    async with Watched(tmp_path, groups) as running:
        yield running
    assert find_processes(tmp_path) == []


def pid_of(home: Path, name: str) -> psutil.Process | None:
    found = [process for process in find_processes(home) if process.cmdline()[-1] == name]
    return found[0] if found else None


async def test_a_killed_program_is_started_again_with_a_line_that_says_which_and_why(
    supervision: Watched, tmp_path: Path
) -> None:
    await supervision.run("worker")
    killed = pid_of(tmp_path, "worker")
    assert killed
    killed.kill()

    async def restarted() -> bool:
        found = pid_of(tmp_path, "worker")
        return found is not None and found.pid != killed.pid and bool(supervision.lines)

    await eventually(restarted, "the killed program runs again and is reported")
    assert supervision.lines == [
        f"worker ended (terminated by SIGKILL) and is started again: see {tmp_path}/logs/worker.log"
    ]


async def test_a_program_that_keeps_failing_is_tried_until_it_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.localstack.supervisor.RETRIES", 0)
    fault = tmp_path / "fault"
    code = "test -e fault && exit 1; exec sleep 60"
    async with Watched(tmp_path, {"ledger": (program("worker", code),)}) as supervision:
        await supervision.run("worker")
        fault.touch()
        next(p for p in find_processes(tmp_path) if p.name() == "sleep").kill()

        async def given_up() -> bool:
            return any("ends each time" in line for line in supervision.lines)

        await eventually(given_up, "it's said that the program keeps failing")
        fault.unlink()

        async def runs() -> bool:
            return supervision.is_running("worker")

        await eventually(runs, "the program runs when its fault is mended")


async def test_what_the_programs_say_is_kept_in_their_logs(
    supervision: Watched, tmp_path: Path
) -> None:
    await supervision.run("server")
    assert (tmp_path / "logs" / "server.log").read_text() == "started\n"


async def test_programs_are_stopped_in_the_reverse_order_of_their_groups(tmp_path: Path) -> None:
    groups = {"first": (steady("a"),), "second": (steady("b"),), "third": (steady("c"),)}
    async with Watched(tmp_path, groups) as supervision:
        await asyncio.gather(*map(supervision.run, "abc"))
    assert (tmp_path / "order").read_text().split() == ["c", "b", "a"]
    assert find_processes(tmp_path) == []


async def test_a_program_that_ends_at_its_start_is_refused_with_its_last_line(
    tmp_path: Path,
) -> None:
    groups = {"ledger": (program("worker", "echo no settings; exit 2"),)}
    async with Watched(tmp_path, groups) as supervision:
        with pytest.raises(StackRefused, match=r"worker ended soon .*\(no settings\): see .*log"):
            await supervision.run("worker")


async def test_a_second_signal_does_not_break_the_stopping(tmp_path: Path) -> None:
    running = asyncio.Event()

    async def run() -> None:
        async with Watched(tmp_path, {"ledger": (steady("worker"),)}) as supervision:
            await supervision.run("worker")
            running.set()
            await supervision.wait()

    task = asyncio.create_task(run())
    await running.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([task])
    assert find_processes(tmp_path) == []


async def test_leftovers_of_a_killed_supervisor_are_found_and_stopped(
    supervision: Watched, tmp_path: Path
) -> None:
    await supervision.run("worker")
    supervisor = next(p for p in find_processes(tmp_path) if "supervisord.conf" in p.cmdline())
    supervisor.kill()
    await supervision.wait()
    assert pid_of(tmp_path, "worker")
    assert await asyncio.to_thread(stop_processes, tmp_path) >= 1
    assert find_processes(tmp_path) == []


def test_a_process_that_only_works_in_the_directory_of_a_stack_is_not_taken_for_one_of_its_own(
    tmp_path: Path,
) -> None:
    with psutil.Popen(["sleep", "60"], cwd=tmp_path) as stranger:
        assert stop_processes(tmp_path) == 0
        assert stranger.is_running()
        stranger.kill()
