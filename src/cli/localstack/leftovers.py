"""Processes of a stack whose owner is gone: how they are recognised, and a watchdog that ends them.

`python -m cli.localstack.leftovers HOME` is the watchdog: it waits until its standard input ends
and then ends whatever still runs for that home.
"""

import contextlib
import subprocess
import sys
from pathlib import Path

import psutil

# Every process of a stack carries its home in this variable, so it's known as ours for certain.
MARK = "LEDGER_STACK"

# The `ledger` command of this installation.
LEDGER = str(Path(sys.executable).with_name("ledger"))

STOP_TIMEOUT_S = 40.0


def find_processes(home: Path) -> list[psutil.Process]:
    """The living processes that belong to the stack of this home."""
    marked = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(home):
                marked.append(process)
    return marked


def stop_processes(home: Path) -> int:
    """End every process of the stack of this home; returns how many there were.

    The servers go last, so that what uses them can finish. Each process gets `STOP_TIMEOUT_S` to
    end by itself and is killed after it.
    """
    count = len(marked := find_processes(home))
    _end([process for process in marked if _runs_ledger(process)])
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


def _runs_ledger(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return LEDGER in process.cmdline()
    return False


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
            process.resume()  # one that was stopped gets its signals only when it goes on
    _, alive = psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)


if __name__ == "__main__":
    sys.stdin.read()
    stop_processes(Path(sys.argv[1]))
