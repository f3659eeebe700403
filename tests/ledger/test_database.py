"""A failed connection is a database error, whatever stands in front of the database."""

import socket
import struct
import threading
from collections.abc import Iterator

import pytest
import uvloop
from sqlalchemy import URL

from ledger.runtime.database import DATABASE_ERRORS, make_engine

RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@pytest.fixture
def port_that_hangs_up() -> Iterator[int]:
    """A server that accepts a connection and resets it, as a proxy does that has no backend."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_a_proxy_that_closes_at_once_is_a_database_error(
    port_that_hangs_up: int,
) -> None:
    url = URL.create("mysql+asyncmy", "ledger", "x", "127.0.0.1", port_that_hangs_up, "ledger")

    async def connect_often() -> None:
        engine = make_engine(url)
        for _ in range(50):
            with pytest.raises(DATABASE_ERRORS):
                await engine.connect()
        await engine.dispose()

    # On the loop of the real processes, where asyncmy raises another error for it.
    uvloop.run(connect_often())
