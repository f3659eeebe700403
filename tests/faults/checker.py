"""Whether all that was promised was kept: the ledger held against what clients were told.

It reads the ledger, not the views; the views are held against the ledger. It needs nothing that
runs, so that it can be tried on ledgers with every kind of damage.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final
from uuid import UUID

from msgspec import to_builtins

from ledger.core.events import (
    AnyPayload,
    CustomerRegistered,
    OrderCancelled,
    OrderCompleted,
    ProductListed,
    StockReceived,
    WalletCredited,
)
from ledger.eventlog.codec import decode_recorded, origin_of
from ledger.eventlog.records import Record
from tests.faults.evidence import Evidence, HeadSeen
from tests.faults.history import Operation, Outcome
from tests.faults.shown_values import shown
from tests.ledger.naive_audit import audit

AT_POSITION: Final = re.compile(r"at position (\d+)")
MAX_SAID: Final = 20


def check(evidence: Evidence) -> list[str]:
    """What was broken, in words; nothing, if every promise was kept."""
    checks = (
        _seen_by_clients,
        _whole,
        _balanced,
        _answered,
        _sent_by_someone,
        _never_rewritten,
        _inbox_and_parking,
        shown,
    )
    return [violation for each in checks for violation in _said(each, evidence)]


def _said(check_: Callable[[Evidence], Iterator[str]], evidence: Evidence) -> Iterator[str]:
    """The first few violations: one mistake mostly shows in many places."""
    violations = check_(evidence)
    try:
        yield from islice(violations, MAX_SAID)
        if next(violations, None):
            yield "… and more of the same"
    except Exception as error:  # noqa: BLE001  # whatever can't be read is damage
        yield f"{check_.__name__.strip('_')} can't be checked: {type(error).__name__}: {error}"


def _seen_by_clients(evidence: Evidence) -> Iterator[str]:
    """What no client should ever see."""
    yield from evidence.history.violations


def _whole(evidence: Evidence) -> Iterator[str]:
    """Dense positions, the chain, versions, no event twice, every decision as it must be."""
    try:
        audit(evidence.records)
    except AssertionError as error:
        yield f"the ledger does not stand up to an audit: {error}"


def _balanced(evidence: Evidence) -> Iterator[str]:
    """At every position: no wallet and no stock below zero, no money and no unit made or lost."""
    books = Books()
    for event in evidence.events():
        for mistake in books.enter(event.stream_id, event.payload):
            yield f"position {event.position}: {mistake}"


class Books:
    """Money and units, kept apart from the fold."""

    def __init__(self) -> None:
        self.wallets = Counter[UUID]()
        self.stocks = Counter[UUID]()
        self.standing: dict[UUID, OrderCompleted] = {}

    def enter(self, stream_id: UUID, payload: AnyPayload) -> Iterator[str]:
        """Enter one event; what can't be right about it."""
        match payload:
            case CustomerRegistered():
                self.wallets[stream_id] += payload.opening_balance_minor
            case WalletCredited():
                self.wallets[stream_id] += payload.amount_minor
            case ProductListed():
                self.stocks[stream_id] += payload.opening_stock
            case StockReceived():
                self.stocks[stream_id] += payload.quantity
            case OrderCompleted():
                yield from self._complete(stream_id, payload)
            case OrderCancelled():
                yield from self._cancel(stream_id, payload)

    def _complete(self, order_id: UUID, order: OrderCompleted) -> Iterator[str]:
        if order_id in self.standing:
            yield f"order {order_id} is completed again"
        if order.total_minor != order.unit_price_minor * order.quantity:
            yield f"order {order_id} costs {order.total_minor}"
        self.standing[order_id] = order
        self.wallets[order.customer_id] -= order.total_minor
        self.stocks[order.product_id] -= order.quantity
        if self.wallets[order.customer_id] < 0:
            yield f"a wallet holds {self.wallets[order.customer_id]}"
        if self.stocks[order.product_id] < 0:
            yield f"a stock is {self.stocks[order.product_id]}"

    def _cancel(self, order_id: UUID, cancelled: OrderCancelled) -> Iterator[str]:
        order = self.standing.pop(order_id, None)
        if order is None:
            yield f"order {order_id} is cancelled, which does not stand"
        elif (cancelled.refund_minor, cancelled.quantity) != (order.total_minor, order.quantity):
            yield f"order {order_id} pays back {cancelled.refund_minor}, not {order.total_minor}"
        self.wallets[cancelled.customer_id] += cancelled.refund_minor
        self.stocks[cancelled.product_id] += cancelled.quantity


def _answered(evidence: Evidence) -> Iterator[str]:
    """What was accepted is there once, what failed is not, what is unknown at most once."""
    by_trace = _by_trace(evidence.records)
    for operation in evidence.history.operations.values():
        found = by_trace.get(operation.number, [])
        yield from _counted(operation, len(found))
        for record, expected, stream in zip(
            found, operation.events, _streams_of(operation), strict=False
        ):
            data = _plain(record, evidence.keys)
            if (record.type, data) != (expected.type, expected.data):
                yield f"{_name(operation)} is recorded as {record.type} {data} at {record.position}"
            if stream and UUID(bytes=record.stream_id) != UUID(stream):
                yield f"{_name(operation)} is recorded of another stream at {record.position}"
        yield from _told_where(operation, evidence.records)


def _counted(operation: Operation, found: int) -> Iterator[str]:
    asked = len(operation.events)
    allowed = {
        Outcome.OK: (asked,),
        Outcome.UNKNOWN: (0, asked),
        Outcome.FAILED: (0,),
    }[operation.outcome]
    if found not in allowed:
        yield f"{_name(operation)} left {found} events, not {' or '.join(map(str, allowed))}"


def _told_where(operation: Operation, records: Sequence[Record]) -> Iterator[str]:
    """A refusal that named its position stands there."""
    for attempt in operation.attempts:
        if attempt.outcome is Outcome.OK and (told := AT_POSITION.search(attempt.detail)):
            position = int(told[1])
            if position > len(records):
                yield f"{_name(operation)} was decided at {position}, where nothing is"
                continue
            cause = records[records[position - 1].cause_position - 1]
            if _trace_of(cause) != operation.number:
                yield f"{_name(operation)} was decided at {position}, where another one is"


def _sent_by_someone(evidence: Evidence) -> Iterator[str]:
    """Nothing is in the ledger that no client asked for."""
    for record in evidence.records:
        if record.cause_position == 0 and _trace_of(record) not in evidence.history.operations:
            yield f"nobody asked for {record.type} at position {record.position}"


def _never_rewritten(evidence: Evidence) -> Iterator[str]:
    """Head and epoch never fell, and what stood at a position stands there still."""
    before = HeadSeen(0, b"", 0)
    for head in evidence.heads:
        if head.position < before.position or head.epoch < before.epoch:
            yield f"the head fell from {before} to {head}"
        if head.position > len(evidence.records):
            yield f"the ledger ended at {head.position} once, now at {len(evidence.records)}"
        elif head.position and evidence.records[head.position - 1].hash != head.hash:
            yield f"position {head.position} was another one once"
        before = head


def _inbox_and_parking(evidence: Evidence) -> Iterator[str]:
    """Nothing waits any more, and parked is exactly what no one can read."""
    if evidence.waiting:
        yield f"{evidence.waiting} messages are left in the inbox"
    for body in set(evidence.parked) - evidence.planted:
        yield f"parked without reason: {body[:200]!r}"
    for body in evidence.planted - set(evidence.parked):
        yield f"not parked: {body[:200]!r}"


def _by_trace(records: Sequence[Record]) -> dict[int, list[Record]]:
    found: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        if record.cause_position == 0:
            found[_trace_of(record)].append(record)
    return found


def _trace_of(record: Record) -> int:
    """The number of the operation that a submitted event belongs to, or 0."""
    traceparent = origin_of(record).traceparent
    return int(traceparent.split("-")[1], 16) if traceparent else 0


def _streams_of(operation: Operation) -> Sequence[str | None]:
    told = operation.streams or [None] * len(operation.events)
    return [event.stream or stream for event, stream in zip(operation.events, told, strict=False)]


def _plain(record: Record, keys: Mapping[bytes, bytes | None]) -> dict[str, Any]:
    """The data of an event as JSON has it."""
    plain: dict[str, Any] = to_builtins(decode_recorded(record, keys).payload)
    return plain


def _name(operation: Operation) -> str:
    return f"operation {operation.number} ({operation.kind}, {operation.outcome})"
