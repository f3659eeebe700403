"""The programs of the stack as child processes: started, restarted when they end, and stopped.

`python -m cli.localstack.supervisor HOME` is the watchdog of a stack: it waits until its standard
input ends, as it does when the stack's owner is gone, and ends whatever still runs for that home.
"""

import asyncio
import contextlib
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from asyncio.subprocess import Process
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from cli.localstack import StackRefused
from cli.localstack.ports import INTERVAL_S

# Every process of a stack carries its home in this variable, so it's known as ours for certain.
MARK = "LEDGER_STACK"
# The settings that a command in another terminal must share, besides the ports in `stack.env`.
SHARED = ("LEDGER_HOME", "LEDGER_SECRETS_DIR", "LEDGER_DB_NAME", "LEDGER_AMQP_VHOST")
# The `ledger` command of this installation.
LEDGER = str(Path(sys.executable).with_name("ledger"))

END_TIMEOUT_S = 40.0
# Erlang may lose a SIGTERM that comes while it boots. What is killed then has answered nobody yet,
# and both servers start as well after it as after a power cut.
STARTING_STOP_TIMEOUT_S = 3.0
# A program that ran for this long is taken to be sound: its next restart is immediate again.
STEADY_S = 30.0
MAX_DELAY_S = 30.0
LOG_BYTES = 10_000_000
MAX_READ = 50
COPY_BYTES = 64 * 1024
REPORT_EVERY_S = 60.0
TAIL_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A command, its whole environment, how to see that it serves, and how long to wait for that.

    A server replays its log at its start, however long that is after a kill.
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    answers: Callable[[], bool] = lambda: True
    start_timeout_s: float = 120.0
    stop_timeout_s: float = 30.0


def last_line(log: Path) -> str:
    """The line at the end of a program's output that says why it ended."""
    return telling_line(log.read_text(errors="replace") if log.exists() else "")


def telling_line(output: str) -> str:
    """The last line, or the last error before it where a database only says that it gives up."""
    lines = output.strip().splitlines()[-MAX_READ:] or ["no output"]
    errors = [line for line in lines if "[ERROR]" in line and not line.endswith("Aborting")]
    return (errors or lines)[-1].strip()


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class OutputCopy(threading.Thread):
    """Copies a program's output into its log; where the log can't be written, lines are dropped.

    A program whose output fails may end, as the broker does. `report` gets a line when the first
    output is dropped; the log says how much is missing as soon as it can. A log of LOG_BYTES is
    moved to `NAME.log.1`, and a new one begun.
    """

    def __init__(
        self, source: int, log: Path, report: Callable[[str], None], before: Self | None
    ) -> None:
        super().__init__(name=f"output of {log.stem}", daemon=True)
        self._source = source
        self._log = log
        self._report = report
        self._missing: int = before._missing if before else 0
        self._reported_at: float = before._reported_at if before else -math.inf
        self._tail = b""

    def run(self) -> None:
        """Copy until the program and all that it started have closed their output."""
        with open(self._source, "rb", buffering=0) as source:
            while output := source.read(COPY_BYTES):
                self._tail = (self._tail + output)[-COPY_BYTES:]
                self._write(output)

    def last_line(self) -> str:
        """The line at the program's end that says why it ended; waits for it a moment."""
        self.join(TAIL_TIMEOUT_S)
        return telling_line(self._tail.decode(errors="replace"))

    def _write(self, output: bytes) -> None:
        note = f"\n… {self._missing} lines of output are missing here\n" if self._missing else ""
        rest = memoryview(note.encode() + output)
        with contextlib.suppress(OSError):
            if self._log.stat().st_size > LOG_BYTES:
                self._log.replace(self._log.with_name(f"{self._log.name}.1"))
        try:
            # Opened anew each time: the log may have been moved, or its disk mounted again.
            with open(self._log, "ab", buffering=0, opener=_open_private) as log:
                while rest:
                    rest = rest[log.write(rest) :]
        except OSError as error:
            self._missing += max(1, output.count(b"\n"))
            if time.monotonic() - self._reported_at > REPORT_EVERY_S:
                self._reported_at = time.monotonic()
                self._report(
                    f"{self._log} can't be written ({error.strerror}): what {self._log.stem} says"
                    " is dropped until there is room"
                )
        else:
            self._missing = 0


class Supervisor:
    """Keeps programs running below a home; leaving the context stops them, the last started first.

    `report` gets one line for each program that ended and is started again, or had to be killed.
    `step` gives the context in which a program starts or stops, for showing that.
    """

    def __init__(
        self,
        home: Path,
        report: Callable[[str], None],
        step: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self._home = home
        self._report = report
        self._step = step
        self._started: list[tuple[Program, ...]] = []
        self._running: dict[Program, Process] = {}
        self._starting: set[Program] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._copies: dict[Program, OutputCopy] = {}

    async def __aenter__(self) -> Self:
        (self._home / "logs").mkdir(parents=True, exist_ok=True)
        (self._home / "logs").chmod(0o700)
        self._watchdog = start_watchdog(self._home)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for programs in reversed(self._started):
            await asyncio.gather(*map(self._stop, programs))
        # What programs started themselves is ended by the watchdog.
        await asyncio.to_thread(self._watchdog.communicate)
        for copy in self._copies.values():
            await asyncio.to_thread(copy.join, TAIL_TIMEOUT_S)

    def log(self, name: str) -> Path:
        """The file with the output of a program."""
        return self._home / "logs" / f"{name}.log"

    async def start(self, *programs: Program) -> None:
        """Start programs, wait until each answers, and keep them running.

        Raises StackRefused if one ends or gives no answer in time.
        """
        self._started.append(programs)
        starts = [asyncio.create_task(self._start(program)) for program in programs]
        try:
            await asyncio.gather(*starts)
        finally:
            # When one fails the others must not go on to restart what is being stopped.
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)

    async def _start(self, program: Program) -> None:
        name = program.name
        log = self.log(name)
        deadline = time.monotonic() + program.start_timeout_s
        with self._step(f"{name} serves"):
            self._starting.add(program)
            process = await self._spawn(program)
            while not await asyncio.to_thread(program.answers):
                if process.returncode is not None:
                    last_line = await asyncio.to_thread(self._copies[program].last_line)
                    raise StackRefused(
                        f"{name} ended soon after its start ({last_line}): see {log}"
                    )
                if time.monotonic() > deadline:
                    raise StackRefused(
                        f"{name} gave no answer in {program.start_timeout_s:.0f} s: see {log}"
                    )
                await asyncio.sleep(INTERVAL_S)
            self._starting.remove(program)
        self._tasks.append(asyncio.create_task(self._keep_running(program)))

    async def run_to_end(self, program: Program) -> None:
        """Run a program to its end; raises StackRefused with its last line if it fails."""
        log = self.log(program.name)
        log.unlink(missing_ok=True)
        self._started.append((program,))
        process = await self._spawn(program)
        try:
            status = await asyncio.wait_for(process.wait(), program.start_timeout_s)
        except TimeoutError:
            raise StackRefused(
                f"`ledger {program.name}` took over {program.start_timeout_s:.0f} s: see {log}"
            ) from None
        if status:
            last_line = await asyncio.to_thread(self._copies[program].last_line)
            raise StackRefused(f"`ledger {program.name}` failed ({last_line}): see {log}")

    async def _spawn(self, program: Program) -> Process:
        output, program_output = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *program.command,
                env=program.environment | {MARK: str(self._home)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=program_output,
                stderr=asyncio.subprocess.STDOUT,
                # Ctrl-C in the terminal is for `ledger up`, which stops them in order.
                start_new_session=True,
                # Customers' names are in what the servers write, and maybe in a log.
                umask=0o077,
            )
        except BaseException:
            os.close(output)
            raise
        finally:
            os.close(program_output)
        log = self.log(program.name)
        with contextlib.suppress(OSError):
            log.touch(0o600)
        self._copies[program] = OutputCopy(output, log, self._report, self._copies.get(program))
        self._copies[program].start()
        self._running[program] = process
        return process

    async def _keep_running(self, program: Program) -> None:
        delay_s = 0.0
        while True:
            began_at = time.monotonic()
            status = await self._running[program].wait()
            delay_s = 0.0 if time.monotonic() - began_at > STEADY_S else delay_s
            reason = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit {status}"
            again = f"in {delay_s:.0f} s" if delay_s else "now"
            self._report(
                f"{program.name} ended ({reason}) and is started again {again}: "
                f"see {self.log(program.name)}"
            )
            await asyncio.sleep(delay_s)
            delay_s = min(max(1.0, 2 * delay_s), MAX_DELAY_S)
            try:
                await self._spawn(program)
            except OSError as error:  # such as no memory for a process: another time
                self._report(f"{program.name} can't be started ({error.strerror})")

    async def _stop(self, program: Program) -> None:
        process = self._running.get(program)
        # Its start was cancelled before it began, or it has ended.
        if process is None or process.returncode is not None:
            return
        timeout_s = program.stop_timeout_s
        if program in self._starting:
            timeout_s = min(timeout_s, STARTING_STOP_TIMEOUT_S)
        with self._step(f"{program.name} stopped"):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), timeout_s)
            except TimeoutError:
                self._report(f"{program.name} did not end in {timeout_s:g} s, so it is killed")
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


def find_processes(home: Path) -> list[psutil.Process]:
    """The living processes that belong to the stack of this home."""
    marked = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(home):
                marked.append(process)
    return marked


@dataclass(slots=True)
class RunningStack:
    """A stack that runs: the settings that reach it, as a shell takes them; was it started here."""

    settings: str = ""
    is_here: bool = False


def running_stacks() -> dict[str, RunningStack]:
    """The stacks of this user that run now, by their homes."""
    stacks: dict[str, RunningStack] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            # The servers have the mark alone, our own processes the settings as well.
            if MARK not in environment or "LEDGER_HOME" not in environment:
                continue
            if process.uids().real != os.getuid() or process.pid == os.getpid():
                continue
            home = environment[MARK]
            if environment.get("LEDGER_SECRETS_DIR") == f"{home}/secrets":
                del environment["LEDGER_SECRETS_DIR"]
            stack = stacks.setdefault(home, RunningStack())
            shared = [f"{name}={environment[name]}" for name in SHARED if name in environment]
            stack.settings = stack.settings or shlex.join(shared)
            stack.is_here = stack.is_here or process.cwd() == os.getcwd()
    return stacks


def stop_processes(home: Path) -> int:
    """End every process of the stack of this home; returns how many there were.

    The servers go last, so that what uses them can finish. Each process gets `END_TIMEOUT_S` to
    end by itself and is killed after it.
    """
    count = len(marked := find_processes(home))
    ours = []
    for process in marked:
        with contextlib.suppress(psutil.Error):
            if LEDGER in process.cmdline():
                ours.append(process)
    _end(ours)
    # A process may have started another one meanwhile.
    while marked := find_processes(home):
        _end(marked)
    return count


def start_watchdog(home: Path) -> subprocess.Popen[bytes]:
    """Start a process that ends the stack of this home as soon as the caller is gone.

    The kernel closes the pipe to it however the caller dies, even by SIGKILL. The caller may close
    it, too: `communicate()` returns when nothing of the stack is left.
    """
    return subprocess.Popen(  # noqa: S603 (our own module)
        [sys.executable, "-m", __name__, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
            process.resume()  # one that was stopped gets its signals only when it goes on
    _, alive = psutil.wait_procs(processes, timeout=END_TIMEOUT_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=END_TIMEOUT_S)


if __name__ == "__main__":
    sys.stdin.read()
    stop_processes(Path(sys.argv[1]))
