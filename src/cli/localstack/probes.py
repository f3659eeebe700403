"""Whether a server answers: the first bytes of its own protocol, not just an open port."""

import http.client
import socket
from collections.abc import Callable

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from cli.localstack import StackRefused

ANSWER_TIMEOUT_S = 5.0
INTERVAL_S = 0.05

Probe = Callable[[], bool]


def amqp_answers(port: int) -> bool:
    """Whether a broker offers AMQP 0-9-1: its first frame is a method, Connection.Start."""
    return _ask(port, b"AMQP\x00\x00\x09\x01")[:1] == b"\x01"


def sql_answers(port: int) -> bool:
    """Whether a database greets: after four bytes of header, version 10 of the MySQL protocol."""
    return _ask(port, b"")[4:5] == b"\x0a"


def accepts(port: int) -> bool:
    """Whether something listens; for servers that only answer to questions."""
    try:
        with socket.create_connection(("127.0.0.1", port), ANSWER_TIMEOUT_S):
            return True
    except OSError:
        return False


def http_ok(host: str, port: int, path: str) -> bool:
    """Whether a GET is answered with 200."""
    connection = http.client.HTTPConnection(host, port, timeout=ANSWER_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _ask(port: int, greeting: bytes) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), ANSWER_TIMEOUT_S) as connection:
            connection.sendall(greeting)
            return connection.recv(64)
    except OSError:
        return b""


def wait_until(probe: Probe, deadline_s: float, complaint: str) -> None:
    """Return once the probe says yes; raises StackRefused with the complaint after the deadline."""
    retrying = Retrying(
        retry=retry_if_result(lambda answer: not answer),
        stop=stop_after_delay(deadline_s),
        wait=wait_fixed(INTERVAL_S),
    )
    try:
        retrying(probe)
    except RetryError as error:
        raise StackRefused(complaint) from error
