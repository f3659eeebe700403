"""/customers: register a customer, show the wallet, deposit money, list the orders."""

from typing import Final

from starlette.responses import Response

from api import schemas as s
from api.auth.guard import unknown_customer
from api.auth.principal import Scope
from api.context import Context
from api.http import parameters as p
from api.http.parameters import Call
from api.http.preconditions import etag_of, expected_position, representation
from api.http.responses import encode
from api.operation import PREFIX, Operation
from api.reads.slow_reads import as_of
from api.resources import orders
from api.submission import Resource
from ledger.core.events import CustomerRegistered, WalletCredited
from projections.views.wallets import WALLETS

_CUSTOMER: Final = Resource(
    f"{PREFIX}/customers",
    WALLETS,
    s.customer,
    lambda event, row: s.AcceptedCustomer(event.stream_id, s.DECIDED if row else s.ACCEPTED),
)


@Operation(
    Scope.WALLETS_WRITE,
    "Register a customer",
    {201: s.Customer, 202: s.AcceptedCustomer},
    p.SUBMIT,
    body=s.RegisterCustomer,
    id="registerCustomer",
)
async def register(context: Context, call: Call[s.RegisterCustomer]) -> Response:
    """Register a customer and open the wallet."""
    registered = CustomerRegistered(call.body.username)
    return await context.submissions.submit_and_answer(
        call, "POST /customers", registered, _CUSTOMER
    )


@Operation(
    Scope.WALLETS_WRITE,
    "Deposit money",
    {200: s.Customer, 202: s.AcceptedCustomer},
    (p.CUSTOMER_ID, *p.CHANGE),
    problems=("unknown-customer", "balance-limit"),
    body=s.Deposit,
    own=True,
    id="depositMoney",
)
async def deposit(context: Context, call: Call[s.Deposit]) -> Response:
    """Deposit money into a customer's wallet; `If-Match` names the customer's ETag."""
    credited = WalletCredited(call.body.amount, expected_position=expected_position(call))
    return await context.submissions.submit_and_answer(
        call, "POST /customers/deposits", credited, _CUSTOMER, call[p.CUSTOMER_ID]
    )


@Operation(
    Scope.ORDERS_READ,
    "Show a customer's wallet",
    {200: s.Customer, 304: None},
    (p.CUSTOMER_ID, *p.AS_OF, *p.VERSIONED),
    problems=("unknown-customer",),
    own=True,
    id="getCustomer",
)
async def show(context: Context, call: Call[None]) -> Response:
    """Show a customer and the wallet; with `as_of_position` or `as_of_time`, as they were then."""
    customer_id = call[p.CUSTOMER_ID]
    if when := as_of(call):
        async with context.as_of.open(when, context.client(call.request)) as (reader, moment):
            row, position = await reader.row(WALLETS, customer_id, moment.position), moment.position
    else:
        row, position = await context.reads.read_at_least(
            call[p.MIN_POSITION], lambda: context.views.row(WALLETS, customer_id)
        )
    if row is None:
        raise unknown_customer(customer_id)
    body = encode(s.customer(row))
    headers = [(b"ledger-position", b"%d" % position)]
    return representation(call, body, etag_of(row.position, body), headers)


@Operation(
    Scope.ORDERS_READ,
    "List a customer's orders",
    {200: s.OrderList},
    (p.CUSTOMER_ID, p.OF_PRODUCT, p.IN_STATUS, p.AFTER_ORDER, *p.PAGE),
    problems=("unknown-customer",),
    own=True,
    id="listCustomerOrders",
)
async def browse_orders(context: Context, call: Call[None]) -> Response:
    """List a customer's orders, newest first."""
    customer_id = call[p.CUSTOMER_ID]
    page = await orders.page(context, call, customer_id)
    row, _ = await context.reads.read(lambda: context.views.row(WALLETS, customer_id))
    if row is None:
        raise unknown_customer(customer_id)
    return page
