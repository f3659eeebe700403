"""/orders: place, follow, list, cancel."""

from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from api import requests, schemas
from api.as_of import WHEN, as_of
from api.auth.guard import bound_to, may_see, require_customer
from api.consistent_reads import min_position_of
from api.context import Context
from api.idempotency import draft
from api.pagination import follow, limit_of
from api.prefer import preference
from api.problems import Problem, invalid
from api.resources.dry_run import dry_run
from api.responses import PREFIX, at, reply
from api.submission import answer, submit
from ledger.core.events import OrderCancelRequested, OrderPlaced
from ledger.core.state import Status


async def place(context: Context, request: Request) -> Response:
    """Accept an order without looking anything up; only a retry by key is looked up.

    With `dry_run` say what would be decided now, and append nothing.
    """
    body = await requests.body(request, schemas.PlaceOrder, known=("dry_run",))
    wish = preference(request, default_wait_s=0)
    require_customer(request, body.customer_id)
    placed = OrderPlaced(body.customer_id, body.product_id, body.quantity)
    new = draft(request, "POST /orders", placed)
    if requests.flag("dry_run", requests.parameters(request, "dry_run").get("dry_run")):
        return await dry_run(context, placed)
    order_id = new.event.stream_id
    submission = await submit(context, new, wish)
    return await answer(
        context,
        submission,
        lambda: context.views.order(order_id),
        schemas.order,
        location=_path(order_id),
        accepted=schemas.accepted_order(order_id, placed, submission.event.occurred_at_us),
        created=True,
    )


def _path(order_id: UUID) -> str:
    return f"{PREFIX}/orders/{order_id}"


async def show(context: Context, request: Request) -> Response:
    """One order: as the view has it, else as it was accepted here.

    As of a moment of the past, if one is given: as the ledger had it then.
    """
    order_id = requests.path_id(request, "order_id")
    found = requests.parameters(request, *WHEN)
    if when := as_of(found):
        row, moment = await context.as_of.read(
            when, lambda history, position: history.order(order_id, position)
        )
        then = _visible(request, schemas.order(row) if row else None, order_id)
        return reply(200, then, at(moment.position))
    order, position = await find(context, request, order_id, min_position_of(found))
    return reply(200, order, at(position))


async def find(
    context: Context, request: Request, order_id: UUID, min_position: int = 0
) -> tuple[schemas.Order, int]:
    """The order, if the sender may see it."""
    order, position = await _look(context, order_id, min_position)
    return _visible(request, order, order_id), position


def _visible(request: Request, order: schemas.Order | None, order_id: UUID) -> schemas.Order:
    if order is None or not may_see(request, order.customer_id):
        raise Problem("unknown-order", f"there is no order {order_id}")
    return order


async def _look(
    context: Context, order_id: UUID, min_position: int
) -> tuple[schemas.Order | None, int]:
    """View, pending, view: an order may pass from the second to the first between two looks.

    Where other processes serve too, what they accepted is heard of before the second look fails.
    """
    row, position = await context.reads.read_at_least(
        min_position, lambda: context.views.order(order_id)
    )
    if row is None and (found := await _pending(context, order_id)):
        return schemas.pending_order(order_id, *found), position
    if row is None:
        row, position = await context.reads.read(lambda: context.views.order(order_id))
    return schemas.order(row) if row else None, position


async def _pending(context: Context, order_id: UUID) -> tuple[OrderPlaced, int] | None:
    found = context.pending.get(order_id)
    if found is None and context.peers:
        await context.peers.catch_up()
        found = context.pending.get(order_id)
    return found


async def cancel(context: Context, request: Request) -> Response:
    """Ask to undo an order; a refusal that is certain already is told at once."""
    order_id = requests.path_id(request, "order_id")
    await requests.no_body(request, schemas.Nothing)
    wish = preference(request, default_wait_s=0)
    new = draft(request, "POST /orders/cancel", OrderCancelRequested(), order_id)

    async def check() -> None:
        order, _ = await find(context, request, order_id)
        _refuse_final(order)

    submission = await submit(context, new, wish, check)
    return await answer(
        context,
        submission,
        lambda: context.views.order(order_id),
        schemas.order,
        location=_path(order_id),
        accepted=schemas.AcceptedCancel(order_id, schemas.ACCEPTED),
        created=False,
    )


def _refuse_final(order: schemas.Order) -> None:
    if order.status in (Status.FAILED, Status.CANCELLED):
        raise Problem(
            "not-cancellable",
            f"the order is {order.status}; only a COMPLETED order can be cancelled",
            reason="ALREADY_CANCELLED" if order.status == Status.CANCELLED else "NOT_COMPLETED",
        )


async def browse(context: Context, request: Request) -> Response:
    """A page of orders, newest first, filtered by customer, product and status."""
    found = requests.parameters(
        request, "customer_id", "product_id", "status", "after", "limit", "min_position"
    )
    text, customer_id = found.get("customer_id"), bound_to(request)
    if text is not None:
        customer_id = requests.uuid_of("customer_id", text)
        require_customer(request, customer_id)
    return await page(context, request, found, customer_id)


async def page(
    context: Context, request: Request, found: dict[str, str], customer_id: UUID | None
) -> Response:
    """The page of orders that the parameters ask for."""
    product_id, after, limit = found.get("product_id"), found.get("after"), limit_of(found)
    status = _status(found.get("status"))
    product = requests.uuid_of("product_id", product_id) if product_id is not None else None
    below = requests.whole("after", after, 1, requests.MAX_POSITION) if after is not None else None
    rows, position = await context.reads.read_at_least(
        min_position_of(found),
        lambda: context.views.orders(
            customer_id=customer_id,
            product_id=product,
            status=status,
            after=below,
            limit=limit + 1,
        ),
    )
    next_after = rows[limit - 1].placed_position if len(rows) > limit else None
    orders = schemas.Orders([schemas.order(row) for row in rows[:limit]], next_after)
    return reply(200, orders, {**at(position), **follow(request, found, next_after)})


def _status(text: str | None) -> str | None:
    if text is not None and text not in Status.__members__:
        raise invalid("status", f"must be one of {', '.join(Status.__members__)}")
    return text
