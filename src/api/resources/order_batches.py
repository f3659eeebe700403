"""/orders/batch: many orders as one append."""

from typing import Final
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from api import requests, schemas
from api.auth.guard import may_see
from api.context import Context
from api.idempotency import draft_batch
from api.prefer import preference
from api.problems import FieldError, Problem
from api.responses import at, reply
from api.submission import Submission, shown, submit
from ledger.core.events import OrderPlaced
from ledger.eventlog.records import Submitted
from projections.views.orders import OrderRow

MAX_BODY: Final = 256 * 1024


async def place(context: Context, request: Request) -> Response:
    """Accept up to 1,000 orders as one: all of them are in the inbox, in this order, or none.

    With `atomic` they are also completed together, or none of them is.
    """
    body = await requests.body(request, schemas.PlaceOrders, limit=MAX_BODY)
    for i, order in enumerate(body.orders):
        if not may_see(request, order.customer_id):
            raise _no_customer(f"orders[{i}].customer_id", order)
    placed = [OrderPlaced(o.customer_id, o.product_id, o.quantity) for o in body.orders]
    new = draft_batch(request, "POST /orders/batch", placed, atomic=body.atomic)
    submission = await submit(context, new, preference(request, default_wait_s=0))
    return await _answer(context, submission)


def _no_customer(field: str, order: schemas.PlaceOrder) -> Problem:
    detail = f"there is no customer {order.customer_id}"
    return Problem("unknown-customer", f"{field}: {detail}", [FieldError(field, detail)])


async def _answer(context: Context, submission: Submission) -> Response:
    """Every order as the view has it after the decision, else each as it was accepted."""
    ids = [event.stream_id for event in submission.events]

    async def query() -> tuple[dict[UUID, OrderRow] | None, int]:
        return await context.views.these_orders(ids)

    rows, position = None, 0
    if submission.preference.wait_s and submission.outcome:
        rows, position = await shown(context, query, submission.outcome)
    headers = submission.headers(decided=rows is not None)
    if rows is None:
        orders = [_pending(event) for event in submission.events]
        return reply(202, schemas.PlacedOrders(orders), headers)
    orders = [
        schemas.order(rows[event.stream_id]) if event.stream_id in rows else _pending(event)
        for event in submission.events
    ]
    return reply(201, schemas.PlacedOrders(orders), {**headers, **at(position)})


def _pending(event: Submitted) -> schemas.Order:
    placed: OrderPlaced = event.payload  # type: ignore[assignment]  # a batch holds nothing else
    return schemas.pending_order(event.stream_id, placed, event.occurred_at_us)
