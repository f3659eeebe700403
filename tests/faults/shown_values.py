"""Whether views are the fold at their checkpoint, and clients were shown what was true."""

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from msgspec import Struct

from api import schemas
from api.http.responses import encode
from projections.views.projection import KeyedProjection
from projections.views.registry import PROJECTIONS
from tests.faults.evidence import Evidence, Views
from tests.faults.history import Read
from tests.projections.view_rows import View

SHOWS: Final = (200, 201)
"""Statuses of answers that show what was decided."""

CLOCK_S: Final = 0.05
"""By how much the times of two processes may differ."""

Timeline = dict[str, dict[UUID, list[tuple[int, Struct]]]]


def shown(evidence: Evidence) -> Iterator[str]:
    """Views are the fold at their checkpoint; clients were shown what was true at a position."""
    timeline: Timeline = {view.name: defaultdict(list) for view in PROJECTIONS}
    rows: dict[str, View] = {view.name: {} for view in PROJECTIONS}
    samples = sorted(evidence.views, key=lambda sample: sample[0])
    for event in evidence.events():
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
