"""The calls by which a server has its disk keep what it wrote, as the kernel sees them."""

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import pytest

from cli.localstack.supervisor import find_processes
from tests.ledger.pipeline import Ledger
from tests.packages import require_program

CALLS: Final = "fsync,fdatasync"
BROKER: Final = "beam.smp"
DATABASES: Final = ("mariadbd", "mysqld")
ENDS_WITHIN_S: Final = 60
_LINE: Final = re.compile(
    r"^(?P<began>[\d.]+) f(?:data)?sync\(\d+<(?P<path>[^>]*)>\) += 0 <(?P<took>[\d.]+)>"
)


@dataclass(frozen=True, slots=True)
class Sync:
    """One call that returned; times are those of the clock on the wall."""

    path: Path
    began_s: float
    ended_s: float


class Trace:
    """The calls of a server, as long as it's watched."""

    def __init__(self, output: Path) -> None:
        """One file a thread: in one of all threads a call may be told in two halves."""
        self._output = output

    def between(self, began_s: float, ended_s: float) -> list[Sync]:
        """The calls that began and returned in this time."""
        return [
            sync
            for told in self._output.parent.glob(f"{self._output.name}.*")
            for sync in map(_parsed, told.read_text().splitlines())
            if sync and began_s <= sync.began_s and sync.ended_s <= ended_s
        ]


def _parsed(line: str) -> Sync | None:
    """The call of a line; None for one that tells of something else."""
    found = _LINE.match(line)
    if not found:
        return None
    began_s = float(found["began"])
    return Sync(Path(found["path"]), began_s, began_s + float(found["took"]))


@contextmanager
def watched(ledger: Ledger, names: tuple[str, ...], delay_s: float = 0) -> Iterator[Trace]:
    """Watch all threads of a server, and hold up each of the calls for a while."""
    home = ledger.settings.home
    output = home / f"{ledger.settings.db_name}-{names[0]}.strace"
    injected = f"--inject={CALLS}:delay_enter={round(delay_s * 1_000_000)}"
    command = [
        require_program("strace"),
        "-ff",
        "-ttt",
        "-T",
        "-y",
        f"--trace={CALLS}",
        *([injected] * bool(delay_s)),
    ]
    tracer = subprocess.Popen(
        [*command, "-o", output, "-p", str(_process(home, names).pid)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert tracer.stderr
        said = tracer.stderr.readline()
        if "not permitted" in said:
            pytest.skip(f"no process may watch another here: {said.strip()}")
        assert "attached" in said, said
        yield Trace(output)
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=ENDS_WITHIN_S)


def _process(home: Path, names: tuple[str, ...]) -> psutil.Process:
    return next(process for process in find_processes(home) if process.name() in names)
