"""The rules: `decide` says what follows from a submitted event, `evolve` applies any event.

The state that they see is small frozen records; `Fold` has all of it. Both are pure and total.
Refusals come first, in a fixed precedence; after the last of them nothing can fail any more.
"""

from collections import ChainMap
from collections.abc import MutableMapping, Sequence
from enum import StrEnum
from typing import Final, assert_never
from uuid import UUID

from msgspec import Struct

from ledger.core.events import (
    MAX_BALANCE_MINOR,
    MAX_STOCK,
    AnyPayload,
    CustomerErased,
    CustomerRegistered,
    DecidedPayload,
    OrderCancelled,
    OrderCancelRefused,
    OrderCancelRequested,
    OrderCompleted,
    OrderFailed,
    OrderPlaced,
    PriceChanged,
    ProductListed,
    Reason,
    StockReceived,
    SubmissionRefused,
    SubmittedPayload,
    WalletCredited,
)
from ledger.core.pricing import CURRENT_RULES, Rules, unit_price_minor


class InvariantViolated(Exception):
    """The history breaks an invariant: it was changed, or decided by other rules."""


class Status(StrEnum):
    """The status of an order."""

    PENDING = "PENDING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class CustomerState(Struct, frozen=True, gc=False):
    """A customer's wallet."""

    balance_minor: int


class ProductState(Struct, frozen=True, gc=False):
    """A product's stock and the two numbers that price it."""

    base_price_minor: int
    stock: int
    initial_stock: int


class OrderState(Struct, frozen=True, gc=False):
    """An order; `total_minor` is what a cancel pays back."""

    customer_id: UUID
    product_id: UUID
    quantity: int
    status: Status = Status.PENDING
    total_minor: int = 0


Subject = CustomerState | ProductState | OrderState | None


class State(Struct, frozen=True, gc=False):
    """All that one event can see and change.

    `subject` is what the event's own stream holds; `customer` and `product` are those that an
    order names.
    """

    subject: Subject = None
    customer: CustomerState | None = None
    product: ProductState | None = None


Entry = (
    CustomerRegistered
    | CustomerErased
    | WalletCredited
    | ProductListed
    | StockReceived
    | PriceChanged
)


def decide(
    state: State, event: SubmittedPayload, rules: Rules = CURRENT_RULES
) -> tuple[DecidedPayload, ...]:
    """Return the events decided from `event`; none if it simply takes effect."""
    match event:
        case OrderPlaced():
            return (_decide_order(state, event, rules),)
        case OrderCancelRequested():
            return (_decide_cancel(state),)
        case _:
            reason = _refusal(state.subject, event)
            return (SubmissionRefused(reason),) if reason else ()


def _refusal(subject: Subject, event: Entry) -> Reason | None:
    match event:
        case CustomerRegistered():
            return Reason.DUPLICATE_CUSTOMER if subject else None
        case ProductListed():
            return Reason.DUPLICATE_PRODUCT if subject else None
        case CustomerErased():
            return None if isinstance(subject, CustomerState) else Reason.UNKNOWN_CUSTOMER
        case WalletCredited():
            if not isinstance(subject, CustomerState):
                return Reason.UNKNOWN_CUSTOMER
            over = subject.balance_minor + event.amount_minor > MAX_BALANCE_MINOR
            return Reason.BALANCE_LIMIT if over else None
        case StockReceived():
            if not isinstance(subject, ProductState):
                return Reason.UNKNOWN_PRODUCT
            return Reason.STOCK_LIMIT if subject.stock + event.quantity > MAX_STOCK else None
        case PriceChanged():
            return None if isinstance(subject, ProductState) else Reason.UNKNOWN_PRODUCT
    assert_never(event)


def _decide_order(state: State, order: OrderPlaced, rules: Rules) -> DecidedPayload:
    customer, product = state.customer, state.product
    if state.subject:
        return SubmissionRefused(Reason.DUPLICATE_ORDER)
    if product is None:
        return OrderFailed(Reason.UNKNOWN_PRODUCT)
    if customer is None:
        return OrderFailed(Reason.UNKNOWN_CUSTOMER)
    if product.stock < order.quantity:
        return OrderFailed(Reason.INSUFFICIENT_STOCK)
    price_minor = unit_price_minor(
        product.base_price_minor, product.stock, product.initial_stock, rules
    )
    total_minor = price_minor * order.quantity
    if customer.balance_minor < total_minor:
        return OrderFailed(Reason.INSUFFICIENT_BALANCE)
    return OrderCompleted(
        order.customer_id, order.product_id, order.quantity, price_minor, total_minor
    )


def _decide_cancel(state: State) -> DecidedPayload:
    order, customer, product = state.subject, state.customer, state.product
    if not isinstance(order, OrderState):
        return SubmissionRefused(Reason.UNKNOWN_ORDER)
    if order.status is Status.CANCELLED:
        return OrderCancelRefused(Reason.ALREADY_CANCELLED)
    if order.status is not Status.COMPLETED or customer is None or product is None:
        return OrderCancelRefused(Reason.NOT_COMPLETED)
    if customer.balance_minor + order.total_minor > MAX_BALANCE_MINOR:
        return OrderCancelRefused(Reason.BALANCE_LIMIT)
    if product.stock + order.quantity > MAX_STOCK:
        return OrderCancelRefused(Reason.STOCK_LIMIT)
    return OrderCancelled(order.customer_id, order.product_id, order.quantity, order.total_minor)


def evolve(state: State, event: AnyPayload) -> State:
    """The state after an event that took effect. A refused submission must not be passed in.

    Raises InvariantViolated for an event that no decision can have led to.
    """
    subject = state.subject
    match event:
        case OrderPlaced() | OrderFailed():
            order = subject if isinstance(subject, OrderState) else None
            return State(evolve_order(order, event), state.customer, state.product)
        case OrderCompleted():
            return _transfer(state, event, -event.total_minor, -event.quantity)
        case CustomerRegistered():
            return State(CustomerState(event.opening_balance_minor))
        case ProductListed():
            return State(
                ProductState(event.base_price_minor, event.initial_stock, event.initial_stock)
            )
        case WalletCredited():
            if not isinstance(subject, CustomerState):
                raise InvariantViolated("a wallet was credited that no customer has")
            return State(CustomerState(subject.balance_minor + event.amount_minor))
        case StockReceived() | PriceChanged():
            if not isinstance(subject, ProductState):
                raise InvariantViolated("stock or price of a product changed that was never listed")
            if isinstance(event, PriceChanged):
                price_minor, stock = event.base_price_minor, subject.stock
                return State(ProductState(price_minor, stock, subject.initial_stock))
            stock = subject.stock + event.quantity
            return State(ProductState(subject.base_price_minor, stock, stock))
        case OrderCancelled():
            return _transfer(state, event, event.refund_minor, event.quantity)
        case CustomerErased() | OrderCancelRequested() | OrderCancelRefused() | SubmissionRefused():
            return state
    assert_never(event)


def evolve_order(order: OrderState | None, event: AnyPayload) -> OrderState | None:
    """Apply an event that took effect to an order alone, without its customer and product."""
    match event:
        case OrderPlaced():
            return OrderState(event.customer_id, event.product_id, event.quantity)
        case OrderCompleted():
            status, total_minor = Status.COMPLETED, event.total_minor
        case OrderCancelled():
            status, total_minor = Status.CANCELLED, event.refund_minor
        case OrderFailed():
            if order is None:
                raise InvariantViolated("an order failed that was never placed")
            return OrderState(order.customer_id, order.product_id, order.quantity, Status.FAILED)
        case (
            CustomerRegistered()
            | CustomerErased()
            | WalletCredited()
            | ProductListed()
            | StockReceived()
            | PriceChanged()
            | OrderCancelRequested()
            | OrderCancelRefused()
            | SubmissionRefused()
        ):
            return order
        case _:
            assert_never(event)
    return OrderState(event.customer_id, event.product_id, event.quantity, status, total_minor)


def _transfer(
    state: State, event: OrderCompleted | OrderCancelled, money_minor: int, units: int
) -> State:
    """Return the order in its new status, with money and units moved: both or neither.

    Raises InvariantViolated without a customer or a product.
    """
    customer, product = state.customer, state.product
    if customer is None or product is None:
        raise InvariantViolated("an order moved money or stock that nobody has")
    return State(
        evolve_order(None, event),
        customer_with(customer.balance_minor + money_minor),
        product_with(product, product.stock + units),
    )


def customer_with(balance_minor: int) -> CustomerState:
    """A customer with this balance; raises InvariantViolated below zero."""
    if balance_minor < 0:
        raise InvariantViolated(f"a wallet would hold {balance_minor}")
    return CustomerState(balance_minor)


def product_with(product: ProductState, stock: int) -> ProductState:
    """The product with this stock; raises InvariantViolated below zero."""
    if stock < 0:
        raise InvariantViolated(f"a stock would be {stock}")
    return ProductState(product.base_price_minor, stock, product.initial_stock)


_WITH_CUSTOMER_AND_PRODUCT: Final = (OrderPlaced, OrderCompleted, OrderCancelled)


class Fold:
    """The state of all customers and products, and of the orders loaded for the batch at hand.

    It is the only mutable object of the core. It decides by `rules`; to apply what was decided
    before needs none. Its memory is bounded by customers and products: whoever folds a batch loads
    the orders that it touches, and clears them afterwards.
    """

    __slots__ = ("customers", "orders", "products", "rules")

    def __init__(
        self,
        customers: MutableMapping[UUID, CustomerState] | None = None,
        products: MutableMapping[UUID, ProductState] | None = None,
        rules: Rules = CURRENT_RULES,
    ) -> None:
        self.customers = {} if customers is None else customers
        self.products = {} if products is None else products
        self.orders: MutableMapping[UUID, OrderState] = {}
        self.rules = rules

    def decide_and_apply(
        self, stream_id: UUID, event: SubmittedPayload
    ) -> tuple[DecidedPayload, ...]:
        """Decide a submitted event, apply it and what was decided, and return the latter."""
        state = self._state(stream_id, event)
        decided = decide(state, event, self.rules)
        if not is_refusal(decided):
            state = evolve(state, event)
            for payload in decided:
                state = evolve(state, payload)
            self._keep(stream_id, state)
        return decided

    def decide_and_apply_batch(
        self, orders: Sequence[tuple[UUID, OrderPlaced]]
    ) -> list[tuple[DecidedPayload, ...]]:
        """Decide orders all or none: where one can't be completed, none is.

        Each that could not keeps its own reason; the others fail for BATCH_FAILED.
        """
        trial = Fold(ChainMap({}, self.customers), ChainMap({}, self.products), self.rules)
        trial.orders = ChainMap({}, self.orders)
        tried = [trial.decide_and_apply(*order) for order in orders]
        if all(isinstance(payload, OrderCompleted) for (payload,) in tried):
            return [self.decide_and_apply(*order) for order in orders]
        verdicts = [
            OrderFailed(Reason.BATCH_FAILED) if isinstance(payload, OrderCompleted) else payload
            for (payload,) in tried
        ]
        for (stream_id, placed), verdict in zip(orders, verdicts, strict=True):
            if isinstance(verdict, OrderFailed):
                self.apply(stream_id, placed)
                self.apply(stream_id, verdict)
        return [(verdict,) for verdict in verdicts]

    def apply(self, stream_id: UUID, event: AnyPayload) -> None:
        """Apply a recorded event that took effect; a refused submission must not be passed in."""
        self._keep(stream_id, evolve(self._state(stream_id, event), event))

    def _state(self, stream_id: UUID, event: AnyPayload) -> State:
        order = self.orders.get(stream_id)
        subject = order or self.customers.get(stream_id) or self.products.get(stream_id)
        named = event if isinstance(event, _WITH_CUSTOMER_AND_PRODUCT) else order
        if named is None:
            return State(subject)
        return State(
            subject, self.customers.get(named.customer_id), self.products.get(named.product_id)
        )

    def _keep(self, stream_id: UUID, state: State) -> None:
        match state.subject:
            case OrderState() as order:
                self.orders[stream_id] = order
                if state.customer:
                    self.customers[order.customer_id] = state.customer
                if state.product:
                    self.products[order.product_id] = state.product
            case CustomerState() as customer:
                self.customers[stream_id] = customer
            case ProductState() as product:
                self.products[stream_id] = product


def is_refusal(decided: tuple[DecidedPayload, ...]) -> bool:
    """True if the submission that these events were decided of has no effect."""
    return bool(decided) and isinstance(decided[0], SubmissionRefused)
