"""The `ledger` command as a process, on a ledger of the test's own.

A command that is run takes most of its time to import what it needs. So one process imports all of
it once, and forks for each command: a process of its own in everything else.
"""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.settings import Settings
from tests.harness import environment

LEDGER = Path(sys.executable).with_name("ledger")
TIMEOUT_S = 30


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, read as JSON."""
        return json.loads(self.out)

    def said_one_sentence(self) -> str:
        """What it said on standard error, which must be one line and no traceback."""
        assert "Traceback" not in self.err, self.err
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


Run = Callable[..., Awaitable[Done]]


class WarmProcess:
    """A process (see `tests.cli.warm`) that has imported every command and forks to run one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = itertools.count()
        self._socket = directory / "socket"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.warm", self._socket],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout
        assert self._process.stdout.readline() == b"ready\n"

    async def run(self, arguments: tuple[str, ...], environ: dict[str, str]) -> Done:
        """Run a command to its end."""
        number = next(self._numbers)
        out, err = (self._directory / f"{number}.{name}" for name in ("out", "err"))
        request = {
            "arguments": arguments,
            "environ": environ,
            "directory": os.getcwd(),
            "out": str(out),
            "err": str(err),
            "timeout_s": TIMEOUT_S,
        }
        reader, writer = await asyncio.open_unix_connection(self._socket)
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            status = int(await reader.readline())
        finally:
            writer.close()
            await writer.wait_closed()
        assert status != -signal.SIGALRM, f"`ledger {' '.join(arguments)}` took too long"
        done = Done(status, out.read_text(), err.read_text())
        out.unlink()
        err.unlink()
        return done

    def close(self) -> None:
        """End the process, and commands that it still runs."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        assert self._process.stdout
        self._process.stdout.close()
        self._process.wait()


@pytest.fixture(scope="session")
def warm_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmProcess]:
    """The process that all tests of commands share."""
    process = WarmProcess(tmp_path_factory.mktemp("warm"))
    yield process
    process.close()


@pytest.fixture
def run(settings: Settings, warm_process: WarmProcess) -> Run:
    """Runs `ledger …` with the settings of the test's ledger, some of them changed."""

    async def run_ledger(*arguments: str, **changes: str) -> Done:
        environ = {**os.environ, **environment(settings), **changes}
        return await warm_process.run(arguments, environ)

    return run_ledger


def typed(*arguments: str, **changes: str) -> Done:
    """What `ledger …` says that is refused before any work begins: no ledger, no process needed."""
    environment = {"LEDGER_HOME": "/nowhere"} | changes
    done = CliRunner().invoke(app, list(arguments), env=environment, prog_name="ledger")
    return Done(done.exit_code, done.stdout, done.stderr)


async def shell(settings: Settings, command: str, cwd: Path | None = None) -> Done:
    """What a shell makes of a command line in which `ledger` stands once."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-o", "pipefail", "-c", command.replace("ledger", f"{LEDGER}", 1)),
        cwd=cwd,
        env=os.environ | environment(settings),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(TIMEOUT_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())
