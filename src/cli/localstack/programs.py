"""A program of the stack: how it's started, and how a forgotten one is found and ended."""

import contextlib
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "LEDGER_STACK"
"""Every process of a stack carries its home in this variable, so it's known as ours for certain."""

LEDGER = str(Path(sys.executable).with_name("ledger"))
"""The `ledger` command of this installation."""

STOP_TIMEOUT_S = 40.0


@dataclass(frozen=True, slots=True)
class Program:
    """A command with its environment; a `bare` one sees nothing of its parent's environment."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    bare: bool
    stop_timeout_s: int = 10

    def script(self, home: Path) -> str:
        """A shell script that becomes the program; paths of any spelling are safe in it."""
        settings = {**self.environment, MARK: str(home)}
        env = ["env", *(["-i"] if self.bare else []), *(f"{k}={v}" for k, v in settings.items())]
        return f"#!/bin/sh\nexec {shlex.join([*env, *self.command])}\n"

    def write_script(self, home: Path) -> Path:
        """Write the script below `home`; returns its path relative to it."""
        path = home / "run" / f"{self.name}.sh"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.script(home))
        return path.relative_to(home)


def last_line(log: Path) -> str:
    """What a program said last, which is mostly why it ended."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1].strip() if lines else "no output"


def find_processes(home: Path) -> list[psutil.Process]:
    """The living processes that belong to the stack of this home."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(home):
                found.append(process)
    return found


def stop_processes(home: Path) -> int:
    """End every process of the stack of this home; returns how many there were.

    Supervisors go first, or they'd start the others again, and the servers last, so that what uses
    them can finish. Each gets `STOP_TIMEOUT_S` to end by itself and is killed after it.
    """
    found = find_processes(home)
    _end([process for process in found if _has_argument(process, "supervisor.supervisord")])
    _end([process for process in find_processes(home) if _has_argument(process, LEDGER)])
    _end(find_processes(home))
    return len(found)


def _has_argument(process: psutil.Process, argument: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return argument in process.cmdline()
    return False


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)
