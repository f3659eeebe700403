"""The shapes of requests (pydantic) and of answers (msgspec); limits are those of the events."""

from collections.abc import Callable
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Annotated, Final, Literal, get_args
from uuid import UUID

from msgspec import Meta, Struct
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetPydanticSchema,
    PlainValidator,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError, core_schema

from ledger.core.decider import Status
from ledger.core.events import (
    MAX_AMOUNT_MINOR,
    MAX_DESCRIPTION,
    MAX_NAME,
    MAX_QUANTITY,
    MAX_STOCK,
    MAX_USERNAME,
    OrderPlaced,
)
from ledger.core.money import to_minor
from ledger.core.names import BadText, clean_description, clean_name
from ledger.runtime.timestamps import format_rfc3339, format_us
from projections.trial_balance import JournalBalance, Sums
from projections.views.journal import Unit
from projections.views.orders import OrderRow
from projections.views.stock import ProductAsOf, StockRow
from projections.views.wallets import WalletAsOf, WalletRow

MAX_BATCH: Final = 1_000
# 36 ASCII characters (RFC 9562, 4).
UUID_PATTERN: Final = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
CENT: Final = Decimal("0.01")
# 28 digits hold every amount; one with more is refused before anything computes with it.
EXACT: Final = Context(prec=28, traps=[Inexact, InvalidOperation])


def money(minor: int) -> Decimal:
    """Minor units as the number with two decimals that clients see."""
    return Decimal(minor).scaleb(-2)


def _amount(value: object) -> int:
    """Minor units of a JSON number, exactly; the body was parsed with `Decimal` for floats."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise PydanticCustomError("money_type", "not a number")
    try:
        minor = to_minor(EXACT.quantize(Decimal(value), CENT))
    except Inexact:
        raise PydanticCustomError("money_decimals", "not exact", {"decimals": 2}) from None
    except InvalidOperation:
        # Too many digits: beyond one of the limits, on the side of its sign.
        minor = MAX_AMOUNT_MINOR + 1 if value > 0 else 0
    if minor < 1:
        raise PydanticCustomError("greater_than_equal", "too small", {"ge": str(money(1))})
    if minor > MAX_AMOUNT_MINOR:
        limit = str(money(MAX_AMOUNT_MINOR))
        raise PydanticCustomError("less_than_equal", "too large", {"le": limit})
    return minor


# Not `multipleOf`: validators divide binary floats, and refuse one good price in nine.
_AMOUNT_SCHEMA: Final = {
    "type": "number",
    "description": "money, with at most two decimals, such as 12.50; it is read exactly",
    "minimum": 0.01,
    "maximum": MAX_AMOUNT_MINOR // 100,
}


def _whole(value: object) -> object:
    """The integer that a JSON number is, be it written as 3, 3.0 or 3e0; else the value itself."""
    # Digits are counted first: of 1e999999 the integer would fill the memory.
    if not isinstance(value, Decimal) or not value.is_finite():
        return value
    if value and value.adjusted() >= EXACT.prec:
        # Beyond one of the limits, on the side of its sign.
        return 10**EXACT.prec if value > 0 else -(10**EXACT.prec)
    number = int(value)
    return number if number == value else value


def _cleaned(clean: Callable[[str, int], str], max_length: int) -> PlainValidator:
    """Takes a text in its clean form, which has at most `max_length` characters."""

    def validate(value: object) -> str:
        if not isinstance(value, str):
            raise PydanticCustomError("string_type", "not a string")
        try:
            return clean(value, max_length)
        except BadText as error:
            # As the error's context, since its type says which words are ours.
            raise PydanticCustomError(
                "text", "{words}", {"words": str(error), "limit": error.limit}
            ) from None

    return PlainValidator(validate)


def _text_schema(min_length: int, max_length: int) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "minLength": min_length, "maxLength": max_length})


Username = Annotated[str, _cleaned(clean_name, MAX_USERNAME), _text_schema(1, MAX_USERNAME)]
ProductName = Annotated[str, _cleaned(clean_name, MAX_NAME), _text_schema(1, MAX_NAME)]
Description = Annotated[
    str, _cleaned(clean_description, MAX_DESCRIPTION), _text_schema(0, MAX_DESCRIPTION)
]
# JSON has one type of numbers, so 3.0 is a whole one.
Whole = Annotated[int, BeforeValidator(_whole)]
# pydantic alone would also take a UUID without dashes, in braces or as a URN.
Id = Annotated[
    UUID,
    GetPydanticSchema(
        lambda _, __: core_schema.chain_schema(
            [core_schema.str_schema(strict=True, pattern=UUID_PATTERN), core_schema.uuid_schema()]
        )
    ),
    WithJsonSchema({"type": "string", "format": "uuid"}),
]
# Two decimals in JSON, minor units in the model.
Amount = Annotated[int, PlainValidator(_amount), WithJsonSchema(_AMOUNT_SCHEMA)]
# A time in UTC as RFC 3339.
Moment = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


def component(name: str) -> Meta:
    """Describes a field by a component of the OpenAPI document, whose values `api.openapi` has."""
    return Meta(extra_json_schema={"$ref": f"#/components/schemas/{name}"})


UnitName = Annotated[Literal["money", "units"], component("Unit")]
Money = Annotated[Decimal, component("Money")]
StatusName = Annotated[str, component("OrderStatus")]
FailureReason = Annotated[str, component("OrderFailureReason")]
ReasonName = Annotated[str, component("Reason")]
ProblemTypeName = Annotated[str, component("ProblemType")]


class Body(BaseModel):
    """A request body: exactly these fields, exactly these types."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CancelOrder(Body):
    """POST /orders/{order_id}/cancel, which says all in its path."""


class RegisterCustomer(Body):
    """POST /customers."""

    username: Username


class Deposit(Body):
    """POST /customers/{customer_id}/deposits."""

    amount: Amount


class CreateProduct(Body):
    """POST /products."""

    name: ProductName
    description: Description = ""
    base_price: Amount
    stock: Whole = Field(strict=True, ge=0, le=MAX_STOCK)


class ReceiveStock(Body):
    """POST /products/{product_id}/receipts."""

    quantity: Whole = Field(strict=True, ge=1, le=MAX_STOCK)


class ChangePrice(Body):
    """PATCH /products/{product_id}."""

    base_price: Amount


class PlaceOrder(Body):
    """POST /orders."""

    customer_id: Id
    product_id: Id
    quantity: Whole = Field(1, strict=True, ge=1, le=MAX_QUANTITY)


class PlaceOrders(Body):
    """POST /orders/batch."""

    orders: list[PlaceOrder] = Field(strict=True, min_length=1, max_length=MAX_BATCH)
    atomic: bool = Field(False, strict=True)


class Customer(Struct, frozen=True):
    """A customer with the wallet; the username is `erased` once that was asked for."""

    customer_id: UUID
    username: str
    wallet_balance: Money
    position: int


class Product(Struct, frozen=True):
    """A product with what a unit costs now."""

    product_id: UUID
    name: str
    description: str
    base_price: Money
    current_price: Money
    stock: int
    position: int


class Order(Struct, frozen=True):
    """An order; while it is PENDING it is in the inbox, and will be decided.

    `price_paid` is the total, none until it is completed.
    """

    order_id: UUID
    product_id: UUID
    customer_id: UUID
    quantity: int
    status: StatusName
    created_at: Moment
    updated_at: Moment
    unit_price: Money | None = None
    price_paid: Money | None = None
    failure_reason: FailureReason | None = None
    position: int | None = None


class PlacedOrders(Struct, frozen=True):
    """The orders of a batch, in its order; those that are not decided yet are PENDING."""

    orders: list[Order]


class AcceptedCancel(Struct, frozen=True):
    """A cancel that is in the inbox, and will be decided."""

    order_id: UUID
    message: str


class AcceptedCustomer(Struct, frozen=True):
    """Something about a customer that is in the inbox, and will be decided."""

    customer_id: UUID
    message: str


class AcceptedProduct(Struct, frozen=True):
    """Something about a product that is in the inbox, and will be decided."""

    product_id: UUID
    message: str


class ProductList(Struct, frozen=True):
    """A page of the catalogue; `next_after` is the `after` of the next page."""

    items: list[Product]
    next_after: UUID | None


class OrderList(Struct, frozen=True):
    """A page of orders, newest first; `next_after` is the `after` of the next page."""

    items: list[Order]
    next_after: int | None


class DryRun(Struct, frozen=True):
    """What would be decided of an order if it were the next event after `position`."""

    product_id: UUID
    customer_id: UUID
    quantity: int
    status: Annotated[str, Meta(extra_json_schema={"enum": ["COMPLETED", "FAILED"]})]
    unit_price: Money | None
    total: Money | None
    failure_reason: FailureReason | None
    position: int


class UnitTotal(Struct, frozen=True):
    """What was debited and credited in all; `balance` is above 0 on the debit side."""

    unit: UnitName
    debit: Decimal
    credit: Decimal
    balance: Decimal


class Account(Struct, frozen=True):
    """What one account was debited and credited; `balance` is above 0 on the debit side."""

    account: str
    unit: UnitName
    debit: Decimal
    credit: Decimal
    balance: Decimal


class TrialBalance(Struct, frozen=True):
    """Every account of the journal; unless it was damaged, the balance of each total is 0."""

    accounts: list[Account]
    totals: list[UnitTotal]
    balanced: bool
    position: int


class Liveness(Struct, frozen=True):
    """The process answers."""

    status: str = "live"


class Readiness(Struct, frozen=True):
    """What the process needs, part by part; `status` is ready when all of it is there.

    Unless `keys_required`, it takes requests from whoever reaches it. `ledger` is false while
    another ledger works on the same virtual host, or this one lost its end; `problem` says which,
    and what to do.
    """

    status: str
    inbox: bool
    announcements: bool
    views: bool
    position: int | None
    pending_orders: int
    keys_required: bool = False
    ledger: bool = True
    problem: str | None = None


class ProblemExplanation(Struct, frozen=True):
    """What a problem's `type` leads to."""

    type: ProblemTypeName
    title: str
    status: int
    remedy: str


ACCEPTED: Final = "accepted: it will be decided; follow Location"
DECIDED: Final = "decided, when the same Idempotency-Key came before; see Location"


def customer(row: WalletRow | WalletAsOf) -> Customer:
    """The customer of a row."""
    return Customer(row.customer_id, row.username, money(row.balance_minor), row.position)


def product(row: StockRow | ProductAsOf) -> Product:
    """The product of a row."""
    return Product(
        row.product_id,
        row.name,
        row.description,
        money(row.base_price_minor),
        money(row.current_price_minor),
        row.stock,
        row.position,
    )


def order(row: OrderRow) -> Order:
    """The order of a row."""
    return Order(
        row.order_id,
        row.product_id,
        row.customer_id,
        row.quantity,
        row.status,
        format_rfc3339(row.created_at),
        format_rfc3339(row.updated_at),
        None if row.unit_price_minor is None else money(row.unit_price_minor),
        None if row.total_minor is None else money(row.total_minor),
        row.failure_reason,
        row.position,
    )


def pending_order(order_id: UUID, placed: OrderPlaced, created_at_us: int) -> Order:
    """The order that was accepted and is not decided yet."""
    created_at = format_us(created_at_us)
    return Order(
        order_id,
        placed.product_id,
        placed.customer_id,
        placed.quantity,
        Status.PENDING.value,
        created_at,
        created_at,
    )


def trial_balance(balances: JournalBalance) -> TrialBalance:
    """The trial balance of the journal."""
    units = get_args(Unit)
    return TrialBalance(
        [
            Account(account, *_numbers(unit, sums))
            for unit in units
            for account, sums in balances.of(unit).items()
        ],
        [UnitTotal(*_numbers(unit, balances.total(unit))) for unit in units],
        balances.balanced,
        balances.position,
    )


def _numbers(unit: Unit, sums: Sums) -> tuple[UnitName, Decimal, Decimal, Decimal]:
    if unit == "minor":
        return "money", money(sums.debit), money(sums.credit), money(sums.balance)
    return "units", Decimal(sums.debit), Decimal(sums.credit), Decimal(sums.balance)
