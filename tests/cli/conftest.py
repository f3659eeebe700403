"""The `ledger` command as a process (see tests/warm.py), on a ledger of the test's own."""

import asyncio
import itertools
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.settings import Settings
from tests.harness import DEADLINE_S, environment, make_ledger, start_ledger
from tests.ledger.pipeline import running_ledger
from tests.private_servers import Servers
from tests.projections.view_rows import advance_to_the_end
from tests.submissions import history
from tests.warm import COMMAND


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


async def record_every_kind_of_event(settings: Settings) -> None:
    """Record every kind of event, and bring the views to the head."""
    async with running_ledger(settings) as ledger:
        await ledger.write(history(12, 300))
        async with ledger.connection("projector") as connection:
            await advance_to_the_end(connection)


@pytest.fixture(scope="session")
async def shop(servers: Servers) -> Settings:
    """A ledger with every kind of event; no test may change it."""
    settings = await make_ledger(servers)
    await record_every_kind_of_event(settings)
    return settings


Run = Callable[..., Awaitable[Done]]
_numbers = itertools.count()


@pytest.fixture
def run(settings: Settings, servers: Servers) -> Run:
    """Runs `ledger …` with the settings of the test's ledger, some of them changed."""

    async def run_ledger(*arguments: str, **changes: str) -> Done:
        environ = {**os.environ, **environment(settings), **changes}
        number = next(_numbers)
        out, err = (servers.home / "logs" / f"command-{number}.{name}" for name in ("out", "err"))
        process = start_ledger(servers.home, arguments, environ, out, err)
        try:
            async with asyncio.timeout(DEADLINE_S):
                status = await asyncio.to_thread(process.wait)
        finally:
            process.kill()
        done = Done(status, out.read_text(), err.read_text())
        out.unlink()
        err.unlink()
        return done

    return run_ledger


def typed(*arguments: str, **changes: str) -> Done:
    """What `ledger …` says that is refused before any work begins: no ledger, no process needed."""
    environment = {"LEDGER_HOME": "/nowhere"} | changes
    done = CliRunner().invoke(app, list(arguments), env=environment, prog_name="ledger")
    return Done(done.exit_code, done.stdout, done.stderr)


async def shell(settings: Settings, command: str, cwd: Path | None = None) -> Done:
    """What a shell makes of a command line in which `ledger` stands once."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-o", "pipefail", "-c", command.replace("ledger", COMMAND, 1)),
        cwd=cwd,
        env=os.environ | environment(settings),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())
