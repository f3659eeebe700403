"""What if: what was submitted decided again by other rules, and counted beside what was decided.

The fold holds customers and products, and of the orders only those that more is asked of later.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from msgspec import Struct, field

from ledger.core.events import (
    AnyPayload,
    OrderCancelled,
    OrderCompleted,
    OrderFailed,
    OrderPlaced,
    ProductListed,
)
from ledger.core.fold import Fold
from ledger.core.rules import Rules
from ledger.eventlog.codec import payload_of
from ledger.eventlog.decisions import Submission, decide, runs
from ledger.eventlog.records import Record

Counted = OrderCompleted | OrderCancelled | OrderFailed


class Tally(Struct):
    """What came of orders: counts, units that stayed sold, and money that stayed paid for them."""

    completed: int = 0
    cancelled: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    units: int = 0
    revenue_minor: int = 0

    def count(self, event: Counted) -> None:
        """Count what was decided of an order."""
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

    def add(self, other: "Tally") -> None:
        """Count what another one has counted."""
        self.completed += other.completed
        self.cancelled += other.cancelled
        self.failed.update(other.failed)
        self.units += other.units
        self.revenue_minor += other.revenue_minor


Tallies = dict[UUID | None, Tally]
"""By product; None stands for those that nobody listed."""


class Product(Struct, frozen=True):
    """What came of one product's orders, and what would have; without id: of those not listed."""

    product_id: UUID | None
    name: str | None
    decided: Tally
    whatif: Tally

    @property
    def gain_minor(self) -> int:
        """By how much revenue would be higher."""
        return self.whatif.revenue_minor - self.decided.revenue_minor


class WhatIf:
    """Decides the records' submissions by other rules, page after page of whole runs."""

    def __init__(self, rules: Rules) -> None:
        self._fold = Fold(rules=rules)
        self._wanted: dict[UUID, int] = {}
        self._names: dict[UUID | None, str] = {}
        self._decided: Tallies = {}
        self._supposed: Tallies = {}

    def take(self, records: Sequence[Record], later: Mapping[bytes, int]) -> None:
        """Decide the records that come next.

        `later` has the last position of those orders placed in them that come up again after them.
        Raises VerificationFailed for what can't be read.
        """
        for run in runs(records):
            for submission, supposed in zip(run, decide(self._fold, run), strict=True):
                self._list(submission)
                self._count(self._supposed, submission, supposed)
                self._count(self._decided, submission, map(payload_of, submission.decided))
        self._forget(records[-1].position, later)

    def _list(self, submission: Submission) -> None:
        payload, product_id = submission.payload, submission.stream_id
        if isinstance(payload, ProductListed) and product_id in self._fold.products:
            self._names.setdefault(product_id, payload.name)

    def _count(
        self, tallies: Tallies, submission: Submission, events: Iterable[AnyPayload]
    ) -> None:
        for event in events:
            if not isinstance(event, Counted):
                continue
            of = submission.payload if isinstance(submission.payload, OrderPlaced) else event
            product_id = getattr(of, "product_id", None)
            known = product_id if product_id in self._names else None
            tallies.setdefault(known, Tally()).count(event)

    def _forget(self, position: int, later: Mapping[bytes, int]) -> None:
        """Keep the orders that come up again after the position, and no others."""
        self._wanted |= {UUID(bytes=stream_id): last for stream_id, last in later.items()}
        self._wanted = {key: last for key, last in self._wanted.items() if last > position}
        orders = self._fold.orders
        self._fold.orders = {key: orders[key] for key in self._wanted if key in orders}

    def products(self) -> list[Product]:
        """All of whose orders something came, those first of which most would have changed."""
        made = [
            Product(
                key,
                self._names.get(key),
                self._decided.get(key, Tally()),
                self._supposed.get(key, Tally()),
            )
            for key in self._decided.keys() | self._supposed.keys()
        ]
        return sorted(made, key=lambda each: (-abs(each.gain_minor), str(each.product_id)))


def total(tallies: Iterable[Tally]) -> Tally:
    """All of them together."""
    whole = Tally()
    for tally in tallies:
        whole.add(tally)
    return whole
