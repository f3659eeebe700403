"""Processes that the warm process of tests/warm.py forks. Standard library only: tests/bin uses it.

A request is a line of JSON with the standard files beside it; the answers are the fork's process id
and, when it has ended, its exit status. Closing the connection before that kills the fork.
"""

import json
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress

# The variable with the name of the warm process's socket, in the abstract namespace of Linux.
WARM = "WARM_LEDGER"
NUMBER_BYTES = 4

# The forks of the present test; tests/leaks.py checks and forgets them.
FORKS: list["Forked"] = []


class Forked(subprocess.Popen[bytes]):
    """A process that the warm one forked for this one; all but communicate() works."""

    def __init__(
        self,
        address: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        directory: str,
        files: tuple[int, int, int],
    ) -> None:
        # What Popen's own methods need; its __init__ would start a process itself.
        self.args = ("ledger", *arguments)
        self.returncode = None
        self.stdin = self.stdout = self.stderr = None
        self._child_created = True
        self._waitpid_lock = threading.Lock()
        request = {
            "arguments": arguments,
            "environment": dict(environment),
            "directory": directory,
        }
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(f"\0{address}")
        socket.send_fds(self._connection, [json.dumps(request).encode() + b"\n"], files)
        self.pid = self._number(socket.MSG_WAITALL)
        FORKS.append(self)

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._returncode_within(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; raises TimeoutExpired."""
        returncode = self._returncode_within(timeout)
        if returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return returncode

    def _returncode_within(self, timeout_s: float | None) -> int | None:
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._connection, select.POLLIN)
            poll.poll(None if timeout_s is None else timeout_s * 1000)
            # Another thread may have waited, too, and have read it.
            with self._waitpid_lock, suppress(BlockingIOError):
                if self.returncode is None:
                    self.returncode = self._number(socket.MSG_DONTWAIT)
                    self._connection.close()
        return self.returncode

    def _number(self, flags: int) -> int:
        number = self._connection.recv(NUMBER_BYTES, flags)
        # The warm process ended, and with it its forks.
        return int.from_bytes(number, "big", signed=True) if number else -signal.SIGKILL
