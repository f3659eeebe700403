"""A process that a test leaves running is ended, and fails that test and no other."""

import contextlib
import shlex
import subprocess
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests import forks, harness, private_servers

# The processes that were started since the present test began, by asyncio, too.
_started: list["subprocess.Popen[Any]"] = []
_popen_init = subprocess.Popen.__init__


def _remember(process: "subprocess.Popen[Any]", *arguments: Any, **options: Any) -> None:
    _popen_init(process, *arguments, **options)
    _started.append(process)


subprocess.Popen.__init__ = _remember  # type: ignore[method-assign]


@contextlib.contextmanager
def failing_leaks() -> Iterator[None]:
    """Fail if the block leaves a process, unless it's one of servers or a stack from before."""
    _started.clear()
    forks.FORKS.clear()
    servers, stacks = set(private_servers.RUNNING), set(harness.STACKS)
    yield
    shared = [process for pair in servers for process in pair.started()]
    shared += [process for stack in stacks for process in stack.processes.values()]
    # poll() also reaps the dead: who never waited for them would raise in another test.
    left = [
        process
        for process in [*_started, *forks.FORKS]
        if process.poll() is None and process not in shared
    ]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.wait()
    if left:
        commands = "\n".join(shlex.join(map(str, process.args)) for process in left)
        pytest.fail(f"left running, and ended now:\n{commands}", pytrace=False)
