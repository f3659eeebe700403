"""Our processes and the two servers under supervisord, which runs as a child of `ledger up`."""

import asyncio
import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, cast

from supervisor.compat import xmlrpclib
from supervisor.xmlrpc import SupervisorTransport

from cli.localstack import StackRefused
from cli.localstack.probes import INTERVAL_S, Probe
from cli.localstack.programs import MARK, Program, last_line, stop_processes
from cli.localstack.watchdog import Watchdog

CONTROL_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 90.0
LOG_BYTES = 10_000_000
LOG_BACKUPS = 3
RETRIES = 10
FOLLOW_INTERVAL_S = 0.1

EXITED = re.compile(r"exited: (?P<name>\S+) \((?P<why>[^;]+); (not )?expected\)")
GAVE_UP = re.compile(r"gave up: (?P<name>\S+) entered FATAL state")

SUPERVISORD = """\
[unix_http_server]
file = {socket}
chmod = 0700

[supervisord]
logfile = /dev/null
logfile_maxbytes = 0
pidfile = run/supervisord.pid
childlogdir = run
minfds = 1024
{user}

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""

PROGRAM = """
[program:{name}]
command = /bin/sh {script}
autostart = false
autorestart = true
startsecs = 1
startretries = {retries}
stopsignal = TERM
stopwaitsecs = {stop_timeout_s}
killasgroup = true
redirect_stderr = true
stdout_logfile = logs/{name}.log
stdout_logfile_maxbytes = {log_bytes}
stdout_logfile_backups = {log_backups}
"""

GROUP = """
[group:{name}]
programs = {programs}
priority = {priority}
"""


class _Control(Protocol):
    """The part of supervisord's XML-RPC interface that is used here."""

    def getState(self) -> dict[str, object]: ...  # noqa: N802

    def startProcess(self, name: str, wait: bool) -> bool: ...  # noqa: N802

    def getProcessInfo(self, name: str) -> dict[str, object]: ...  # noqa: N802


def configuration(home: Path, socket: Path, groups: Mapping[str, tuple[Program, ...]]) -> str:
    """What supervisord is to run; groups are stopped in the reverse of their order here.

    Paths are relative to the home, where supervisord runs, so the home may have any name.
    """
    user = "user = root" if Path(home).owner() == "root" else ""
    sizes = {"log_bytes": LOG_BYTES, "log_backups": LOG_BACKUPS}
    parts = [SUPERVISORD.format(socket=socket, user=user, **sizes)]
    for priority, (name, programs) in enumerate(groups.items(), start=1):
        names = ",".join(program.name for program in programs)
        parts.append(GROUP.format(name=name, programs=names, priority=priority))
        parts += [_program(home, program, sizes) for program in programs]
    return "".join(parts)


def _program(home: Path, program: Program, sizes: dict[str, int]) -> str:
    return PROGRAM.format(
        name=program.name,
        script=program.write_script(home),
        retries=RETRIES,
        stop_timeout_s=program.stop_timeout_s,
        **sizes,
    )


class Supervision:
    """A running supervisord; leaving its context stops its programs in the reverse order.

    `report` gets one line for each program that ended and is started again.
    """

    def __init__(
        self, home: Path, groups: Mapping[str, tuple[Program, ...]], report: Callable[[str], None]
    ) -> None:
        self._home = home
        self._groups = groups
        self._report = report
        self._full_names = {p.name: f"{group}:{p.name}" for group, ps in groups.items() for p in ps}

    async def __aenter__(self) -> Self:
        # Not below the home: the path of a socket has 103 characters at most on macOS.
        self._socket = Path(tempfile.mkdtemp(prefix="ledger-")) / "control"
        try:
            await self._start_supervisord()
        except BaseException:
            await _uninterrupted(self._stop())
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await _uninterrupted(self._stop())

    def log(self, name: str) -> Path:
        """Where the output of a program is kept."""
        return self._home / "logs" / f"{name}.log"

    def is_running(self, name: str) -> bool:
        """Whether a program has outlived the first second after its start."""
        return self._state(name) == "RUNNING"

    async def start(self, name: str, answers: Probe, timeout_s: float) -> None:
        """Start a program and wait until it answers; raises StackRefused if it doesn't."""
        self._start(name)
        deadline = time.monotonic() + timeout_s
        while not await asyncio.to_thread(answers):
            self._refuse_if_ended(name)
            if time.monotonic() > deadline:
                raise StackRefused(f"{name} gave no answer in {timeout_s:.0f} s: {self._see(name)}")
            await asyncio.sleep(INTERVAL_S)

    async def wait(self) -> None:
        """Wait for the end of supervisord, which nothing but a fault or a kill brings about."""
        await self._process.wait()

    async def _start_supervisord(self) -> None:
        (self._home / "logs").mkdir(parents=True, exist_ok=True)
        config = self._home / "supervisord.conf"
        config.write_text(configuration(self._home, self._socket, self._groups))
        # Not a pipe to this process: supervisord must be able to stop everything after its death.
        with self.log("supervisord").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "supervisor.supervisord", "--nodaemon", "-c", config.name),
                cwd=self._home,
                env={**os.environ, MARK: str(self._home)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        self._watchdog = Watchdog([self._process.pid])
        self._follower = asyncio.create_task(self._follow())
        await self._await_control(time.monotonic() + CONTROL_TIMEOUT_S)

    async def _await_control(self, deadline: float) -> None:
        while time.monotonic() < deadline and self._process.returncode is None:
            with contextlib.suppress(OSError), self._control() as control:
                control.getState()
                return
            await asyncio.sleep(INTERVAL_S)
        raise StackRefused(f"the supervisor did not start: {self._see('supervisord')}")

    async def _follow(self) -> None:
        """Read what supervisord says, line by line, as it's written."""
        with self.log("supervisord").open(errors="replace") as log:
            unread = ""
            while True:
                unread += log.readline()
                if unread.endswith("\n"):
                    self._notice(unread)
                    unread = ""
                else:
                    await asyncio.sleep(FOLLOW_INTERVAL_S)

    def _notice(self, line: str) -> None:
        if exited := EXITED.search(line):
            name = exited["name"]
            self._report(f"{name} ended ({exited['why']}) and is started again: {self._see(name)}")
        elif gave_up := GAVE_UP.search(line):
            name = gave_up["name"]
            self._report(f"{name} ends each time soon after its start: {self._see(name)}")
            with contextlib.suppress(OSError, xmlrpclib.Error):
                self._start(name)

    def _refuse_if_ended(self, name: str) -> None:
        if self._state(name) not in ("STARTING", "RUNNING"):
            last = last_line(self.log(name))
            raise StackRefused(f"{name} ended soon after its start ({last}): {self._see(name)}")

    @contextlib.contextmanager
    def _control(self) -> Iterator[_Control]:
        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        with xmlrpclib.ServerProxy("http://localhost", transport) as proxy:
            yield cast(_Control, proxy.supervisor)

    def _start(self, name: str) -> None:
        with self._control() as control:
            control.startProcess(self._full_names[name], False)

    def _state(self, name: str) -> object:
        with self._control() as control:
            return control.getProcessInfo(self._full_names[name])["statename"]

    def _see(self, name: str) -> str:
        return f"see {self.log(name)}"

    async def _stop(self) -> None:
        """End supervisord, which ends its programs in order, and then whatever is left of them."""
        process = getattr(self, "_process", None)
        if process:
            self._follower.cancel()
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
            await asyncio.to_thread(stop_processes, self._home)
            self._watchdog.dismiss()
        shutil.rmtree(self._socket.parent, ignore_errors=True)


async def _uninterrupted(work: Coroutine[None, None, None]) -> None:
    """Finish the work whatever signal comes meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    task.result()
