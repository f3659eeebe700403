"""Free loopback ports for the private servers, the same ones again at the next start."""

import os
import random
import socket
from collections.abc import Iterable
from pathlib import Path

from dotenv import dotenv_values

from cli.localstack import StackRefused

RANGE = range(20_000, 32_000)
"""Below the range from which Linux and macOS take the ports of outgoing connections."""


def choose_ports(home: Path, names: Iterable[str]) -> dict[str, int]:
    """A free port for each setting, kept in `stack.env` and chosen anew when it's no longer free.

    A port that the environment asks for is taken or refused, never replaced.
    """
    before = dotenv_values(home / "stack.env")
    chosen: dict[str, int] = {}
    for name in names:
        chosen[name] = _asked(name) or _kept(before.get(name), chosen) or _fresh(chosen)
    (home / "stack.env").write_text("".join(f"{k}={v}\n" for k, v in chosen.items()))
    return chosen


def bind(port: int, host: str = "127.0.0.1") -> None:
    """Take a port for a moment; raises OSError where no server could listen now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    try:
        bind(port)
    except OSError:
        return False
    return True


def require_free(name: str, port: int, host: str = "127.0.0.1") -> None:
    """Raise StackRefused, naming the setting, where nothing can listen on its port."""
    try:
        bind(port, host)
    except OSError as error:
        raise StackRefused(
            f"can't listen on port {port} of {host} ({os.strerror(error.errno or 0)}): "
            f"stop what uses it, or set {name} to a free port"
        ) from error


def _asked(name: str) -> int | None:
    value = os.environ.get(name)
    if value is None:
        return None
    if not value.isdigit():
        raise StackRefused(f"{name}={value} is not a port: set it to a number, or unset it")
    require_free(name, int(value))
    return int(value)


def _kept(value: str | None, taken: dict[str, int]) -> int | None:
    port = int(value) if value and value.isdigit() else None
    return port if port and port not in taken.values() and is_free(port) else None


def _fresh(taken: dict[str, int]) -> int:
    for port in random.sample(RANGE, len(RANGE)):
        if port not in taken.values() and is_free(port):
            return port
    raise StackRefused(f"no free port between {RANGE.start} and {RANGE.stop}: stop some programs")
