"""How every command reads its settings, runs its work, and ends when it can't."""

import asyncio
import gc
import io
import signal
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

import typer
import uvloop
from rich.console import Console

from cli.lines import ReaderGone
from ledger.runtime import failpoints, logs
from ledger.runtime.reconnect import end as end_tasks

if TYPE_CHECKING:
    from cli.settings import Settings

out = Console(highlight=False, soft_wrap=True)
err = Console(highlight=False, soft_wrap=True, stderr=True)
Answer = TypeVar("Answer")
INTERRUPTED: Final = 128 + signal.SIGINT
"""The status of what Ctrl-C ended, as shells have it."""
COLLECT_AFTER: Final = (20_000, 50, 100)


class Interrupted(Exception):
    """Somebody pressed Ctrl-C."""


def settings() -> "Settings":
    """The settings; one that can't be used ends the command with status 2."""
    from cli.settings import BadSettings, load_settings

    try:
        loaded = load_settings()
    except BadSettings as error:
        raise end(2, str(error)) from None
    failpoints.arm(loaded.failpoints)
    return loaded


def run(work: Coroutine[Any, Any, Answer], unable: int = 1) -> Answer:
    """Run the work of a command to its end; status `unable` where it could not be done."""
    _buffer_output()
    logs.configure("text", "INFO")
    failpoints.warn()
    # What is here now stays, and little garbage is in cycles: collect seldom, and the young first.
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    try:
        return uvloop.run(_unless_interrupted(work))
    except Interrupted:
        raise typer.Exit(INTERRUPTED) from None
    except _bad_settings() as error:
        raise end(2, str(error)) from None
    except ReaderGone:
        raise typer.Exit(0) from None
    except _refused() as error:
        first_line, *_ = str(error).splitlines() or [""]
        # What SQLAlchemy says below its first line is where its manual is.
        raise end(unable, f"{type(error).__name__}: {first_line}") from None


def _bad_settings() -> type[Exception]:
    from cli.settings import BadSettings

    return BadSettings


def _refused() -> tuple[type[Exception], ...]:
    """Loaded only where something failed, as it loads every part of the ledger."""
    from cli.refusals import REFUSED

    return REFUSED


async def _unless_interrupted(work: Coroutine[Any, Any, Answer]) -> Answer:
    """Do the work; Ctrl-C ends it for certain, which to cancel it once may not (see `end_tasks`).

    Work that handles the signal itself takes this over.
    """
    doing = asyncio.ensure_future(work)
    interrupted = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)
    waiting = asyncio.ensure_future(interrupted.wait())
    await asyncio.wait((doing, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not doing.done():
        await end_tasks([doing])
        raise Interrupted
    return doing.result()


def _buffer_output() -> None:
    """Give standard output the buffer that PYTHONUNBUFFERED takes from it.

    Without one, a large write into a pipe may end half-way and nobody is told.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and isinstance(sys.stdout.buffer, io.RawIOBase):
        encoding, errors = sys.stdout.encoding, sys.stdout.errors
        buffer = io.BufferedWriter(sys.stdout.detach())
        sys.stdout = io.TextIOWrapper(buffer, encoding, errors, line_buffering=True)


def end(status: int, why: str) -> typer.Exit:
    """Say in one sentence why the command can't go on; what it returns ends it."""
    err.print("[red]✗[/]", end=" ")
    err.print(why, markup=False)
    return typer.Exit(status)
