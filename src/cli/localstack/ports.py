"""Free loopback ports for the private servers, and whether a server answers on one.

A server answers when the first bytes of its own protocol come: an open port alone says little.
"""

import os
import random
import socket
from collections.abc import Iterable
from pathlib import Path

from dotenv import dotenv_values

from cli.localstack import StackRefused

# Below the range from which Linux and macOS take the ports of outgoing connections.
RANGE = range(20_000, 32_000)
ANSWER_TIMEOUT_S = 5.0
INTERVAL_S = 0.05


def choose_ports(home: Path, names: Iterable[str]) -> dict[str, int]:
    """A free port for each setting, kept in `stack.env` and chosen anew when it's no longer free.

    A port that the environment asks for is taken or refused, never replaced.
    """
    kept = dotenv_values(home / "stack.env")
    ports: dict[str, int] = {}
    for name in names:
        if asked := os.environ.get(name):
            if not asked.isdigit():
                raise StackRefused(f"{name}={asked} is not a port: set it to a number, or unset it")
            require_free(name, int(asked))
            ports[name] = int(asked)
            continue
        earlier = kept.get(name) or ""
        candidates = [int(earlier)] if earlier.isdigit() else []
        candidates += random.sample(RANGE, len(RANGE))
        ports[name] = next(p for p in candidates if p not in ports.values() and is_free(p))
    (home / "stack.env").write_text("".join(f"{k}={v}\n" for k, v in ports.items()))
    return ports


def bind(port: int, host: str = "127.0.0.1") -> None:
    """Listen on a port for a moment; raises OSError where no server could listen now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def is_free(port: int) -> bool:
    """True if a server could listen on this loopback port now."""
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


def amqp_answers(port: int) -> bool:
    """True if a broker offers AMQP 0-9-1: its first frame is a method, Connection.Start."""
    return _first_bytes(port, b"AMQP\x00\x00\x09\x01")[:1] == b"\x01"


def sql_answers(port: int) -> bool:
    """True if a database greets: after four bytes of header, version 10 of the MySQL protocol."""
    return _first_bytes(port, b"")[4:5] == b"\x0a"


def accepts(port: int) -> bool:
    """True if something listens; for servers that only answer to questions."""
    try:
        with socket.create_connection(("127.0.0.1", port), ANSWER_TIMEOUT_S):
            return True
    except OSError:
        return False


def http_ok(host: str, port: int, path: str) -> bool:
    """True if a GET is answered with 200."""
    request = f"GET {path} HTTP/1.1\r\nHost: ledger\r\nConnection: close\r\n\r\n"
    return _first_bytes(port, request.encode(), host).startswith(b"HTTP/1.1 200 ")


def _first_bytes(port: int, greeting: bytes, host: str = "127.0.0.1") -> bytes:
    try:
        with socket.create_connection((host, port), ANSWER_TIMEOUT_S) as connection:
            connection.sendall(greeting)
            return connection.recv(64)
    except OSError:
        return b""
