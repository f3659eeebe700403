"""What every command shares: how it runs, what it prints, and the status with which it ends.

Output goes to standard output and is either for people (text and tables) or for programs (JSON).
Progress, warnings and the sentence that explains a failure go to standard error.
"""

import asyncio
import gc
import io
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final, NoReturn, TypeVar

import aiormq
import msgspec
import typer
import uvloop
from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from cli.localstack.supervisor import running_stacks
from cli.settings import BadSettings, MissingSecret, Settings, load_settings
from ledger.messaging.rabbitmq import BROKER_ERRORS
from ledger.runtime import failpoints, logs
from ledger.runtime.database import DATABASE_ERRORS
from ledger.runtime.printable import printable, printable_json
from ledger.runtime.reconnect import end as end_tasks

FAILED: Final = 1
BAD_USAGE: Final = 2
INTERRUPTED: Final = 128 + signal.SIGINT  # as shells report what Ctrl-C ended

# MySQL's errors where accounts, rights, schema or tables are not made yet.
NOT_MIGRATED: Final = {1044, 1045, 1049, 1142, 1146}
CANT_CONNECT: Final = 2003
MAX_STACKS: Final = 3  # that a sentence names
LOOPBACK: Final = {"127.0.0.1", "localhost", "::1"}
NOT_DECLARED: Final = (
    aiormq.exceptions.ChannelNotFoundEntity,
    aiormq.exceptions.ProbableAuthenticationError,
)
AWAY: Final = (aiormq.exceptions.AMQPConnectionError, ConnectionRefusedError)

# Little garbage of ours is in cycles, and a collection walks everything: collect seldom.
GC_THRESHOLDS: Final = (20_000, 50, 100)
CHUNK_BYTES: Final = 64 * 1024

PACKAGES: Final = ("ledger", "projections", "api", "cli")

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Answer = TypeVar("Answer")


class Console(RichConsole):
    """A console on which text is never markup and never drives the terminal.

    Every string that is printed or stands in a table passes here; a `Text` is taken as it is.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, soft_wrap=True, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text with what isn't for reading escaped, line ends too."""
        return super().render_str(printable(text), **options | {"markup": False, "emoji": False})


out = Console()
err = Console(stderr=True)


class Interrupted(Exception):
    """Somebody pressed Ctrl-C."""


class ReaderGone(Exception):
    """The program that read standard output has closed it, as `head` does."""


class OutputFailed(Exception):
    """Standard output can't be written."""


def exit_with(status: int, message: str) -> NoReturn:
    """End the command with a status, and one sentence on standard error that says why."""
    err.print("✗", style="red", end=" ")
    err.print(message)
    raise typer.Exit(status)


def usage_error(message: str) -> NoReturn:
    """End a command that was called wrongly."""
    exit_with(BAD_USAGE, message)


def fail(message: str) -> NoReturn:
    """End a command that could not do, or did not find, what it should."""
    exit_with(FAILED, message)


def read_settings() -> Settings:
    """The settings; a setting that can't be used ends the command with status 2."""
    try:
        settings = load_settings()
    except BadSettings as error:
        usage_error(str(error))
    failpoints.arm(settings.failpoints)
    return settings


def run(
    work: Coroutine[Any, Any, Answer],
    *,
    failed: int = FAILED,
    handled: tuple[type[Exception], ...] = (),
) -> Answer:
    """Run a command's work and return its result; raises what the command handles itself.

    Any other error that is expected (see `is_expected`) ends the command with status `failed` and
    one sentence. What is left is a bug, and its traceback is shown.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and isinstance(sys.stdout.buffer, io.RawIOBase):
        # PYTHONUNBUFFERED takes the buffer away: a large write into a pipe may then be cut short
        # without an error.
        encoding, errors = sys.stdout.encoding, sys.stdout.errors
        buffer = io.BufferedWriter(sys.stdout.detach())
        sys.stdout = io.TextIOWrapper(buffer, encoding, errors, line_buffering=True)
    logs.configure("text", "INFO")
    sys.excepthook = _print_traceback
    failpoints.warn()
    # What is imported lives as long as the process: no collection has to walk it.
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        return uvloop.run(_until_interrupted(work))
    except Interrupted:
        raise typer.Exit(INTERRUPTED) from None
    except ReaderGone:
        raise typer.Exit(0) from None
    except BadSettings as error:
        usage_error(str(error))
    except Exception as error:
        if isinstance(error, handled) or not is_expected(error):
            raise
        exit_with(failed, _sentence(error))


def _sentence(error: Exception) -> str:
    """What went wrong and, where a server or an account is not there, what to do."""
    # Below its first line SQLAlchemy says only where its manual is.
    first_line, *_ = str(error).splitlines() or [""]
    said = f"{type(error).__name__}: {first_line}"
    causes = (error, error.__cause__)
    codes = {
        (getattr(getattr(cause, "orig", None), "args", None) or (None,))[0] for cause in causes
    }
    if codes & NOT_MIGRATED or isinstance(error, NOT_DECLARED):
        return (
            f"this ledger is not ready: `make run` is still starting, or `ledger migrate` has to"
            f" make its tables, accounts and queues ({said})"
        )
    if not (isinstance(error, (*AWAY, MissingSecret)) or CANT_CONNECT in codes):
        return said
    away = "" if isinstance(error, MissingSecret) else "the database or the broker does not answer"
    stacks = running_stacks()
    settings = load_settings()
    if not {settings.db_host, settings.amqp_host} <= LOOPBACK:
        remedy = "do LEDGER_DB_HOST and LEDGER_AMQP_HOST name running servers?"
    elif str(settings.home.resolve()) in stacks:
        remedy = "the stack of this home is starting or stopping: try again in a moment"
    elif here := next((stack for stack in stacks.values() if stack.is_here), None):
        remedy = f"the stack that was started in this directory has {here.settings}: set that, too"
    elif stacks:
        homes = shlex.join(f"LEDGER_HOME={home}" for home in sorted(stacks)[:MAX_STACKS])
        remedy = f"for a stack that runs set its home: {homes}"
    else:
        remedy = "no stack of yours runs on this machine: `make run` starts one"
    return f"{away or said}; {remedy}" + (f" ({said})" if away else "")


def is_expected(error: Exception) -> bool:
    """True for errors of the database and the broker, and for exceptions that this project defines.

    Our exceptions are written to be read by whoever runs the command. Those of the pure core are
    left out: they say that the code itself is wrong.
    """
    module = type(error).__module__
    is_ours = module.partition(".")[0] in PACKAGES and not module.startswith("ledger.core")
    return is_ours or isinstance(error, (*DATABASE_ERRORS, *BROKER_ERRORS))


def _print_traceback(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    # The message of a bug's exception may hold what a client sent.
    lines = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(printable(lines, keep="\n"))


async def _until_interrupted(work: Coroutine[Any, Any, Answer]) -> Answer:
    """Do the work; Ctrl-C ends it for certain, which cancelling it once may not (see `end_tasks`).

    Work that handles SIGINT itself replaces this handler.
    """
    task = asyncio.ensure_future(work)
    interrupted = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)
    interruption = asyncio.ensure_future(interrupted.wait())
    await asyncio.wait((task, interruption), return_when=asyncio.FIRST_COMPLETED)
    interruption.cancel()  # nobody waits for Ctrl-C any more
    if not task.done():
        await end_tasks([task])
        raise Interrupted
    return task.result()


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar; call the function it gives with how many more are done.

    The bar is drawn on standard error and only on a terminal, so that output stays clean.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(
        *columns, TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal
    )
    with bar:
        task = bar.add_task(description, total=total)
        yield lambda more: bar.advance(task, more)


def print_json(value: object) -> None:
    """Print a value as one line of JSON."""
    typer.echo(printable_json(msgspec.json.encode(value)))


def print_bytes(content: bytes) -> None:
    """Write bytes as they are, though never to a terminal, which they could drive."""
    if sys.stdout.isatty():
        usage_error("these bytes could drive the terminal: send them to a file or a pipe")
    typer.echo(content, nl=False)


class LineWriter:
    """Writes lines to standard output, many at once; `flush` writes those that are left."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._size = 0

    def add(self, text: str) -> None:
        """Write a line for people soon; raises ReaderGone and OutputFailed."""
        self._add(printable(text).encode())

    def add_json(self, line: bytes) -> None:
        """Write a line of JSON soon; raises ReaderGone and OutputFailed."""
        self._add(printable_json(line))

    def _add(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)
        if self._size >= CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is left; raises ReaderGone and OutputFailed."""
        if self._lines:
            chunk = b"\n".join((*self._lines, b""))
            self._lines, self._size = [], 0
            # Past Python's buffer: after a failed write it would try to write them again at exit.
            sys.stdout.flush()
            rest = memoryview(chunk)
            try:
                while rest:
                    rest = rest[os.write(sys.stdout.fileno(), rest) :]
            except BrokenPipeError:
                raise ReaderGone("nobody reads standard output any more") from None
            except OSError as error:
                message = f"can't write to standard output: {error.strerror}"
                raise OutputFailed(message) from None
