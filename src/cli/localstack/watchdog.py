"""End processes when the one that started them is gone, even if it was killed."""

import subprocess

# `read` fails at the end of the pipe, which comes when its writer has died. One that was stopped
# gets its signal when it goes on.
SCRIPT = 'read _ || { kill -TERM "$@"; kill -CONT "$@"; }'
DISMISS_TIMEOUT_S = 5


class Watchdog:
    """A tiny process that outlives this one just long enough to end the given processes."""

    def __init__(self, pids: list[int]) -> None:
        self._process = subprocess.Popen(  # noqa: S603 (our own command)
            ["/bin/sh", "-c", SCRIPT, "watchdog", *map(str, pids)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """Send it home without ending anything."""
        self._process.communicate(b"\n", DISMISS_TIMEOUT_S)
