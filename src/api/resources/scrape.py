"""/metrics: what Prometheus reads of the API."""

from typing import Final

from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response

from api import metrics
from api.context import Context
from api.requests import parameters
from ledger.runtime.metrics import CONNECTED, INBOX_MESSAGES, PARKING_MESSAGES, registry_of

BESIDES: Final = (*metrics.API, INBOX_MESSAGES, PARKING_MESSAGES)
"""What is shown besides the publisher's own metrics."""


async def show(context: Context, request: Request) -> Response:
    """Counts, times and states of this API process, in the format that Prometheus asks for."""
    parameters(request)
    publishing = context.publisher.metrics
    CONNECTED.set(context.publisher.connected)
    publishing.blocked.set(await context.publisher.blocked())
    publishing.waiting.set(context.publisher.waiting)
    if context.depths:
        await context.depths.measure()
    metrics.PENDING_ORDERS.set(len(context.pending))
    metrics.FEED_STREAMS.set(context.streams.count)
    metrics.ANNOUNCED_POSITION.set(context.announcements.position)
    metrics.ANNOUNCEMENTS_CONNECTED.set(context.announcements.connected)
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    body = encode(registry_of((*publishing.collectors, *BESIDES)))
    return Response(body, headers={"Content-Type": media_type, "Cache-Control": "no-store"})
