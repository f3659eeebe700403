"""Whether all that was promised was kept: the ledger held against what clients were told.

It reads the ledger, not the views; the views are held against the ledger. It needs nothing that
runs, so that it can be tried on ledgers with every kind of damage.
"""

import json
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from typing import Any, Final
from uuid import UUID

from msgspec import Struct, to_builtins

from api import schemas
from api.replies import encode
from ledger.chain import Record
from ledger.codec import origin_of, recorded
from ledger.core.events import (
    AnyPayload,
    CustomerRegistered,
    OrderCancelled,
    OrderCompleted,
    ProductListed,
    Recorded,
    StockReceived,
    WalletCredited,
)
from ledger.core.fold import effective
from projections.projection import KeyedProjection
from projections.registry import PROJECTIONS
from tests.faults.history import History, Operation, Outcome, Read
from tests.ledger.audit import audit
from tests.projections.views import View

AT_POSITION: Final = re.compile(r"at position (\d+)")
SHOWS: Final = (200, 201)
"""Statuses of answers that show what was decided."""

MAX_SAID: Final = 20
CLOCK_S: Final = 0.05
"""By how much the times of two processes may differ."""

Views = Mapping[str, View]
Timeline = dict[str, dict[UUID, list[tuple[int, Struct]]]]


@dataclass(frozen=True)
class HeadSeen:
    """Where the ledger ended at some moment of the run."""

    position: int
    hash: bytes
    epoch: int


@dataclass(frozen=True)
class Evidence:
    """All that is known of a run once everything works again and nobody asks for anything."""

    records: Sequence[Record]
    history: History
    keys: Mapping[bytes, bytes | None] = field(default_factory=dict)
    heads: Sequence[HeadSeen] = ()
    views: Sequence[tuple[int, Views]] = ()
    waiting: int = 0
    parked: Sequence[bytes] = ()
    planted: frozenset[bytes] = frozenset()
    hears_from_s: Mapping[str, Sequence[float]] = field(default_factory=dict)
    not_told_s: Mapping[str, Sequence[float]] = field(default_factory=dict)


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
        _shown,
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


def _events(evidence: Evidence) -> Iterator[Recorded]:
    """The events that took effect, as far as they can be read."""
    return effective([recorded(record, evidence.keys) for record in evidence.records])


def _balanced(evidence: Evidence) -> Iterator[str]:
    """At every position: no wallet and no stock below zero, no money and no unit made or lost."""
    books = Books()
    for event in _events(evidence):
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
                self.stocks[stream_id] += payload.initial_stock
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


def _shown(evidence: Evidence) -> Iterator[str]:
    """Views are the fold at their checkpoint; clients were shown what was true at a position."""
    timeline: Timeline = {view.name: defaultdict(list) for view in PROJECTIONS}
    rows: dict[str, View] = {view.name: {} for view in PROJECTIONS}
    samples = sorted(evidence.views, key=lambda sample: sample[0])
    for event in _events(evidence):
        while samples and samples[0][0] < event.position:
            yield from _same_views(*samples.pop(0), rows)
        for view in PROJECTIONS:
            view.project(rows[view.name], event)
            if isinstance(view, KeyedProjection) and (key := view.key(event)) is not None:
                timeline[view.name][key].append((event.position, rows[view.name][key]))
    for sample in samples:
        yield from _same_views(*sample, rows)
    for read in evidence.history.reads:
        yield from _true_then(read, timeline, evidence)


def _same_views(position: int, shown: Views, folded: Mapping[str, View]) -> Iterator[str]:
    for name, rows in shown.items():
        true = folded[name]
        other = [key for key in rows.keys() | true.keys() if rows.get(key) != true.get(key)]
        if other:
            yield f"{name} at {position} is not the fold in {len(other)} rows: {other[:3]}"


VIEW_OF: Final[dict[str, tuple[str, Callable[[Any], Struct]]]] = {
    "orders": ("orders", schemas.order),
    "products": ("stock", schemas.product),
    "customers": ("wallets", schemas.customer),
}


def _true_then(read: Read, timeline: Timeline, evidence: Evidence) -> Iterator[str]:
    """What was shown is what the ledger says of the position that came with it."""
    name, render = VIEW_OF[read.what]
    states = timeline[name].get(UUID(read.id), [])
    if read.status == 404:
        yield from _allowed_to_miss(read, evidence)
    if read.status not in SHOWS or read.position is None:
        return
    index = bisect_right(states, read.position, key=lambda state: state[0])
    if index == 0:
        if read.body.get("status") != "PENDING":
            yield f"{read.what} {read.id} was shown at {read.position}, before it was there"
        return
    true = json.loads(encode(render(states[index - 1][1])), parse_float=Decimal)
    if true != read.body:
        yield f"{read.what} {read.id} was shown at {read.position} as {read.body}, not as {true}"


def _allowed_to_miss(read: Read, evidence: Evidence) -> Iterator[str]:
    """A process need not know an order of before it heard of orders, or that it was not told."""
    accepted = evidence.history.accepted(read.id)
    if accepted is None or accepted.ended_s > read.began_s:
        return
    hears_from_s = evidence.hears_from_s.get(read.api, ())
    missed = any(accepted.began_s - CLOCK_S <= at_s <= read.ended_s for at_s in hears_from_s)
    not_told = any(
        accepted.began_s - CLOCK_S <= at_s <= accepted.ended_s + CLOCK_S
        for at_s in evidence.not_told_s.get(accepted.api, ())
    )
    if read.what != "orders" or not (missed or not_told):
        yield f"{read.what} {read.id} was not known to {read.api}, though accepted before"


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
    plain: dict[str, Any] = to_builtins(recorded(record, keys).payload)
    return plain


def _name(operation: Operation) -> str:
    return f"operation {operation.number} ({operation.kind}, {operation.outcome})"
