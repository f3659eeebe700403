"""/customers: register, show, pay in, and a customer's orders."""

from typing import TypeVar
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from api import requests, schemas
from api.as_of import WHEN, as_of
from api.auth.guard import unknown_customer
from api.consistent_reads import min_position_of
from api.context import Context
from api.idempotency import Draft, draft
from api.prefer import DEFAULT_WAIT_S, preference
from api.resources import orders
from api.responses import PREFIX, at, reply
from api.submission import answer, submit
from ledger.core.events import CustomerRegistered, WalletCredited
from projections.views.wallets import WalletRow

T = TypeVar("T")


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
    """One customer with the wallet; as of a moment of the past, if one is given."""
    customer_id = requests.path_id(request, "customer_id")
    found = requests.parameters(request, *WHEN)
    if when := as_of(found):
        row, moment = await context.as_of.read(
            when, lambda history, position: history.wallet(customer_id, position)
        )
        return reply(200, schemas.customer(_known(row, customer_id)), at(moment.position))
    now, position = await _find(context, customer_id, min_position_of(found))
    return reply(200, schemas.customer(now), at(position))


async def _find(context: Context, customer_id: UUID, min_position: int) -> tuple[WalletRow, int]:
    row, position = await context.reads.read_at_least(
        min_position, lambda: context.views.wallet(customer_id)
    )
    return _known(row, customer_id), position


def _known(row: T | None, customer_id: UUID) -> T:
    if row is None:
        raise unknown_customer(customer_id)
    return row


async def browse_orders(context: Context, request: Request) -> Response:
    """A page of one customer's orders, newest first."""
    customer_id = requests.path_id(request, "customer_id")
    found = requests.parameters(request, "product_id", "status", "after", "limit", "min_position")
    page = await orders.page(context, request, found, customer_id)
    await _find(context, customer_id, 0)
    return page
