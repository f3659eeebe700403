"""/customers: register, show, pay in, and a customer's orders."""

from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from api import orders, requests, schemas
from api.context import Context
from api.idempotency import Draft, draft
from api.prefer import DEFAULT_WAIT_S, preference
from api.problems import Problem
from api.reading import min_position
from api.replies import PREFIX, at, reply
from api.submitting import answer, submit
from ledger.core.events import CustomerRegistered, WalletCredited
from projections.wallets import WalletRow


async def register(context: Context, request: Request) -> Response:
    """Open a wallet for a new customer."""
    body = await requests.body(request, schemas.RegisterCustomer)
    new = draft(request, "POST /customers", CustomerRegistered(body.username))
    return await _answer(context, request, new, created=True)


async def deposit(context: Context, request: Request) -> Response:
    """Pay money into the wallet."""
    customer_id = requests.path_id(request, "customer_id")
    body = await requests.body(request, schemas.Deposit)
    new = draft(request, "POST /customers/deposits", WalletCredited(body.amount), customer_id)
    return await _answer(context, request, new, created=False)


async def _answer(context: Context, request: Request, new: Draft, *, created: bool) -> Response:
    submission = await submit(context, new, preference(request, DEFAULT_WAIT_S))
    customer_id = new.event.stream_id
    return await answer(
        context,
        submission,
        lambda: context.views.wallet(customer_id),
        schemas.customer,
        location=_path(customer_id),
        accepted=schemas.AcceptedCustomer(customer_id, schemas.ACCEPTED),
        created=created,
    )


def _path(customer_id: UUID) -> str:
    return f"{PREFIX}/customers/{customer_id}"


async def show(context: Context, request: Request) -> Response:
    """One customer with the wallet."""
    customer_id = requests.path_id(request, "customer_id")
    row, position = await _find(context, customer_id, min_position(request))
    return reply(200, schemas.customer(row), at(position))


async def _find(context: Context, customer_id: UUID, min_position: int) -> tuple[WalletRow, int]:
    row, position = await context.reading.read_at_least(
        min_position, lambda: context.views.wallet(customer_id)
    )
    if row is None:
        raise Problem("unknown-customer", f"there is no customer {customer_id}")
    return row, position


async def browse_orders(context: Context, request: Request) -> Response:
    """A page of one customer's orders, newest first."""
    customer_id = requests.path_id(request, "customer_id")
    found = requests.parameters(request, "product_id", "status", "after", "limit", "min_position")
    page = await orders.page(context, request, found, customer_id)
    await _find(context, customer_id, 0)
    return page
