"""The checker itself: it has nothing to say of a good run, and finds each kind of damage."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from msgspec import structs

from api import schemas
from api.http.responses import encode
from ledger.core.decider import Fold
from ledger.core.events import (
    TYPE_OF,
    AnyPayload,
    CustomerRegistered,
    OrderCancelled,
    OrderCancelRequested,
    OrderCompleted,
    OrderFailed,
    OrderPlaced,
    ProductListed,
    Reason,
    SubmittedPayload,
)
from ledger.eventlog.codec import (
    decode_group,
    decode_recorded,
    encode_group,
    encode_payload,
    encode_submitted,
)
from ledger.eventlog.decisions import compose
from ledger.eventlog.encryption import CustomerKeys
from ledger.eventlog.records import EMPTY, GENESIS_HASH, Record, Submitted, next_hash
from projections.views.registry import PROJECTIONS
from tests.faults.checker import check
from tests.faults.evidence import Evidence, HeadSeen
from tests.faults.history import Attempt, Expected, History, Operation, Outcome, Read
from tests.projections.view_rows import replayed

ANN, PEN = UUID(int=0xA1), UUID(int=0xB1)
ORDERS = [UUID(int=0xC1 + n) for n in range(6)]
OK, FAILED, UNKNOWN = Outcome.OK, Outcome.FAILED, Outcome.UNKNOWN
PLACED = OrderPlaced(ANN, PEN, 2)
ORDER = ORDERS[0]


@dataclass
class Case:
    """A run that was made up, and what there is to know of it."""

    history: History
    events: list[Submitted]
    evidence: Evidence

    def changed(self, **changes: Any) -> list[str]:
        """What the checker says with some of the evidence replaced."""
        return check(replace(self.evidence, **changes))

    def with_events(self, *events: Submitted) -> list[str]:
        """What it says of a ledger that has these, too."""
        records, keys = ledger_of([*self.events, *events])
        return self.changed(records=records, keys=keys, views=(), heads=())

    def with_records(self, *records: Record) -> list[str]:
        """What it says of another ledger, of which nobody saw anything before."""
        return self.changed(records=rewritten(records), views=(), heads=())


def plain(payload: SubmittedPayload) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(encode_payload(payload))
    return data


def event_of(
    history: History, outcome: Outcome, *wishes: tuple[UUID, SubmittedPayload]
) -> list[Submitted]:
    """An operation that ended like this, and the events that it would leave."""
    expected = [Expected(TYPE_OF[type(payload)], plain(payload)) for _, payload in wishes]
    operation = history.begin("order", None, expected)
    at_s = float(operation.number)
    streams = [str(stream_id) for stream_id, _ in wishes] if outcome is OK else []
    history.attempted(operation, Attempt(outcome, "api", 202, "", at_s, at_s), streams)
    trace = f"00-{operation.number:032x}-{1:016x}-01"
    return [
        Submitted(UUID(int=operation.number * 100 + n), stream_id, 1, payload, traceparent=trace)
        for n, (stream_id, payload) in enumerate(wishes)
    ]


def ledger_of(events: list[Submitted]) -> tuple[list[Record], dict[bytes, bytes | None]]:
    """The records that a writer makes of events that came through the inbox, and the keys."""
    read, rejected = decode_group(
        encode_group(encode_submitted(event, "/tests") for event in events)
    )
    assert not rejected
    keys = CustomerKeys({})
    records = compose(read, Fold(), EMPTY, {}, 1_000, keys).records
    return records, {row.customer_id: row.sealing_key for row in keys.made.values()}


def rewritten(records: tuple[Record, ...]) -> list[Record]:
    """The records as if they had been written so: dense, chained, each cause at its place."""
    moved: dict[int, int] = {0: 0}
    versions: dict[bytes, int] = {}
    hash_, found = GENESIS_HASH, []
    for position, record in enumerate(records, 1):
        moved[record.position] = position
        versions[record.stream_id] = versions.get(record.stream_id, 0) + 1
        cause_position = moved.get(record.cause_position, position - 1)
        new = structs.replace(
            record,
            position=position,
            version=versions[record.stream_id],
            cause_position=cause_position,
        )
        hash_ = next_hash(hash_, new)
        found.append(structs.replace(new, hash=hash_))
    return found


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    """Four orders of two units each, one of them cancelled, one refused for lack of stock."""
    history = History(tmp_path / "history.jsonl")
    events = [
        *event_of(history, OK, (ANN, CustomerRegistered("ann"))),
        *event_of(history, OK, (PEN, ProductListed("pen", "", 1_000, 6))),
        *event_of(history, OK, (ORDERS[0], PLACED)),
        *event_of(history, OK, (ORDERS[1], PLACED), (ORDERS[2], PLACED)),
        *event_of(history, UNKNOWN, (ORDERS[3], PLACED)),
        *event_of(history, OK, (ORDERS[1], OrderCancelRequested())),
    ]
    event_of(history, FAILED, (ORDERS[4], PLACED))
    event_of(history, UNKNOWN, (ORDERS[5], PLACED))
    records, keys = ledger_of(events)
    at_four = {view.name: replayed(view, records[:4], keys) for view in PROJECTIONS}
    at_end = {view.name: replayed(view, records, keys) for view in PROJECTIONS}
    history.shown(shown(at_end, records), connection=1)
    evidence = Evidence(
        records,
        history,
        keys,
        heads=[HeadSeen(2, records[1].hash, 1), HeadSeen(8, records[7].hash, 2)],
        views=[(4, at_four), (len(records), at_end)],
        parked=[b"poison", b"poison"],
        planted=frozenset([b"poison"]),
        hears_from_s={"api": [0.0], "api.2": [0.0]},
    )
    yield Case(history, events, evidence)
    history.close()


def shown(views: dict[str, Any], records: list[Record], **changes: Any) -> Read:
    body = json.loads(encode(schemas.order(views["orders"][ORDER])), parse_float=Decimal)
    fields = {"what": "orders", "id": str(ORDER), "api": "api", "status": 200}
    times = {"began_s": 100.0, "ended_s": 100.5}
    return Read(**{**fields, **times, "position": len(records), "body": body, **changes})


def test_of_a_good_run_it_has_nothing_to_say(case: Case) -> None:
    assert check(case.evidence) == []
    assert case.with_records(*case.evidence.records) == []


def test_a_ledger_without_a_position_is_damaged(case: Case) -> None:
    records = list(case.evidence.records)
    assert case.changed(records=records[:2] + records[3:], views=(), heads=())


@pytest.mark.parametrize("field", ["data", "meta", "hash", "occurred_at_us", "recorded_at_us"])
def test_a_record_that_was_changed_breaks_the_chain(case: Case, field: str) -> None:
    records = list(case.evidence.records)
    old = getattr(records[3], field)
    new = old + 1 if isinstance(old, int) else old[:-1] + bytes([old[-1] ^ 1])
    records[3] = structs.replace(records[3], **{field: new})
    said = case.changed(records=records, views=(), heads=())
    assert any("chain breaks at position 4" in each for each in said)


def find(case: Case, kind: type[AnyPayload], nth: int = 0) -> int:
    """The index of the nth record of a kind."""
    of_kind = [r.position - 1 for r in case.evidence.records if r.type == TYPE_OF[kind]]
    return of_kind[nth]


Damage = Callable[[Case, list[Record]], None]


def loses_a_decision(case: Case, records: list[Record]) -> None:
    del records[find(case, OrderCompleted)]


def decides_twice(case: Case, records: list[Record]) -> None:
    at = find(case, OrderCompleted)
    records.insert(at, records[at])


def decides_otherwise(case: Case, records: list[Record]) -> None:
    at = find(case, OrderCompleted)
    failed = OrderFailed(Reason.INSUFFICIENT_BALANCE)
    records[at] = structs.replace(
        records[at], type=TYPE_OF[OrderFailed], data=encode_payload(failed)
    )


def sells_what_is_not_there(case: Case, records: list[Record]) -> None:
    at = find(case, ProductListed)
    listed = ProductListed("pen", "", 1_000, 3)
    records[at] = structs.replace(records[at], data=encode_payload(listed))


def pays_back_too_much(case: Case, records: list[Record]) -> None:
    at = find(case, OrderCancelled)
    payload = decode_recorded(records[at]).payload
    assert isinstance(payload, OrderCancelled)
    more = structs.replace(payload, refund_minor=payload.refund_minor + 1)
    records[at] = structs.replace(records[at], data=encode_payload(more))


def loses_an_accepted_event(case: Case, records: list[Record]) -> None:
    at = find(case, OrderPlaced, 0)
    del records[at : at + 2]


def loses_a_part_of_a_batch(case: Case, records: list[Record]) -> None:
    at = find(case, OrderPlaced, 1)
    del records[at : at + 2]


def has_an_event_twice(case: Case, records: list[Record]) -> None:
    at = find(case, OrderPlaced, 3)
    records += records[at : at + 2]


def forgets_what_it_refused(case: Case, records: list[Record]) -> None:
    records[-1] = structs.replace(records[-1], recorded_at_us=0)


def has_other_data_than_asked_for(case: Case, records: list[Record]) -> None:
    at = find(case, OrderPlaced, 3)
    other = encode_payload(OrderPlaced(ANN, PEN, 99))
    records[at] = structs.replace(records[at], data=other)


def has_another_stream_than_told(case: Case, records: list[Record]) -> None:
    at = find(case, OrderPlaced, 0)
    for index in (at, at + 1):
        records[index] = structs.replace(records[index], stream_id=UUID(int=77).bytes)


@pytest.mark.parametrize(
    "damage",
    [
        loses_a_decision,
        decides_twice,
        decides_otherwise,
        sells_what_is_not_there,
        pays_back_too_much,
        loses_an_accepted_event,
        loses_a_part_of_a_batch,
        has_an_event_twice,
        forgets_what_it_refused,
        has_other_data_than_asked_for,
        has_another_stream_than_told,
    ],
)
def test_a_ledger_that_is_chained_and_yet_wrong_is_found_out(case: Case, damage: Damage) -> None:
    records = list(case.evidence.records)
    damage(case, records)
    assert case.with_records(*records)


@pytest.mark.parametrize("number", [7, 8])
def test_what_failed_may_not_be_there_and_what_is_unknown_once_at_most(
    case: Case, number: int
) -> None:
    """Each time as another event, so that nothing but the checker could notice."""
    trace = f"00-{number:032x}-{1:016x}-01"
    more = [
        Submitted(UUID(int=9_000 + n), UUID(int=n), 1, PLACED, traceparent=trace) for n in (1, 2)
    ]
    assert bool(case.with_events(more[0])) == (number == 7)
    assert any(f"operation {number}" in said for said in case.with_events(*more))


def test_an_event_that_nobody_asked_for_is_found(case: Case) -> None:
    for trace in (None, f"00-{99:032x}-{1:016x}-01"):
        event = Submitted(UUID(int=9_000), UUID(int=1), 1, PLACED, traceparent=trace)
        said = case.with_events(event)
        assert any("nobody asked for order.placed" in each for each in said)


@pytest.mark.parametrize(
    "heads",
    [
        [(3, 2), (2, 2)],
        [(3, 2), (4, 1)],
        [(99, 2)],
    ],
)
def test_a_head_that_falls_and_an_epoch_that_falls_are_found(
    case: Case, heads: list[tuple[int, int]]
) -> None:
    records = case.evidence.records
    seen = [HeadSeen(at, records[min(at, 9) - 1].hash, epoch) for at, epoch in heads]
    assert case.changed(heads=seen)


def test_a_position_that_held_something_else_once_is_found(case: Case) -> None:
    said = case.changed(heads=[HeadSeen(3, bytes(32), 1)])
    assert said == ["position 3 was another one once"]


@pytest.mark.parametrize("view", [view.name for view in PROJECTIONS])
def test_a_view_that_is_not_the_fold_at_its_checkpoint_is_found(case: Case, view: str) -> None:
    position, rows = case.evidence.views[-1]
    key = next(iter(rows[view]))
    fewer = {**rows, view: {k: row for k, row in rows[view].items() if k != key}}
    assert case.changed(views=[(position, fewer)])
    assert case.changed(views=[(4, rows)])


def test_messages_that_are_left_and_parked_ones_that_differ_are_found(case: Case) -> None:
    assert case.changed(waiting=1)
    assert case.changed(parked=[])
    assert case.changed(parked=[b"poison", b"order"])


@pytest.mark.parametrize(
    "changes",
    [
        {"position": 4},
        {"position": 3, "body": {"status": "COMPLETED"}},
        {"body": {"status": "PENDING"}},
        {"body": {"status": "PENDING"}, "status": 201},
        {"status": 404, "position": None, "body": {}},
        {"status": 404, "position": None, "body": {}, "api": "api.2"},
        {"status": 500, "position": None, "body": {}},
    ],
)
def test_a_client_that_was_shown_what_was_not_true_is_found(
    case: Case, changes: dict[str, Any]
) -> None:
    views = dict(case.evidence.views[-1][1])
    if changes.get("position") == 4:
        changes = {**changes, "id": str(ORDERS[1])}
    case.history.shown(shown(views, list(case.evidence.records), **changes), connection=2)
    assert check(case.evidence)


def test_an_order_may_be_unknown_to_a_process_that_did_not_hear_of_it(case: Case) -> None:
    views = dict(case.evidence.views[-1][1])
    missed = shown(views, [], status=404, position=None, body={}, api="api.2")
    case.history.shown(missed, connection=2)
    assert check(case.evidence)
    assert not case.changed(hears_from_s={"api.2": [0.0, 50.0]})
    assert case.changed(hears_from_s={"api.2": [0.0, 101.0]})
    assert not case.changed(not_told_s={"api": [3.0]})
    assert case.changed(not_told_s={"api": [5.0], "api.2": [3.0]})


def test_what_clients_must_never_see_is_found(case: Case) -> None:
    history = case.history
    again = history.operations[3]
    history.attempted(again, Attempt(OK, "api", 202, "", 9.0, 9.0), [str(ORDERS[5])])
    history.attempted(again, Attempt(UNKNOWN, "api", 500, "internal-error", 9.0, 9.0), [])
    history.seen(7, 5)
    history.seen(7, 4)
    assert len(check(case.evidence)) == 3


def test_a_refusal_that_is_told_with_another_position_is_found(case: Case) -> None:
    operation: Operation = case.history.operations[6]
    for position, good in ((find(case, OrderCancelled) + 1, True), (4, False), (99, False)):
        detail = f"not-cancellable: order.cancel-refused at position {position}: NOT_COMPLETED"
        operation.attempts.append(Attempt(OK, "api", 409, detail, 9.0, 9.0))
        assert (check(case.evidence) == []) == good
        operation.attempts.pop()
