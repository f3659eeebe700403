"""The fold: every customer and product at one position, and the orders that are loaded.

Its memory is bounded by customers and products. Orders come and go: whoever folds a batch loads the
orders that it touches and clears them afterwards.
"""

from collections import ChainMap
from collections.abc import MutableMapping, Sequence
from typing import Final
from uuid import UUID

from ledger.core.decider import CustomerState, OrderState, ProductState, State, decide, evolve
from ledger.core.events import (
    AnyPayload,
    DecidedPayload,
    OrderCancelled,
    OrderCompleted,
    OrderFailed,
    OrderPlaced,
    Reason,
    SubmissionRefused,
    SubmittedPayload,
)
from ledger.core.pricing import CURRENT_RULES, Rules

_WITH_CUSTOMER_AND_PRODUCT: Final = (OrderPlaced, OrderCompleted, OrderCancelled)


class Fold:
    """The state of all customers and products, and of the orders loaded for the batch at hand.

    It is the only mutable object of the core. It decides by `rules`; to apply what was decided
    before needs none.
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
