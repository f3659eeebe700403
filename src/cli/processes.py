"""The three long-running processes: what each is made of, and how it stops."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncEngine

from api import server
from api.app import build_app
from api.context import Context
from api.pending import Peers
from cli.access import make_guard, origins
from cli.observing import observed, serve_metrics
from cli.settings import Settings
from ledger.messaging.publisher import Publisher
from ledger.messaging.rabbitmq import Connection, Notifier, QueueDepths
from ledger.messaging.topology import ANNOUNCED_EXCHANGE, RECORDED_EXCHANGE
from ledger.runtime.database import make_engine
from ledger.runtime.metrics import WRITER, registry_of
from ledger.runtime.reconnect import first_to_end
from ledger.writer import Writer
from projections.announcements import Announcements
from projections.metrics import PROJECTOR, measure_lag
from projections.projector import Projector, listen
from projections.views.registry import PROJECTIONS

log = logging.getLogger(__name__)

Work = Coroutine[Any, Any, None]

STOP_TIMEOUT_S: Final = 8.0
API_READ_TIMEOUT_S: Final = 5.0
API_CONNECTIONS: Final = 8


async def run_api(settings: Settings) -> None:
    """Serve the API until SIGTERM or SIGINT; raises BadSettings."""
    with observed("api", settings):
        await _serve_api(settings)


async def _serve_api(settings: Settings) -> None:
    engine = make_engine(
        settings.db_url("api"),
        settings.db_ca_file,
        read_timeout_s=API_READ_TIMEOUT_S,
        pool_size=API_CONNECTIONS,
        autocommit=True,
    )
    name = f"api-{os.getpid()}"
    consuming, publishing = _connections(settings.amqp_url("api"), name)
    peers = Peers(consuming, publishing, name) if settings.api_shared else None
    context = Context(
        Publisher(publishing, "/api", name),
        Announcements(consuming, name),
        engine,
        peers=peers,
        cors_origins=origins(settings),
        guard=make_guard(settings, engine),
        depths=QueueDepths(consuming),
    )
    try:
        await server.run(build_app(context), settings.api_host, settings.api_port)
    finally:
        await engine.dispose()


async def run_writer(settings: Settings) -> None:
    """Write until SIGTERM or SIGINT."""
    engine = make_engine(settings.db_url("writer"), settings.db_ca_file)
    consuming, publishing = _connections(settings.amqp_url("writer"), f"writer-{os.getpid()}")
    notifier = Notifier(publishing, RECORDED_EXCHANGE)
    writer = Writer(engine, consuming, publishing, notifier, snapshot_every=settings.snapshot_every)
    try:
        with observed("writer", settings):
            beside = (notifier.run(), *_writer_metrics(settings, consuming))
            await until_signalled(writer.stop, writer.run(), *beside)
    finally:
        await engine.dispose()


async def run_projector(settings: Settings) -> None:
    """Project until SIGTERM or SIGINT."""
    # One to write the views, one to read ahead, one for the metrics.
    engine = make_engine(settings.db_url("projector"), settings.db_ca_file, pool_size=3)
    consuming, publishing = _connections(settings.amqp_url("projector"), f"projector-{os.getpid()}")
    announcer = Notifier(publishing, ANNOUNCED_EXCHANGE)
    projector = Projector(engine, PROJECTIONS, announcer)
    try:
        with observed("projector", settings):
            metrics = _projector_metrics(settings, engine)
            beside = (listen(consuming, projector), announcer.run(), *metrics)
            await until_signalled(projector.stop, projector.run(), *beside)
    finally:
        await engine.dispose()


def _connections(url: str, name: str) -> tuple[Connection, Connection]:
    """A process's connections to the broker: one to consume, one to publish."""
    return Connection(url, f"{name}-consumer"), Connection(url, f"{name}-publisher")


def _writer_metrics(settings: Settings, consuming: Connection) -> Sequence[Work]:
    if settings.writer_metrics_port is None:
        return ()
    depths = QueueDepths(consuming)
    address = (settings.metrics_host, settings.writer_metrics_port)
    return (depths.run(), serve_metrics(*address, registry_of(WRITER), depths.measure))


def _projector_metrics(settings: Settings, engine: AsyncEngine) -> Sequence[Work]:
    if settings.projector_metrics_port is None:
        return ()

    async def measure() -> None:
        await measure_lag(engine)

    address = (settings.metrics_host, settings.projector_metrics_port)
    return (serve_metrics(*address, registry_of(PROJECTOR), measure),)


async def until_signalled(stop: Callable[[], None], work: Work, *beside: Work) -> None:
    """Run `work` and what it needs beside it; on a signal call `stop` and let `work` finish.

    Work that has not finished after STOP_TIMEOUT_S is cancelled, which rolls back what it had not
    committed. Raises what the work raised.
    """
    running = asyncio.ensure_future(first_to_end(work, *beside))
    signalled = False

    def on_signal() -> None:
        nonlocal signalled
        signalled = True
        stop()
        asyncio.get_running_loop().call_later(STOP_TIMEOUT_S, running.cancel)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    try:
        await running
    except asyncio.CancelledError:
        if not signalled:
            raise
        log.warning("stopped after %s s with work under way; it was rolled back", STOP_TIMEOUT_S)
