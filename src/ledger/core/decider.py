"""The rules: `decide` says what follows from a submitted event, `evolve` applies any event.

The state that they see is small frozen records; `Fold` has all of it. Both are pure and total.
Refusals come first, in a fixed precedence; after the last of them nothing can fail any more.
"""

from collections import ChainMap
from collections.abc import MutableMapping, Sequence
from enum import StrEnum
from typing import Final, assert_never
from uuid import UUID

from msgspec import UNSET, Struct

from ledger.core.events import (
    MAX_BALANCE_MINOR,
    MAX_STOCK,
    AnyPayload,
    Conditional,
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
    Recorded,
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
    """A customer's wallet; `position` is that of the event that last changed the customer."""

    balance_minor: int
    position: int = 0


class ProductState(Struct, frozen=True, gc=False):
    """A product's stock and the two numbers that price it.

    `position` is that of the event that last changed any of them.
    """

    base_price_minor: int
    stock: int
    initial_stock: int
    position: int = 0


class OrderState(Struct, frozen=True, gc=False):
    """An order; `total_minor` is what a cancel pays back.

    `position` is that of the event that last changed the order.
    """

    customer_id: UUID
    product_id: UUID
    quantity: int
    status: Status = Status.PENDING
    total_minor: int = 0
    position: int = 0


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
            if event.history is not UNSET and not state.subject:
                return ()  # another system has decided it
            return (_decide_order(state, event, rules),)
        case OrderCancelRequested():
            return (_decide_cancel(state, event),)
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
            if _is_stale(subject, event):
                return Reason.PRECONDITION_FAILED
            over = subject.balance_minor + event.amount_minor > MAX_BALANCE_MINOR
            return Reason.BALANCE_LIMIT if over else None
        case StockReceived():
            if not isinstance(subject, ProductState):
                return Reason.UNKNOWN_PRODUCT
            if _is_stale(subject, event):
                return Reason.PRECONDITION_FAILED
            return Reason.STOCK_LIMIT if subject.stock + event.quantity > MAX_STOCK else None
        case PriceChanged():
            if not isinstance(subject, ProductState):
                return Reason.UNKNOWN_PRODUCT
            return Reason.PRECONDITION_FAILED if _is_stale(subject, event) else None
    assert_never(event)


def _is_stale(subject: CustomerState | ProductState | OrderState, event: Conditional) -> bool:
    return event.expected_position not in (None, subject.position)


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


def _decide_cancel(state: State, event: OrderCancelRequested) -> DecidedPayload:
    order, customer, product = state.subject, state.customer, state.product
    if not isinstance(order, OrderState):
        return SubmissionRefused(Reason.UNKNOWN_ORDER)
    if order.status is Status.CANCELLED:
        return OrderCancelRefused(Reason.ALREADY_CANCELLED)
    if order.status is Status.COMPLETED and not order.total_minor:
        # Another system completed it: how much it took is not known here.
        return OrderCancelRefused(Reason.IMPORTED)
    if order.status is not Status.COMPLETED or customer is None or product is None:
        return OrderCancelRefused(Reason.NOT_COMPLETED)
    if _is_stale(order, event):
        return SubmissionRefused(Reason.PRECONDITION_FAILED)
    if customer.balance_minor + order.total_minor > MAX_BALANCE_MINOR:
        return OrderCancelRefused(Reason.BALANCE_LIMIT)
    if product.stock + order.quantity > MAX_STOCK:
        return OrderCancelRefused(Reason.STOCK_LIMIT)
    return OrderCancelled(order.customer_id, order.product_id, order.quantity, order.total_minor)


def evolve(state: State, event: AnyPayload, position: int) -> State:
    """The state after an event at a position, which took effect.

    A refused submission must not be passed in. Raises InvariantViolated for an event that no
    decision can have led to.
    """
    subject = state.subject
    match event:
        case OrderPlaced() | OrderFailed():
            order = subject if isinstance(subject, OrderState) else None
            return State(evolve_order(order, event, position), state.customer, state.product)
        case OrderCompleted():
            return _transfer(state, event, position, -event.total_minor, -event.quantity)
        case CustomerRegistered():
            return State(CustomerState(event.opening_balance_minor, position))
        case ProductListed():
            price_minor, stock = event.base_price_minor, event.opening_stock
            return State(ProductState(price_minor, stock, event.initial_stock, position))
        case WalletCredited() | CustomerErased():
            if not isinstance(subject, CustomerState):
                raise InvariantViolated("a customer was credited or erased that nobody registered")
            credit_minor = event.amount_minor if isinstance(event, WalletCredited) else 0
            return State(CustomerState(subject.balance_minor + credit_minor, position))
        case StockReceived() | PriceChanged():
            if not isinstance(subject, ProductState):
                raise InvariantViolated("stock or price of a product changed that was never listed")
            if isinstance(event, PriceChanged):
                price_minor, stock = event.base_price_minor, subject.stock
                return State(ProductState(price_minor, stock, subject.initial_stock, position))
            stock = subject.stock + event.quantity
            return State(ProductState(subject.base_price_minor, stock, stock, position))
        case OrderCancelled():
            return _transfer(state, event, position, event.refund_minor, event.quantity)
        case OrderCancelRequested() | OrderCancelRefused() | SubmissionRefused():
            return state
    assert_never(event)


def evolve_order(order: OrderState | None, event: AnyPayload, position: int) -> OrderState | None:
    """Apply an event that took effect to an order alone, without its customer and product."""
    match event:
        case OrderPlaced():
            status, total_minor = Status.PENDING, 0
            if event.history is not UNSET:
                status = Status(event.history.status)
        case OrderCompleted():
            status, total_minor = Status.COMPLETED, event.total_minor
        case OrderCancelled():
            status, total_minor = Status.CANCELLED, event.refund_minor
        case OrderFailed():
            if order is None:
                raise InvariantViolated("an order failed that was never placed")
            return OrderState(
                order.customer_id, order.product_id, order.quantity, Status.FAILED, 0, position
            )
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
    return OrderState(
        event.customer_id, event.product_id, event.quantity, status, total_minor, position
    )


def _transfer(
    state: State,
    event: OrderCompleted | OrderCancelled,
    position: int,
    money_minor: int,
    units: int,
) -> State:
    """Return the order in its new status, with money and units moved: both or neither.

    Raises InvariantViolated without a customer or a product.
    """
    customer, product = state.customer, state.product
    if customer is None or product is None:
        raise InvariantViolated("an order moved money or stock that nobody has")
    return State(
        evolve_order(None, event, position),
        customer_with(customer.balance_minor + money_minor, position),
        product_with(product, product.stock + units, position),
    )


def customer_with(balance_minor: int, position: int) -> CustomerState:
    """A customer with this balance; raises InvariantViolated below zero."""
    if balance_minor < 0:
        raise InvariantViolated(f"a wallet would hold {balance_minor}")
    return CustomerState(balance_minor, position)


def product_with(product: ProductState, stock: int, position: int) -> ProductState:
    """The product with this stock; raises InvariantViolated below zero."""
    if stock < 0:
        raise InvariantViolated(f"a stock would be {stock}")
    return ProductState(product.base_price_minor, stock, product.initial_stock, position)


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
        self, stream_id: UUID, event: SubmittedPayload, position: int = 0
    ) -> tuple[DecidedPayload, ...]:
        """Decide a submitted event, apply it and what was decided, and return the latter.

        `position` is that of the submitted event; what is decided of it stands right after it.
        """
        state = self._state(stream_id, event)
        decided = decide(state, event, self.rules)
        if not is_refusal(decided):
            state = evolve(state, event, position)
            for payload in decided:
                position += 1
                state = evolve(state, payload, position)
            self._keep(stream_id, state)
        return decided

    def decide_and_apply_batch(
        self, orders: Sequence[tuple[UUID, OrderPlaced]], position: int = 0
    ) -> list[tuple[DecidedPayload, ...]]:
        """Decide orders all or none: where one can't be completed, none is.

        `position` is that of the first; each order and its decision take two. Each that could not
        keeps its own reason; the others fail for BATCH_FAILED.
        """
        trial = Fold(ChainMap({}, self.customers), ChainMap({}, self.products), self.rules)
        trial.orders = ChainMap({}, self.orders)
        tried = [trial.decide_and_apply(*order) for order in orders]
        if all(isinstance(payload, OrderCompleted) for (payload,) in tried):
            return [
                self.decide_and_apply(*order, position + 2 * i) for i, order in enumerate(orders)
            ]
        verdicts = [
            OrderFailed(Reason.BATCH_FAILED) if isinstance(payload, OrderCompleted) else payload
            for (payload,) in tried
        ]
        for (stream_id, placed), verdict in zip(orders, verdicts, strict=True):
            if isinstance(verdict, OrderFailed):
                self._apply(stream_id, placed, position)
                self._apply(stream_id, verdict, position + 1)
            position += 2
        return [(verdict,) for verdict in verdicts]

    def apply(self, event: Recorded) -> None:
        """Apply a recorded event that took effect; a refused submission must not be passed in."""
        self._apply(event.stream_id, event.payload, event.position)

    def _apply(self, stream_id: UUID, event: AnyPayload, position: int) -> None:
        self._keep(stream_id, evolve(self._state(stream_id, event), event, position))

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
