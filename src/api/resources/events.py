"""/events: the ledger as a feed of CloudEvents, in pages or as server-sent events."""

from starlette.responses import Response
from starlette.types import Scope as HttpScope

from api.auth.principal import Scope
from api.context import Context
from api.http import parameters as p
from api.http.middleware import accepted_weights
from api.http.parameters import Call
from api.http.problems import beyond_head
from api.http.responses import page_headers
from api.operation import Operation
from api.reads.event_stream import EVENT_STREAM
from api.resources.orders import visible_order
from ledger.eventlog.codec import BATCH_CONTENT_TYPE, encode_group
from projections.queries import FeedEvent, FeedFilter, FeedPage


@Operation(
    Scope.LEDGER_READ,
    "List the ledger's events, or stream them",
    {200: f"{BATCH_CONTENT_TYPE}, {EVENT_STREAM}"},
    (p.OF_TYPES, p.OF_SUBJECT, p.AFTER_EVENT, *p.PAGE, p.LAST_EVENT_ID),
    problems=("too-many-streams",),
    id="listEvents",
)
async def browse(context: Context, call: Call[None]) -> Response:
    """List the events of the ledger after a position; a page without `next` reached the end.

    With `Accept: text/event-stream`, stream them as server-sent events, as the ledger grows: the
    id of each is its position, its event name is its type, and `Last-Event-ID` takes precedence
    over `after`. A position beyond the ledger's end is refused, in a page as in a stream.
    """
    request, after = call.request, call[p.AFTER_EVENT]
    only = FeedFilter(call[p.OF_TYPES], call[p.OF_SUBJECT])
    if _prefers_stream(request.scope):
        last_event_id, cursor = call.header(p.LAST_EVENT_ID), p.AFTER_EVENT.name
        if last_event_id is not None:
            after, cursor = last_event_id, p.LAST_EVENT_ID.name
        head_only = request.method == "HEAD"
        return await context.streams.open(
            context.client(request),
            after,
            cursor,
            only,
            call[p.MIN_POSITION],
            head_only=head_only,
        )

    async def query() -> tuple[FeedPage, int]:
        page = await context.feed.page(after, call[p.LIMIT], only)
        return page, page.head

    page, _ = await context.reads.read_at_least(
        call[p.MIN_POSITION], lambda: context.read_in_turn(request, query)
    )
    if after > page.head:
        raise beyond_head(p.AFTER_EVENT.name, page.head, page.ledger_id)
    next_after = None if page.is_last else page.scanned_to
    headers = page_headers(call, page.head, next_after)
    return _reply(page.events, {**headers, "Vary": "Accept"})


def _prefers_stream(scope: HttpScope) -> bool:
    """Whether Accept names event streams, and nothing else of this route before them."""
    weights = accepted_weights(scope, b"accept")
    stream = weights.get(EVENT_STREAM, 0)
    page = (BATCH_CONTENT_TYPE, "application/json", "application/*", "*/*")
    return stream > 0 and stream >= next((weights[name] for name in page if name in weights), 0)


@Operation(
    Scope.ORDERS_READ,
    "List an order's events",
    {200: BATCH_CONTENT_TYPE},
    (p.ORDER_ID, p.AFTER_EVENT, *p.PAGE),
    problems=("unknown-order",),
    own=True,
    id="listOrderEvents",
)
async def browse_order(context: Context, call: Call[None]) -> Response:
    """List the events of an order up to `Ledger-Position`; none while it is only accepted."""
    order_id, after, limit = call[p.ORDER_ID], call[p.AFTER_EVENT], call[p.LIMIT]
    _, position = await visible_order(context, call.request, order_id, call[p.MIN_POSITION])
    if after > position:
        head = await context.feed.head()
        if after > head.position:
            raise beyond_head(p.AFTER_EVENT.name, head.position, head.ledger_id)

    async def query() -> tuple[list[FeedEvent], int]:
        return await context.feed.history(order_id, after, position, limit + 1), position

    events, _ = await context.read_in_turn(call.request, query)
    next_after = events[limit - 1].position if len(events) > limit else None
    return _reply(events[:limit], page_headers(call, position, next_after))


def _reply(events: list[FeedEvent], headers: dict[str, str]) -> Response:
    body = encode_group(event.body for event in events)
    return Response(body, 200, headers, BATCH_CONTENT_TYPE)
