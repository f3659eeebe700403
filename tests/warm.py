"""`ledger` processes that start at once: forks of a process that has imported everything.

A process of the ledger takes a second of processor time to import what it needs, and tests start
hundreds. So one process imports it once (`python -m tests.warm` with a socket as standard input)
and forks for each start. The fork is a child of the test's process like any other, by way of
Linux's subreaper; where there is none, processes are started from scratch.
"""

import contextlib
import ctypes
import gc
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cli.localstack.supervisor import LEDGER, MARK

PR_SET_CHILD_SUBREAPER = 36


# Those of the present test; tests/leaks.py forgets and checks them.
FORKS: list["subprocess.Popen[bytes]"] = []


class Forked(subprocess.Popen[bytes]):
    """A child of this process that something else forked; all but communicate() works."""

    def __init__(self, pid: int, arguments: tuple[str, ...]) -> None:
        self.pid = pid
        self.args = arguments
        self.returncode = None
        self.stdin = self.stdout = self.stderr = None
        self._child_created = True
        self._waitpid_lock = threading.Lock()
        FORKS.append(self)


class WarmLedger:
    """A process that has imported `ledger` and forks; it carries the mark of its home."""

    def __init__(self, home: Path) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm"],
                # Forks show this environment to whoever looks for processes of the home.
                env={**os.environ, MARK: str(home)},
                stdin=theirs.fileno(),
                start_new_session=True,
            )
        self._answers = self._socket.makefile("rb")

    def start(
        self, arguments: tuple[str, ...], environment: Mapping[str, str], out: Path, err: Path
    ) -> subprocess.Popen[bytes]:
        """Start `ledger` with these arguments and this whole environment; it appends to files."""
        if sys.platform != "linux":
            with out.open("ab") as out_file, err.open("ab") as err_file:
                return subprocess.Popen(
                    [LEDGER, *arguments],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out_file,
                    stderr=err_file,
                )
        request = {
            "arguments": arguments,
            "environment": dict(environment),
            "directory": os.getcwd(),
            "out": str(out),
            "err": str(err),
        }
        with _adopting_orphans():
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            pid = int(self._answers.readline())
        return Forked(pid, (LEDGER, *arguments))

    def close(self) -> None:
        """End the process; its forks are ended by those who started them."""
        self._answers.close()
        self._socket.close()
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def _adopting_orphans() -> Iterator[None]:
    """Let descendants whose parent has ended become children of this process."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0)


def serve() -> dict[str, Any]:
    """Fork for each request and answer with the process id; in a fork, returns its request."""
    with socket.socket(fileno=0) as connection, connection.makefile("rb") as requests:
        for line in requests:
            reader, writer = os.pipe()
            parent = os.fork()
            if parent == 0:
                if child := os.fork():
                    os.write(writer, b"%d\n" % child)
                    os._exit(0)
                return json.loads(line)  # type: ignore[no-any-return]
            # Only when the parent has ended is the child a child of the test's process.
            os.waitpid(parent, 0)
            connection.sendall(os.read(reader, 100))
            os.close(reader)
            os.close(writer)
    sys.exit()


def become(request: dict[str, Any]) -> None:
    """Take over the standard files, the directory and the environment of the request."""
    os.chdir(request["directory"])
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    nothing = os.open(os.devnull, os.O_RDONLY)
    out, err = (os.open(request[name], append, 0o600) for name in ("out", "err"))
    for number, file in enumerate((nothing, out, err)):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(request["environment"])


if __name__ == "__main__":
    from cli.main import COMMANDS, app, load

    for command in COMMANDS:
        load(command)
    gc.freeze()  # the forks share the pages of what is imported
    request = serve()
    become(request)
    app(request["arguments"], prog_name="ledger")
