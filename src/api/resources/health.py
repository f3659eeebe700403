"""/health and /metrics: liveness, readiness, and metrics for Prometheus."""

from typing import Final

from prometheus_client import Gauge
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from api import schemas
from api.auth.principal import Scope
from api.context import Context
from api.http.connection import ENDED, OPEN
from api.http.middleware import PROBLEMS, REQUEST_S, REQUESTS
from api.http.parameters import Call
from api.http.responses import RETRY_AFTER_S, position_header, reply
from api.operation import Operation
from api.reads.consistent_reads import CACHE_READS
from ledger.runtime.metrics import (
    CONNECTED,
    FOREIGN_LEDGER,
    INBOX_MESSAGES,
    PARKING_MESSAGES,
    registry_of,
)
from projections.queries import ViewsUnavailable

PENDING_ORDERS: Final = Gauge(
    "ledger_pending_orders", "Accepted orders that no view shows yet", registry=None
)
ANNOUNCED_POSITION: Final = Gauge(
    "ledger_announced_position", "The position of the views that was announced last", registry=None
)
ANNOUNCEMENTS_CONNECTED: Final = Gauge(
    "ledger_announcements_connected", "Whether this process hears the projector", registry=None
)
FEED_STREAMS: Final = Gauge(
    "ledger_feed_streams", "Clients that follow the ledger as server-sent events", registry=None
)
# What /metrics shows besides the publisher's own metrics.
BESIDES: Final = (
    REQUESTS,
    REQUEST_S,
    OPEN,
    ENDED,
    PROBLEMS,
    PENDING_ORDERS,
    CACHE_READS,
    ANNOUNCED_POSITION,
    ANNOUNCEMENTS_CONNECTED,
    FEED_STREAMS,
    FOREIGN_LEDGER,
    INBOX_MESSAGES,
    PARKING_MESSAGES,
)


@Operation(
    None,
    "Liveness",
    {200: schemas.Liveness},
    id="getLiveness",
)
async def live(context: Context, call: Call[None]) -> Response:
    """Answer, which shows that the process lives."""
    return reply(200, schemas.Liveness())


@Operation(
    None,
    "Readiness",
    {200: schemas.Readiness, 503: schemas.Readiness},
    id="getReadiness",
)
async def ready(context: Context, call: Call[None]) -> Response:
    """Say whether orders can be accepted, followed and read."""
    publisher, announcements = context.publisher, context.announcements.connected
    inbox = await publisher.has_inbox()
    try:
        position = await context.views.position()
    except ViewsUnavailable:
        position = None
    problem = context.watch.problem if context.watch else None
    all_there = inbox and announcements and position is not None and problem is None
    content = schemas.Readiness(
        "ready" if all_there else "not ready",
        inbox,
        announcements,
        position is not None,
        position,
        len(context.pending),
        keys_required=context.guard is not None,
        ledger=problem is None,
        problem=problem,
    )
    headers = {} if position is None else position_header(position)
    if all_there:
        return reply(200, content, headers)
    return reply(503, content, {**headers, "Retry-After": str(RETRY_AFTER_S)})


@Operation(
    Scope.LEDGER_READ,
    "Metrics for Prometheus",
    {200: "text/plain"},
    id="getMetrics",
)
async def show_metrics(context: Context, call: Call[None]) -> Response:
    """Show the metrics of this API process, in the format that Prometheus asks for."""
    publisher = context.publisher
    CONNECTED.set(publisher.connected)
    publisher.metrics.blocked.set(publisher.blocked)
    publisher.metrics.waiting.set(publisher.waiting)
    if context.depths:
        await context.depths.measure()
    PENDING_ORDERS.set(len(context.pending))
    FEED_STREAMS.set(context.streams.count)
    ANNOUNCED_POSITION.set(context.announcements.position)
    ANNOUNCEMENTS_CONNECTED.set(context.announcements.connected)
    encode, media_type = choose_encoder(call.request.headers.get("accept", ""))
    body = encode(registry_of((*publisher.metrics.collectors, *BESIDES)))
    return Response(body, headers={"Content-Type": media_type})
