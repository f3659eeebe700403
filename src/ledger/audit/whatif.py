"""What if: all submitted events decided again by other rules, and both outcomes counted.

The fold holds customers and products, and of the orders only those that come up again later.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from uuid import UUID

from msgspec import Struct, field, structs

from ledger.core.decider import Fold
from ledger.core.events import (
    AnyPayload,
    Conditional,
    OrderCancelled,
    OrderCompleted,
    OrderFailed,
    OrderPlaced,
    ProductListed,
    Reason,
    SubmissionRefused,
)
from ledger.core.pricing import Rules
from ledger.eventlog.codec import payload_of
from ledger.eventlog.decisions import by_atomic_batch, decide_batch, to_decisions
from ledger.eventlog.records import Record, Submitted

Counted = OrderCompleted | OrderCancelled | OrderFailed
REFUSED_PRECONDITION: Final = SubmissionRefused(Reason.PRECONDITION_FAILED)


class Tally(Struct):
    """The outcomes of orders: counts, units that stayed sold, and money that stayed paid."""

    completed: int = 0
    cancelled: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    units: int = 0
    revenue_minor: int = 0

    def count(self, event: Counted) -> None:
        """Count a decided event of an order."""
        match event:
            case OrderCompleted():
                self.completed += 1
                self.units += event.quantity
                self.revenue_minor += event.total_minor
            case OrderCancelled():
                self.cancelled += 1
                self.units -= event.quantity
                self.revenue_minor -= event.refund_minor
            case OrderFailed():
                self.failed[event.reason] += 1


# By product; None stands for the products that nobody listed.
Tallies = dict[UUID | None, Tally]


class ProductTallies(Struct, frozen=True):
    """One product's orders as they were decided and as they would be; None for those not listed."""

    product_id: UUID | None
    name: str | None
    decided: Tally
    whatif: Tally

    @property
    def gain_minor(self) -> int:
        """By how much revenue would be higher, in minor units."""
        return self.whatif.revenue_minor - self.decided.revenue_minor


class WhatIf:
    """Decides the submitted events by other rules, page after page of whole atomic batches.

    `decided` and `whatif` count the outcomes of all orders.
    """

    def __init__(self, rules: Rules) -> None:
        self._fold = Fold(rules=rules)
        self._awaited: dict[UUID, int] = {}
        self._names: dict[UUID | None, str] = {}
        self.decided, self.whatif = Tally(), Tally()
        self._decided: Tallies = {}
        self._whatif: Tallies = {}

    def decide(self, records: Sequence[Record], later: Mapping[bytes, int]) -> None:
        """Decide the records that come next.

        `later` has the last position of those orders placed in them that come up again after them.
        Raises VerificationFailed for what can't be read.
        """
        for batch in by_atomic_batch(to_decisions(records)):
            decision, event = batch[0]
            events = [event for _, event in batch]
            if isinstance(event.payload, Conditional):
                # A client named what it had seen in the ledger as it was: whether that had changed
                # since was decided there, and can't be asked here, where other orders took effect.
                if REFUSED_PRECONDITION in map(payload_of, decision.decided):
                    continue
                payload = structs.replace(event.payload, expected_position=None)
                events = [structs.replace(event, payload=payload)]
            verdicts = decide_batch(self._fold, events, decision.cause.position)
            for (decision, event), verdict in zip(batch, verdicts, strict=True):
                if isinstance(event.payload, ProductListed) and (
                    event.stream_id in self._fold.products
                ):
                    self._names.setdefault(event.stream_id, event.payload.name)
                self._count(self.whatif, self._whatif, event, verdict)
                self._count(self.decided, self._decided, event, map(payload_of, decision.decided))
        # Orders that come up again are kept, and no others: they would fill the memory.
        self._awaited |= {UUID(bytes=stream_id): last for stream_id, last in later.items()}
        self._awaited = {
            key: last for key, last in self._awaited.items() if last > records[-1].position
        }
        orders = self._fold.orders
        self._fold.orders = {key: orders[key] for key in self._awaited if key in orders}

    def _count(
        self, total: Tally, tallies: Tallies, event: Submitted, payloads: Iterable[AnyPayload]
    ) -> None:
        for payload in payloads:
            if isinstance(payload, Counted):
                # A failure names no product: its order does.
                named = event.payload if isinstance(event.payload, OrderPlaced) else payload
                product_id = getattr(named, "product_id", None)
                listed = product_id if product_id in self._names else None
                tallies.setdefault(listed, Tally()).count(payload)
                total.count(payload)

    def products(self) -> list[ProductTallies]:
        """Products with at least one decided order, largest revenue change first."""
        products = [
            ProductTallies(
                key,
                self._names.get(key),
                self._decided.get(key, Tally()),
                self._whatif.get(key, Tally()),
            )
            for key in self._decided.keys() | self._whatif.keys()
        ]
        return sorted(products, key=lambda p: (-abs(p.gain_minor), str(p.product_id)))
