"""/customers: register, show, pay in, and a customer's orders."""

from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from api import schemas
from api.as_of import as_of
from api.auth.guard import unknown_customer
from api.auth.principal import Scope
from api.context import Context
from api.operation import PREFIX, operation
from api.parameters import (
    AFTER_ORDER,
    AS_OF,
    CUSTOMER_ID,
    IN_STATUS,
    MIN_POSITION,
    OF_PRODUCT,
    PAGE,
    SUBMIT,
    Call,
)
from api.resources import orders
from api.responses import position_header, reply
from api.submission import (
    DEFAULT_WAIT_S,
    IdempotencyKey,
    idempotency_key,
    new_event,
    new_ids,
    preference_of,
)
from ledger.core.events import CustomerRegistered, WalletCredited
from ledger.eventlog.records import Submitted
from projections.views.wallets import WALLETS


@operation(
    Scope.WALLETS_WRITE,
    "Register",
    {201: schemas.Customer, 202: schemas.AcceptedCustomer},
    *SUBMIT,
    body=schemas.RegisterCustomer,
)
async def register(context: Context, call: Call[schemas.RegisterCustomer]) -> Response:
    """Open a wallet for a new customer."""
    key = idempotency_key(call.request, "POST /customers")
    registered = CustomerRegistered(call.body.username)
    event = new_event(call.request, *new_ids(key), registered)
    return await _submit(context, call.request, event, key, created=True)


@operation(
    Scope.WALLETS_WRITE,
    "Pay in",
    {
        200: schemas.Customer,
        202: schemas.AcceptedCustomer,
        404: ("unknown-customer",),
        409: ("balance-limit",),
    },
    CUSTOMER_ID,
    *SUBMIT,
    body=schemas.Deposit,
    own=True,
)
async def deposit(context: Context, call: Call[schemas.Deposit]) -> Response:
    """Pay money into the wallet."""
    customer_id = call[CUSTOMER_ID]
    key = idempotency_key(call.request, "POST /customers/deposits", customer_id)
    event_id, _ = new_ids(key)
    event = new_event(call.request, event_id, customer_id, WalletCredited(call.body.amount))
    return await _submit(context, call.request, event, key, created=False)


async def _submit(
    context: Context,
    request: Request,
    event: Submitted,
    key: IdempotencyKey | None,
    *,
    created: bool,
) -> Response:
    preference = preference_of(request, DEFAULT_WAIT_S)
    submission = await context.submissions.submit((event,), preference, key)
    customer_id = event.stream_id
    return await context.submissions.response(
        submission,
        lambda: context.views.wallet(customer_id),
        schemas.customer,
        location=f"{PREFIX}/customers/{customer_id}",
        accepted=schemas.AcceptedCustomer(customer_id, schemas.ACCEPTED),
        created=created,
    )


@operation(
    Scope.ORDERS_READ,
    "Show a wallet",
    {200: schemas.Customer, 404: ("unknown-customer",)},
    CUSTOMER_ID,
    *AS_OF,
    own=True,
)
async def show(context: Context, call: Call[None]) -> Response:
    """One customer with the wallet; with `as_of_position` or `as_of_time` as it was then."""
    customer_id = call[CUSTOMER_ID]
    if when := as_of(call):
        then, moment = await context.as_of.read(
            when, lambda reader, position: reader.row(WALLETS, customer_id, position)
        )
        customer, position = schemas.customer(then) if then else None, moment.position
    else:
        customer, position = await _find(context, customer_id, call[MIN_POSITION])
    if customer is None:
        raise unknown_customer(customer_id)
    return reply(200, customer, position_header(position))


async def _find(
    context: Context, customer_id: UUID, min_position: int
) -> tuple[schemas.Customer | None, int]:
    row, position = await context.reads.read_at_least(
        min_position, lambda: context.views.wallet(customer_id)
    )
    return schemas.customer(row) if row else None, position


@operation(
    Scope.ORDERS_READ,
    "List their orders",
    {200: schemas.Orders, 404: ("unknown-customer",)},
    CUSTOMER_ID,
    OF_PRODUCT,
    IN_STATUS,
    AFTER_ORDER,
    *PAGE,
    own=True,
)
async def browse_orders(context: Context, call: Call[None]) -> Response:
    """A page of one customer's orders, newest first."""
    customer_id = call[CUSTOMER_ID]
    page = await orders.page(context, call, customer_id)
    customer, _ = await _find(context, customer_id, 0)
    if customer is None:
        raise unknown_customer(customer_id)
    return page
