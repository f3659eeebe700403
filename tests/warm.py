"""`ledger` processes that start at once: forks of a process that has imported everything.

A process of the ledger takes a second of processor time to import what it needs, and tests start
hundreds. So one process imports it once (`python -m tests.warm` with a listening socket as standard
input) and forks for each start. That takes Linux; elsewhere processes are started from scratch.
"""

import gc
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from cli.localstack.supervisor import LEDGER, MARK
from tests.forks import NUMBER_BYTES, Forked

# `ledger` as a process of its own, for what needs pipes, signals or a shell.
BIN = Path(__file__).with_name("bin") if sys.platform == "linux" else Path(LEDGER).parent
COMMAND = str(BIN / "ledger")


class WarmLedger:
    """A process that has imported `ledger` and forks; it carries the mark of its home."""

    def __init__(self, home: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("")  # the kernel chooses a name, which is gone with the process
            listener.listen(100)
            self.address = listener.getsockname()[1:].decode()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm"],
                # Forks show this environment to whoever looks for processes of the home.
                env={**os.environ, MARK: str(home)},
                stdin=listener.fileno(),
                start_new_session=True,
            )

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], out: IO[Any], err: IO[Any]
    ) -> subprocess.Popen[bytes]:
        """Start `ledger` with these arguments and this whole environment."""
        with Path(os.devnull).open() as nothing:
            files = (nothing.fileno(), out.fileno(), err.fileno())
            return Forked(self.address, arguments, environment, os.getcwd(), files)

    def close(self) -> None:
        """End the process; its forks are ended by those who started them."""
        self.process.kill()
        self.process.wait()


def serve(listener: socket.socket) -> dict[str, Any]:
    """Fork for each request and report how each fork ended; in a fork, returns its request."""
    connections: dict[int, socket.socket] = {}
    with listener, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                pid = key.data
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    if is_stranger(connection):
                        connection.close()
                        continue
                    request, files = receive(connection)
                    if not (pid := os.fork()):
                        return {**json.loads(request), "files": files}
                    for file in files:
                        os.close(file)
                    connections[pid] = connection
                    answer(connection, pid)
                    selector.register(connection, selectors.EVENT_READ, pid)
                    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
                elif isinstance(key.fileobj, int):
                    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    selector.unregister(key.fileobj)
                    os.close(key.fileobj)
                    with connections.pop(pid) as connection:
                        if connection in selector.get_map():
                            selector.unregister(connection)
                        answer(connection, status)
                elif pid in connections:
                    # The client has gone, and nobody else would end its fork.
                    selector.unregister(key.fileobj)
                    os.kill(pid, signal.SIGKILL)


def is_stranger(connection: socket.socket) -> bool:
    """True for a client of another user: this socket has no file that would keep them out."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return bool(struct.unpack("3i", credentials)[1] != os.getuid())


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """A request and the files that come with it."""
    data, files, *_ = socket.recv_fds(connection, 65_536, 3)
    if not data.endswith(b"\n"):
        with connection.makefile("rb") as rest:
            data += rest.readline()
    return data, files


def answer(connection: socket.socket, number: int) -> None:
    """Send a process id or an exit status, if the client is still there."""
    with suppress(OSError):
        connection.sendall(number.to_bytes(NUMBER_BYTES, "big", signed=True))


def become(request: dict[str, Any]) -> None:
    """Take over the standard files, the directory and the environment of the request."""
    os.chdir(request["directory"])
    for number, file in enumerate(request["files"]):
        os.dup2(file, number)
        os.close(file)
    # The old objects remember what kind of file they had been opened on.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(request["environment"])


if __name__ == "__main__":
    from cli.main import COMMANDS, app, load

    for command in COMMANDS:
        load(command)
    gc.freeze()  # the forks share the pages of what is imported
    with socket.socket(fileno=os.dup(0)) as listening:
        request = serve(listening)
    become(request)
    app(request["arguments"], prog_name="ledger")
