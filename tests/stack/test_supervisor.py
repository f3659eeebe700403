"""Programs under supervision: what ends is started again, with a line that says which and why."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from cli.localstack import StackRefused, supervisor
from cli.localstack.supervisor import Program, Supervisor, find_processes, stop_processes
from tests.harness import eventually

STEADY = "echo started; trap 'echo $0 >>order; exit 0' TERM; while :; do sleep 0.1; done"
ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


def program(name: str, code: str, answers: Callable[[], bool] = lambda: True) -> Program:
    return Program(name, ("/bin/sh", "-c", code, name), ENVIRONMENT, answers)


class Supervised(Supervisor):
    """A supervisor with the lines that it reported."""

    def __init__(self, home: Path) -> None:
        self.lines: list[str] = []
        super().__init__(home, self.lines.append, lambda _: contextlib.nullcontext())

    async def start_steady(self, name: str) -> None:
        """Start a program that runs until it's asked to end, and says so then."""
        code = STEADY.replace("order", str(self._home / "order"))
        started = self.log(name)
        await self.start(program(name, code, lambda: started.read_text().startswith("started")))


@pytest.fixture
async def supervised(tmp_path: Path) -> AsyncIterator[Supervised]:
    async with Supervised(tmp_path) as running:
        yield running
    assert find_processes(tmp_path) == []


def find(home: Path, name: str) -> psutil.Process | None:
    for process in find_processes(home):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[-1] == name:
                return process
    return None


async def test_a_killed_program_is_started_again_with_a_line_that_says_which_and_why(
    supervised: Supervised, tmp_path: Path
) -> None:
    await supervised.start_steady("worker")
    killed = find(tmp_path, "worker")
    assert killed
    killed.kill()

    async def restarted() -> bool:
        process = find(tmp_path, "worker")
        return process is not None and process.pid != killed.pid

    await eventually(restarted, "the killed program runs again")
    assert supervised.lines == [
        f"worker ended (killed by SIGKILL) and is started again now: see {tmp_path}/logs/worker.log"
    ]


async def test_a_program_that_keeps_failing_is_tried_less_often_until_it_works_again(
    supervised: Supervised, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "MAX_DELAY_S", 0.1)
    fault = tmp_path / "fault"
    await supervised.start(program("worker", f"test -e '{fault}' && exit 3; exec sleep 600"))

    async def runs() -> bool:
        return any(process.name() == "sleep" for process in find_processes(tmp_path))

    await eventually(runs, "the program runs")
    fault.touch()
    (worker,) = find_processes(tmp_path)
    worker.kill()

    async def failed() -> bool:
        return len(supervised.lines) > 2

    await eventually(failed, "it's reported that the program keeps failing")
    assert "worker ended (exit 3) and is started again in" in supervised.lines[-1]
    fault.unlink()
    await eventually(runs, "the program runs when its fault is mended")


async def test_the_output_of_a_program_is_kept_in_its_log(
    supervised: Supervised, tmp_path: Path
) -> None:
    await supervised.start_steady("server")
    assert (tmp_path / "logs" / "server.log").read_text() == "started\n"


async def test_a_large_log_is_moved_away_and_its_program_goes_on_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LOG_BYTES", 10)
    log = tmp_path / "logs" / "worker.log"
    async with Supervised(tmp_path) as supervised:
        await supervised.start(program("worker", "while echo a line of text; do sleep 0.05; done"))

        async def rotated() -> bool:
            return log.with_name("worker.log.1").exists() and log.exists()

        await eventually(rotated, "the log was moved away and there is a new one")


async def test_a_full_log_disk_costs_lines_which_the_log_says_once_it_can_and_no_program(
    supervised: Supervised, tmp_path: Path
) -> None:
    """The broker ends when its output fails, and its restart failed as the log did."""
    log = supervised.log("worker")
    log.symlink_to("/dev/full")
    await supervised.start(
        program("worker", f"echo $$ >{tmp_path}/pid; while echo line; do sleep 0.05; done")
    )

    async def said() -> bool:
        return bool(supervised.lines)

    await eventually(said, "it's reported that the log can't be written")
    assert supervised.lines == [
        f"{log} can't be written (No space left on device): what worker says is dropped until there"
        " is room"
    ]
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)

    async def restarted() -> bool:
        return any("is started again now" in line for line in supervised.lines)

    await eventually(restarted, "a program that ends then is started again")
    log.unlink()

    async def written() -> bool:
        return log.exists() and log.read_text().endswith("line\n")

    await eventually(written, "the log is written again")
    assert re.match(r"\n… \d+ lines of output are missing here\nline\n", log.read_text())


async def test_a_program_that_ends_while_its_log_cannot_be_written_is_named_with_its_last_line(
    supervised: Supervised,
) -> None:
    supervised.log("worker").symlink_to("/dev/full")
    with pytest.raises(StackRefused, match=r"worker ended soon .*\(no settings\)"):
        await supervised.start(program("worker", "echo no settings; exit 2", lambda: False))


async def test_what_a_program_writes_is_for_this_user_alone(
    supervised: Supervised, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    await supervised.start(
        program("worker", f"echo x >{made}; echo y; exec sleep 600", made.exists),
    )

    async def logged() -> bool:
        return supervised.log("worker").exists()

    await eventually(logged, "the program has a log")
    for path in (made, supervised.log("worker"), tmp_path / "logs"):
        assert path.stat().st_mode & 0o077 == 0


async def test_programs_are_stopped_in_the_reverse_order_of_their_starts(tmp_path: Path) -> None:
    async with Supervised(tmp_path) as supervised:
        for name in "abc":
            await supervised.start_steady(name)
    assert (tmp_path / "order").read_text().split() == ["c", "b", "a"]
    assert find_processes(tmp_path) == []


async def test_a_program_that_ends_at_its_start_is_refused_with_its_last_line(
    supervised: Supervised, tmp_path: Path
) -> None:
    ending = program("worker", "echo no settings; exit 2", lambda: False)
    with pytest.raises(StackRefused, match=r"worker ended soon .*\(no settings\): see .*log"):
        await supervised.start(program("server", "exec sleep 600", lambda: False), ending)


async def test_a_program_that_does_not_end_when_asked_is_killed_with_its_children(
    tmp_path: Path,
) -> None:
    stubborn = Program(
        "worker",
        ("/bin/sh", "-c", "trap '' TERM; sleep 600 & echo ready; while :; do sleep 600; done"),
        ENVIRONMENT,
        lambda: (tmp_path / "logs" / "worker.log").read_text() == "ready\n",
        stop_timeout_s=0.1,
    )
    async with Supervised(tmp_path) as supervised:
        await supervised.start(stubborn)
    assert find_processes(tmp_path) == []


async def test_a_program_that_still_starts_and_loses_the_signal_is_killed_soon_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker loses it while Erlang boots: half a minute of nothing would follow Ctrl-C."""
    monkeypatch.setattr(supervisor, "STARTING_STOP_TIMEOUT_S", 0.1)
    log = tmp_path / "logs" / "broker.log"
    deaf = "trap '' TERM; echo deaf; while :; do sleep 0.1; done"
    async with Supervised(tmp_path) as supervised:
        starting = asyncio.create_task(supervised.start(program("broker", deaf, lambda: False)))

        async def is_deaf() -> bool:
            return log.exists() and log.read_text() == "deaf\n"

        await eventually(is_deaf, "the program ignores the signal")
        starting.cancel()
        await asyncio.wait([starting])
        began_at = time.monotonic()
    assert time.monotonic() - began_at < Program("", (), {}).stop_timeout_s / 2
    assert supervised.lines == ["broker did not end in 0.1 s, so it is killed"]
    assert find_processes(tmp_path) == []


async def test_a_command_that_fails_is_refused_with_its_last_line(supervised: Supervised) -> None:
    await supervised.run_to_end(program("migrate", "echo migrated"))
    with pytest.raises(StackRefused, match=r"`ledger migrate` failed \(no database\): see .*log"):
        await supervised.run_to_end(program("migrate", "echo no database; exit 1"))


async def test_nothing_outlives_an_owner_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import asyncio, contextlib, pathlib, sys\n"
        "from cli.localstack.supervisor import Supervisor, Program\n"
        "async def main():\n"
        "    home = pathlib.Path(sys.argv[1])\n"
        "    sleep = Program('sleep', ('sleep', '600'), {'PATH': '/bin'}, lambda: True)\n"
        "    async with Supervisor(home, print, lambda _: contextlib.nullcontext()) as it:\n"
        "        await it.start(sleep)\n"
        "        print('started', flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, tmp_path, stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout
    assert await owner.stdout.readline() == b"started\n"

    async def runs() -> bool:
        return len(find_processes(tmp_path)) == 1

    await eventually(runs, "the program runs")
    owner.kill()
    await owner.wait()

    async def gone() -> bool:
        return find_processes(tmp_path) == []

    await eventually(gone, "the program ends after the death of its owner")


def test_only_processes_that_carry_the_mark_of_a_home_are_ended(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"], cwd=tmp_path) as stranger:
        assert stop_processes(tmp_path) == 0
        assert stranger.poll() is None
        stranger.kill()
