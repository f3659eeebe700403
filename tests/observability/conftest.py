"""A ledger whose processes say all they can."""

from collections.abc import AsyncIterator

import pytest

from tests.harness import Stack, free_port, start_stack
from tests.private_servers import Servers


@pytest.fixture(scope="package")
async def talkative(servers: Servers) -> AsyncIterator[Stack]:
    """Every process has metrics, and logs as JSON what it can; the API logs each request."""
    running = await start_stack(
        servers,
        writer_metrics_port=free_port(),
        projector_metrics_port=free_port(),
        log_format="json",
        log_level="DEBUG",
        access_log=True,
    )
    yield running
    await running.stop()
