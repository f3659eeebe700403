"""/health: whether the process lives, and whether it can do its work."""

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from api.context import Context
from api.problems import RETRY_AFTER_S
from api.requests import parameters
from api.responses import at, reply
from projections.queries import ViewsUnavailable


class Live(Struct, frozen=True):
    """The process answers."""

    status: str = "live"


class Ready(Struct, frozen=True):
    """What the process needs, part by part; `status` is ready when all of it is there.

    Unless `keys_required`, it takes requests from whoever reaches it.
    """

    status: str
    inbox: bool
    announcements: bool
    views: bool
    position: int | None
    pending_orders: int
    keys_required: bool = False


async def live(context: Context, request: Request) -> Response:
    """That the process answers at all."""
    parameters(request)
    return reply(200, Live(), {"Cache-Control": "no-store"})


async def ready(context: Context, request: Request) -> Response:
    """Whether orders can be taken, followed and read."""
    parameters(request)
    inbox, announcements = context.publisher.connected, context.announcements.connected
    position = await _position(context)
    views = position is not None
    all_there = inbox and announcements and views
    status = "ready" if all_there else "not ready"
    content = Ready(
        status,
        inbox,
        announcements,
        views,
        position,
        len(context.pending),
        keys_required=context.guard is not None,
    )
    headers = {"Cache-Control": "no-store"}
    if position is not None:
        headers |= at(position)
    if all_there:
        return reply(200, content, headers)
    return reply(503, content, {**headers, "Retry-After": str(RETRY_AFTER_S)})


async def _position(context: Context) -> int | None:
    try:
        return await context.views.position()
    except ViewsUnavailable:
        return None
