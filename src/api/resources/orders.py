"""/orders: place one or many, dry runs, show, list, cancel."""

from typing import Final
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response
from uuid_utils.compat import uuid7

from api import schemas as s
from api.auth.guard import principal_of, require_customer
from api.auth.principal import Scope
from api.context import Context
from api.http import parameters as p
from api.http.middleware import traceparent_of
from api.http.parameters import Call
from api.http.preconditions import etag_of, expected_position, representation
from api.http.problems import FieldError, Problem, refused
from api.http.requests import MAX_ERRORS
from api.http.responses import encode, page_headers, position_header, reply
from api.operation import PREFIX, Operation
from api.reads.slow_reads import as_of
from api.submission import Resource, idempotency_key, new_ids, preference_of
from ledger.core.decider import State, Status, decide
from ledger.core.events import (
    OrderCancelRequested,
    OrderCompleted,
    OrderFailed,
    OrderPlaced,
    Reason,
)
from ledger.eventlog.records import Submitted
from ledger.runtime.timestamps import now_us
from projections.views.orders import ORDERS, OrderRow

MAX_BATCH_BODY: Final = 256 * 1024

WRITE, READ = Scope.ORDERS_WRITE, Scope.ORDERS_READ


def _order(event: Submitted, row: OrderRow | None) -> s.Order:
    """The order of a row, or the one that was placed if it is not decided yet."""
    if row:
        return s.order(row)
    placed: OrderPlaced = event.payload  # type: ignore[assignment]  # nothing else is placed
    return s.pending_order(event.stream_id, placed, event.occurred_at_us)


def _failure(row: OrderRow) -> Problem | None:
    """A client that waited must not take an order that failed for one that it got."""
    if row.failure_reason is None:
        return None
    what = f"order.failed at position {row.position}"
    return refused(row.failure_reason, what, order=s.order(row))


_PLACED: Final = Resource(
    f"{PREFIX}/orders",
    ORDERS,
    s.order,
    _order,
    # Who places orders in bulk would rather have the next one accepted than this one decided.
    default_wait_s=0,
    failure=_failure,
)
_CANCELLED: Final = _PLACED._replace(
    accepted=lambda event, row: s.AcceptedCancel(event.stream_id, s.DECIDED if row else s.ACCEPTED)
)


@Operation(
    WRITE,
    "Place an order",
    {200: s.DryRun, 201: s.Order, 202: s.Order},
    (p.DRY_RUN, *p.SUBMIT),
    problems=(
        "unknown-product",
        "unknown-customer",
        "out-of-stock",
        "out-of-money",
        "views-unavailable",
    ),
    body=s.PlaceOrder,
    own=True,
    id="placeOrder",
)
async def place(context: Context, call: Call[s.PlaceOrder]) -> Response:
    """Accept an order, to be decided in its turn; nothing but its form is checked before.

    Without `Prefer: wait` the answer is 202, whatever is decided later. With it, an order that is
    decided in time is 201 if it was completed; one that failed is the problem of its `reason`, with
    the `order`, although it is recorded. A retry with the same `Idempotency-Key` is answered in the
    same way, and its 202 shows what was decided meanwhile.

    With `dry_run`, say what would be decided of it now, and append nothing.
    """
    body = call.body
    require_customer(call.request, body.customer_id)
    placed = OrderPlaced(body.customer_id, body.product_id, body.quantity)
    if call[p.DRY_RUN]:
        # A dry run refuses the key that the order would be refused for.
        call.header(p.IDEMPOTENCY_KEY)
        return await dry_run(context, placed)
    return await context.submissions.submit_and_answer(call, "POST /orders", placed, _PLACED)


async def dry_run(context: Context, placed: OrderPlaced) -> Response:
    """Decide an order as the writer would, on what the views hold at one position."""
    (customer, product), position = await context.reads.read(
        lambda: context.views.customer_and_product(placed.customer_id, placed.product_id)
    )
    (decided,) = decide(State(None, customer, product), placed)
    completed = decided if isinstance(decided, OrderCompleted) else None
    failed = decided if isinstance(decided, OrderFailed) else None
    content = s.DryRun(
        placed.product_id,
        placed.customer_id,
        placed.quantity,
        (Status.FAILED if failed else Status.COMPLETED).value,
        s.money(completed.unit_price_minor) if completed else None,
        s.money(completed.total_minor) if completed else None,
        failed.reason.value if failed else None,
        position,
    )
    return reply(200, content, position_header(position))


@Operation(
    WRITE,
    "Place many orders",
    {201: s.PlacedOrders, 202: s.PlacedOrders, 207: s.PlacedOrders},
    p.SUBMIT,
    problems=("unknown-customer", "batch-failed"),
    body=s.PlaceOrders,
    max_body=MAX_BATCH_BODY,
    own=True,
    id="placeOrders",
    orders=lambda body: len(body.orders),
)
async def place_batch(context: Context, call: Call[s.PlaceOrders]) -> Response:
    """Accept up to 1,000 orders as one: all are appended to the inbox, in this order, or none is.

    With `atomic` they are also completed together, or none of them is. With `Prefer: wait`, a batch
    that is decided in time is 201 if all its orders were completed, 207 if some of them failed, and
    the problem `batch-failed`, with its `orders`, if all of them did.
    """
    body, sender = call.body, principal_of(call.request)
    for i, order in enumerate(body.orders):
        if not sender.may_see(order.customer_id):
            field = f"orders[{i}].customer_id"
            detail = f"there is no customer {order.customer_id}"
            errors = [FieldError(field, detail)]
            raise Problem("unknown-customer", f"{field}: {detail}", errors)
    key = idempotency_key(call, "POST /orders/batch", is_batch=True)
    # Looked up once: what a batch has in common would cost a thousand times otherwise.
    occurred_at_us, atomic_id = now_us(), uuid7() if body.atomic else None
    submitter, traceparent = sender.submitter or None, traceparent_of(call.request.scope)
    events = tuple(
        Submitted(
            *new_ids(key, i),
            occurred_at_us,
            OrderPlaced(order.customer_id, order.product_id, order.quantity),
            submitter=submitter,
            traceparent=traceparent,
            atomic_id=atomic_id,
        )
        for i, order in enumerate(body.orders)
    )
    submission = await context.submissions.submit(events, preference_of(call, 0), key)
    rows, position = None, 0
    if submission.outcome:
        ids = [event.stream_id for event in submission.events]
        rows, position = await context.submissions.read_decided(
            submission, lambda: context.views.orders_by_id(ids)
        )
    orders = [_order(event, (rows or {}).get(event.stream_id)) for event in submission.events]
    headers = submission.headers(decided=rows is not None)
    if rows is None or not submission.preference.wait_s:
        return reply(202, s.PlacedOrders(orders), headers)
    headers |= position_header(position)
    failed = [order for order in orders if order.failure_reason]
    if len(failed) < len(orders):
        return reply(207 if failed else 201, s.PlacedOrders(orders), headers)
    # In an atomic batch all others have failed because of those that failed for their own reason.
    causes = [
        FieldError(f"orders[{i}]", f"failed: {order.failure_reason}")
        for i, order in enumerate(orders)
        if order.failure_reason != Reason.BATCH_FAILED
    ]
    detail = f"all {len(orders)} orders failed, the last one at position {orders[-1].position}"
    reason = Reason.BATCH_FAILED.value
    raise Problem(
        "batch-failed", detail, causes[:MAX_ERRORS], headers, reason=reason, orders=orders
    )


@Operation(
    READ,
    "Show an order",
    {200: s.Order, 304: None},
    (p.ORDER_ID, *p.AS_OF, *p.VERSIONED),
    problems=("unknown-order",),
    own=True,
    id="getOrder",
)
async def show(context: Context, call: Call[None]) -> Response:
    """Show an order: as the view has it, or as PENDING if it is accepted and not decided yet.

    With `as_of_position` or `as_of_time`, as it was then. A PENDING order that no view has yet has
    no ETag.
    """
    order_id = call[p.ORDER_ID]
    if when := as_of(call):
        async with context.as_of.open(when, context.client(call.request)) as (reader, moment):
            row, position = await reader.row(ORDERS, order_id, moment.position), moment.position
        order = _visible(call.request, s.order(row) if row else None, order_id)
    else:
        order, position = await visible_order(context, call.request, order_id, call[p.MIN_POSITION])
    body = encode(order)
    etag = None if order.position is None else etag_of(order.position, body)
    return representation(call, body, etag, [(b"ledger-position", b"%d" % position)])


async def visible_order(
    context: Context, request: Request, order_id: UUID, min_position: int = 0
) -> tuple[s.Order, int]:
    """The order and the position it was read at; raises Problem unless the sender may see it."""
    pending = None
    row, position = await context.reads.read_at_least(
        min_position, lambda: context.views.row(ORDERS, order_id)
    )
    if row is None:
        pending = context.pending.get(order_id)
        if pending is None and context.peers:
            # Another process may have accepted it, and be about to say so.
            await context.peers.catch_up()
            pending = context.pending.get(order_id)
        if pending is None:
            # It may have passed from the pending ones to the view between the two looks.
            row, position = await context.reads.read(lambda: context.views.row(ORDERS, order_id))
    order = s.order(row) if row else None
    if pending:
        order = s.pending_order(order_id, *pending)
    return _visible(request, order, order_id), position


def _visible(request: Request, order: s.Order | None, order_id: UUID) -> s.Order:
    if order is None or not principal_of(request).may_see(order.customer_id):
        raise Problem("unknown-order", f"there is no order {order_id}")
    return order


@Operation(
    WRITE,
    "Cancel an order",
    {200: s.Order, 202: s.AcceptedCancel},
    (p.ORDER_ID, *p.CHANGE),
    problems=(
        "unknown-order",
        "not-cancellable",
        "balance-limit",
        "stock-limit",
        "views-unavailable",
    ),
    body=s.CancelOrder,
    own=True,
    id="cancelOrder",
)
async def cancel(context: Context, call: Call[s.CancelOrder]) -> Response:
    """Request the cancellation of an order; one that is final or imported is refused at once.

    `If-Match` names the order's ETag.
    """
    order_id, request = call[p.ORDER_ID], call.request

    async def refuse_final() -> None:
        order, _ = await visible_order(context, request, order_id)
        if order.status in (Status.FAILED, Status.CANCELLED):
            raise Problem(
                "not-cancellable",
                f"the order is {order.status}; only a COMPLETED order can be cancelled",
                reason="ALREADY_CANCELLED" if order.status == Status.CANCELLED else "NOT_COMPLETED",
            )
        if order.status == Status.COMPLETED and order.price_paid is None:
            raise Problem(
                "not-cancellable",
                "another system completed the order: what it took is not known here",
                reason=Reason.IMPORTED.value,
            )

    requested = OrderCancelRequested(expected_position=expected_position(call))
    return await context.submissions.submit_and_answer(
        call, "POST /orders/cancel", requested, _CANCELLED, order_id, refuse_final
    )


@Operation(
    READ,
    "List orders",
    {200: s.OrderList},
    (p.OF_CUSTOMER, p.OF_PRODUCT, p.IN_STATUS, p.AFTER_ORDER, *p.PAGE),
    problems=("unknown-customer",),
    own=True,
    id="listOrders",
)
async def browse(context: Context, call: Call[None]) -> Response:
    """List orders, newest first, filtered by customer, product and status."""
    customer_id = call[p.OF_CUSTOMER] or principal_of(call.request).customer_id
    if customer_id:
        require_customer(call.request, customer_id)
    return await page(context, call, customer_id)


async def page(context: Context, call: Call[None], customer_id: UUID | None) -> Response:
    """The page of orders that the parameters ask for, of one customer or of all."""
    limit = call[p.LIMIT]
    rows, position = await context.reads.read_at_least(
        call[p.MIN_POSITION],
        lambda: context.read_in_turn(
            call.request,
            lambda: context.views.orders(
                customer_id=customer_id,
                product_id=call[p.OF_PRODUCT],
                status=call[p.IN_STATUS],
                after=call[p.AFTER_ORDER],
                limit=limit + 1,
            ),
        ),
    )
    next_after = rows[limit - 1].placed_position if len(rows) > limit else None
    orders = s.OrderList([s.order(row) for row in rows[:limit]], next_after)
    return reply(200, orders, page_headers(call, position, next_after))
