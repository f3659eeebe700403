"""The three long-running processes `ledger api`, `ledger writer` and `ledger projector`.

What each is made of, who may reach it, how it is observed, and how a signal stops it.
"""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from prometheus_client import CollectorRegistry, make_asgi_app
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.types import Receive, Scope, Send

from api import server
from api.app import App
from api.auth.api_keys import ANSWER_TIMEOUT_S, KEY_CONNECTIONS, ApiKeyCache, StoredApiKeys
from api.auth.guard import Exposed, Guard, refuse_exposed
from api.auth.rate_limit import RateLimit
from api.auth.tokens import BadKeyFile, Tokens, load_signing_keys
from api.context import Context
from api.reads.pending import Peers, PendingOrders
from cli import connections, console, policies
from cli.settings import BadSettings, MissingSecret, Settings
from ledger.eventlog.identity import HeadWatch
from ledger.messaging.publisher import Publisher
from ledger.messaging.rabbitmq import Connection, Notifier, QueueDepths
from ledger.messaging.topology import ANNOUNCED_EXCHANGE, RECORDED_EXCHANGE
from ledger.runtime import logs, tracing, versions
from ledger.runtime.database import DATABASE_ERRORS
from ledger.runtime.metrics import WRITER, registry_of
from ledger.runtime.reconnect import first_to_end, keep_alive
from ledger.writer import Clock, Writer
from projections.announcements import Announcements
from projections.projector import PROJECTOR, Projector, listen, measure_lag
from projections.queries import QUERY_TIMEOUT_S
from projections.views.registry import PROJECTIONS

log = logging.getLogger(__name__)

Work = Coroutine[Any, Any, None]

STOP_TIMEOUT_S: Final = 8.0
READ_TIMEOUT_S: Final = 15.0
API_CONNECTIONS: Final = 8
# One connection writes the views, one reads ahead, one is for the metrics, one watches heads.
PROJECTOR_CONNECTIONS: Final = 4

OTEL_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
AUTH_WARNINGS: Final = {
    "off": "LEDGER_AUTH=off: requests need no API key, from this machine only",
    "outside": "LEDGER_AUTH=outside: requests need no API key, from whoever gets through",
}


def api() -> None:
    """Run `ledger api`."""
    console.run(_serve_api(console.read_settings()))


def writer() -> None:
    """Run `ledger writer`."""
    console.run(_run_writer(console.read_settings()))


def projector() -> None:
    """Run `ledger projector`."""
    console.run(_run_projector(console.read_settings()))


@asynccontextmanager
async def process_of(
    settings: Settings,
    role: str,
    *,
    read_timeout_s: float = READ_TIMEOUT_S,
    pool_size: int = 2,
    autocommit: bool = False,
) -> AsyncIterator[tuple[AsyncEngine, Connection, Connection]]:
    """The role's pool of database connections, and its two connections to the broker.

    Meanwhile the process logs as the settings say, and traces if they name an endpoint. Raises
    NoOpenTelemetry.
    """
    url, name = settings.amqp_url(role), f"{role}-{os.getpid()}"
    logs.configure(settings.log_format, settings.log_level, access=settings.access_log)
    versions.check_python()
    if settings.otel_endpoint or any(os.environ.get(variable) for variable in OTEL_ENDPOINTS):
        tracing.start(role, settings.otel_endpoint)
    try:
        async with connections.engine(
            settings,
            role,
            read_timeout_s=read_timeout_s,
            pool_size=pool_size,
            autocommit=autocommit,
        ) as engine:
            # One to consume and one to publish: a broker in need blocks publishers.
            yield engine, Connection(url, f"{name}-consumer"), Connection(url, f"{name}-publisher")
    finally:
        tracing.stop()


async def _serve_api(settings: Settings) -> None:
    name = f"api-{os.getpid()}"
    async with (
        process_of(
            settings,
            "api",
            read_timeout_s=QUERY_TIMEOUT_S,
            pool_size=API_CONNECTIONS,
            autocommit=True,
        ) as (engine, consuming, publishing),
        connections.engine(
            settings,
            "api",
            read_timeout_s=2 * ANSWER_TIMEOUT_S,
            pool_size=KEY_CONNECTIONS,
            autocommit=True,
        ) as keys_engine,
    ):
        pending = PendingOrders()
        try:
            monitor = settings.amqp_url("monitor")
        except MissingSecret as error:
            log.warning(
                "ledger_inbox_messages and ledger_parking_messages are not known: %s", error
            )
            monitor = None
        watch = HeadWatch(engine)
        context = Context(
            Publisher(publishing, "/api", name, watch=watch),
            Announcements(consuming, name, watch),
            engine,
            pending,
            Peers(consuming, publishing, name, pending, watch) if settings.api_shared else None,
            cors_origins=tuple((settings.cors_origins or "").split()),
            guard=make_guard(settings, keys_engine),
            depths=QueueDepths(Connection(monitor, f"{name}-depths")) if monitor else None,
            watch=watch,
        )
        # Where keys are asked for, a page of the web can't do what it could do without one.
        allows_host = server.any_host if settings.auth != "off" else server.local_host
        try:
            await first_to_end(
                server.run(App(context), settings.api_host, settings.api_port, allows_host),
                _refuse_old_database(engine),
            )
        except server.CannotListen as error:
            raise BadSettings(f"{error}; set LEDGER_API_PORT to a free one") from error


async def _refuse_old_database(engine: AsyncEngine) -> None:
    """Connect once the database is there, which raises Unsupported; then wait until cancelled."""

    async def connect() -> None:
        async with engine.connect():
            pass

    await keep_alive("version of the database", connect, DATABASE_ERRORS)
    await asyncio.Event().wait()


async def _run_writer(settings: Settings) -> None:
    async with process_of(settings, "writer") as (engine, consuming, publishing):
        notifier = Notifier(publishing, RECORDED_EXCHANGE)
        if settings.lost_after is not None:
            log.warning(
                "LEDGER_LOST_AFTER=%d: orders of who had seen later positions are decided all the"
                " same; take the setting away once the inbox is empty and every API was restarted",
                settings.lost_after,
            )
        process = Writer(
            engine,
            consuming,
            publishing,
            notifier,
            snapshot_every=settings.snapshot_every,
            lost_after=settings.lost_after,
            clock=Clock(settings.clock_limit_s),
        )
        beside = [notifier.run(), policies.watch(partial(policies.read_problems, settings))]
        if port := settings.writer_metrics_port:
            depths = QueueDepths(consuming)
            registry = registry_of(WRITER)
            beside.append(depths.run())
            beside.append(serve_metrics(settings.metrics_host, port, registry, depths.measure))
        await until_signalled(process.stop, process.run(), *beside)


async def _run_projector(settings: Settings) -> None:
    async with process_of(settings, "projector", pool_size=PROJECTOR_CONNECTIONS) as (
        engine,
        consuming,
        publishing,
    ):
        announcer = Notifier(publishing, ANNOUNCED_EXCHANGE)
        process = Projector(engine, PROJECTIONS, announcer)
        beside = [listen(consuming, process), announcer.run(), process.watch.run()]
        if port := settings.projector_metrics_port:
            registry, measure = registry_of(PROJECTOR), partial(measure_lag, engine)
            beside.append(serve_metrics(settings.metrics_host, port, registry, measure))
        await until_signalled(process.stop, process.run(), *beside)


def make_guard(settings: Settings, engine: AsyncEngine) -> Guard | None:
    """The check of API keys and tokens; None where the settings require neither.

    Raises BadSettings where the settings contradict each other, or would let anybody in from
    outside this machine without a key.
    """
    issuer, audience, path = settings.jwt_issuer, settings.jwt_audience, settings.jwt_key_file
    tokens = None
    try:
        refuse_exposed(settings.api_host, settings.auth)
        if issuer is not None or audience is not None or path is not None:
            if not issuer or not audience or path is None:
                raise BadSettings(
                    "of LEDGER_JWT_ISSUER, _AUDIENCE and _KEY_FILE set all three, or none"
                )
            if settings.auth != "required":
                raise BadSettings("LEDGER_JWT_ISSUER is set, so LEDGER_AUTH must be `required`")
            tokens = Tokens(issuer, audience, load_signing_keys(path))
    except (Exposed, BadKeyFile) as error:
        raise BadSettings(str(error)) from error
    if settings.auth != "required":
        log.warning(AUTH_WARNINGS[settings.auth])
        return None
    rate_limit = RateLimit(settings.rate_per_s, settings.concurrency)
    return Guard(ApiKeyCache(StoredApiKeys(engine)), tokens, rate_limit)


async def serve_metrics(
    host: str,
    port: int,
    registry: CollectorRegistry,
    measure: Callable[[], Awaitable[None]],
) -> None:
    """Serve /metrics until cancelled; raises BadSettings where the port is taken.

    `measure` is awaited before each answer: it updates the gauges that are read on demand.
    """

    exposition = make_asgi_app(registry)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await measure()
        await exposition(scope, receive, send)

    try:
        metrics_server = server.Server(app, host, port)
    except server.CannotListen as error:
        raise BadSettings(
            f"{error}; set LEDGER_WRITER_METRICS_PORT or LEDGER_PROJECTOR_METRICS_PORT to a free"
            " one"
        ) from error
    await metrics_server.serve()


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
