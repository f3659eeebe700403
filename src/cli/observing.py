"""How processes are seen from outside: their logs, their traces, and the metrics of two of them."""

import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cli.settings import BadSettings, Settings
from ledger.runtime import logs, tracing

STANDARD_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


@contextmanager
def observed(process: str, settings: Settings) -> Iterator[None]:
    """Log, and trace if it's wanted, as the settings say; raises NoOpenTelemetry."""
    logs.configure(settings.log_format, settings.log_level, access=settings.access_log)
    if settings.otel_endpoint or any(os.environ.get(name) for name in STANDARD_ENDPOINTS):
        tracing.start(process, settings.otel_endpoint)
    try:
        yield
    finally:
        tracing.stop()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are for the process to handle."""
        yield


async def serve_metrics(
    host: str,
    port: int,
    registry: CollectorRegistry,
    measure: Callable[[], Awaitable[None]],
) -> None:
    """Serve /metrics until cancelled; raises BadSettings.

    `measure` brings up to date what is not counted as it happens.
    """

    async def show(request: Request) -> Response:
        await measure()
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": media_type})

    app = Starlette(routes=[Route("/metrics", show)])
    config = uvicorn.Config(
        app, loop="none", ws="none", lifespan="off", log_config=None, access_log=False
    )
    with _listen(host, port) as listener:
        await _Server(config).serve([listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise BadSettings(
            f"can't serve metrics on port {port} of {host} ({os.strerror(error.errno or 0)}): set"
            " LEDGER_WRITER_METRICS_PORT or LEDGER_PROJECTOR_METRICS_PORT to a free one"
        ) from error
