"""A ledger whose processes have all metrics and log all they can."""

from collections.abc import AsyncIterator

import pytest

from tests.harness import Stack, free_port, start_stack
from tests.private_servers import Servers


@pytest.fixture(scope="package")
async def verbose_stack(servers: Servers) -> AsyncIterator[Stack]:
    """Every process exposes metrics and logs JSON at level DEBUG; the API logs each request."""
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
