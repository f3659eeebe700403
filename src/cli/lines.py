"""Standard output, line by line: for programs that read on, and for those that have enough."""

import os
import sys
from typing import Final

CHUNK: Final = 64 * 1024


class ReaderGone(Exception):
    """Whoever read standard output has enough."""


class OutputFailed(Exception):
    """Standard output can't be written."""


class Lines:
    """Writes lines to standard output, many at once; `flush` writes those that are left."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._size = 0

    def add(self, line: bytes) -> None:
        """Write a line, soon; raises ReaderGone and OutputFailed."""
        self._lines.append(line)
        self._size += len(line)
        if self._size >= CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write what is left; raises as `add`."""
        if self._lines:
            chunk = b"\n".join((*self._lines, b""))
            self._lines, self._size = [], 0
            write(chunk)


def write(chunk: bytes) -> None:
    """Write to standard output, past its buffer: what could not be written must not come again."""
    sys.stdout.flush()
    left = memoryview(chunk)
    try:
        while left:
            left = left[os.write(sys.stdout.fileno(), left) :]
    except BrokenPipeError:
        raise ReaderGone("nobody reads standard output any more") from None
    except OSError as error:
        raise OutputFailed(f"can't write to standard output: {error.strerror}") from None
