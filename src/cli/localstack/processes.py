"""The `ledger` commands of a local stack: the processes to supervise, and those that run once."""

import asyncio
import contextlib
import os
import sys

from cli.localstack import StackRefused
from cli.localstack.programs import LEDGER, Program, last_line
from cli.localstack.servers import Layout

NAMES = ("writer", "projector", "api")
COMMAND_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10


def processes(layout: Layout) -> tuple[Program, ...]:
    """The programs writer, projector and api, with the settings of this stack."""
    environment = layout.environment() | {"PYTHONUNBUFFERED": "1"}
    return tuple(
        Program(name, _command(name), environment, bare=False, stop_timeout_s=STOP_TIMEOUT_S)
        for name in NAMES
    )


async def run_command(name: str, layout: Layout) -> None:
    """Run one `ledger` command to its end; raises StackRefused with its last line if it fails."""
    log = layout.plan.home / "logs" / f"{name}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *_command(name),
            env=os.environ | layout.environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            status = await asyncio.wait_for(process.wait(), COMMAND_TIMEOUT_S)
        except TimeoutError:
            raise StackRefused(
                f"`ledger {name}` took over {COMMAND_TIMEOUT_S:.0f} s: see {log}"
            ) from None
        finally:
            await _end(process)
    if status:
        raise StackRefused(f"`ledger {name}` failed ({last_line(log)}): see {log}")


def _command(name: str) -> tuple[str, ...]:
    return (sys.executable, LEDGER, name)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
