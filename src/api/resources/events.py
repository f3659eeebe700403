"""/events: the ledger as a feed of CloudEvents, in pages or as server-sent events."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from api.consistent_reads import min_position_of
from api.context import Context
from api.event_stream import EVENT_STREAM
from api.pagination import follow, limit_of
from api.problems import invalid
from api.requests import MAX_POSITION, parameters, path_id, whole
from api.resources import orders
from api.responses import at
from ledger.core.events import DECIDED, SUBMITTED
from ledger.eventlog.codec import BATCH_CONTENT_TYPE, join
from projections.feed import FeedEvent, FeedPage

_VARIES: Final = {"Vary": "Accept"}


async def browse(context: Context, request: Request) -> Response:
    """A page of the ledger after a position, in order; without `next` it ends where the ledger did.

    With `Accept: text/event-stream` the same as server-sent events, which goes on as the ledger
    grows: the id of each is its position, and `Last-Event-ID` wins over `after`.
    """
    found = parameters(request, "after", "limit", "type", "min_position")
    after, limit, type_ = _position("after", found.get("after")), limit_of(found), _type(found)
    least = min_position_of(found)
    if _wants_stream(request):
        last = request.headers.get("last-event-id")
        return await context.streams.open(
            after if last is None else _position("Last-Event-ID", last),
            type_,
            least,
            head_only=request.method == "HEAD",
        )
    page = await _page(context, after, limit, type_, least)
    next_after = None if page.is_last else page.scanned_to
    links = follow(request, found, next_after)
    return _reply(page.events, {**at(page.head), **links, **_VARIES})


async def _page(
    context: Context, after: int, limit: int, type_: str | None, least: int
) -> FeedPage:
    async def query() -> tuple[FeedPage, int]:
        page = await context.feed.page(after, limit, type_)
        return page, page.head

    page, _ = await context.reads.read_at_least(least, query)
    return page


async def browse_order(context: Context, request: Request) -> Response:
    """An order's own history up to `Ledger-Position`; empty while it is only accepted."""
    order_id = path_id(request, "order_id")
    found = parameters(request, "after", "limit", "min_position")
    after, limit = _position("after", found.get("after")), limit_of(found)
    _, position = await orders.find(context, request, order_id, min_position_of(found))
    events = await context.feed.history(order_id, after, position, limit + 1)
    next_after = events[limit - 1].position if len(events) > limit else None
    return _reply(events[:limit], {**at(position), **follow(request, found, next_after)})


def _reply(events: list[FeedEvent], headers: dict[str, str]) -> Response:
    body = join(event.body for event in events)
    return Response(body, 200, headers, BATCH_CONTENT_TYPE)


def _position(name: str, text: str | None) -> int:
    return whole(name, text, 0, MAX_POSITION) if text is not None else 0


def _type(found: dict[str, str]) -> str | None:
    text = found.get("type")
    if text is not None and text not in SUBMITTED and text not in DECIDED:
        raise invalid("type", f"must be one of {', '.join((*SUBMITTED, *DECIDED))}")
    return text


def _wants_stream(request: Request) -> bool:
    accepted = ",".join(request.headers.getlist("accept")).lower().split(",")
    return any(part.partition(";")[0].strip() == EVENT_STREAM for part in accepted)
