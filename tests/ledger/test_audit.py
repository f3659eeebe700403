"""The audit finds the first thing that is wrong, wherever it is, and nothing in a right ledger."""

from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from ledger.core.decider import CustomerState, InvariantViolated
from ledger.core.events import OrderCancelled, OrderCompleted, OrderFailed, Reason, WalletCredited
from ledger.core.invariants import ConservationCheck
from ledger.core.pricing import RULES
from ledger.eventlog.codec import CURRENT, UPCASTERS, decided_meta, encode_payload
from ledger.eventlog.records import Record, Submitted, VerificationFailed, decided_id
from tests.core.test_pricing_rules import DEARER
from tests.submissions import (
    ANN,
    INK,
    PEN,
    cancel,
    conditional,
    credit,
    customer,
    event_of,
    history,
    imported_order,
    opening,
    order,
    orders,
    price,
    product,
)

from .built_ledgers import LedgerBuilder, audited, forged, rechained, records_of
from .naive_audit import audit

OTHER = uuid4()


def atomic(*events: Submitted) -> list[Submitted]:
    """Events as one batch of which all or none are decided."""
    atomic_id = uuid4()
    return [structs.replace(event, atomic_id=atomic_id) for event in events]


def shop() -> list[Record]:
    """Eleven records: two orders of which the second fails, a cancel, another, and a deposit.

    1 customer, 2 product of 2 units, 3–4 completed, 5–6 failed, 7–8 cancelled, 9–10 refused, 11.
    """
    first, second = uuid4(), uuid4()
    return records_of(
        [event_of(customer(10_000)), event_of(product(1000, 2))],
        [event_of(order(2, at=first)), event_of(order(1, at=second))],
        [event_of(cancel(first)), event_of(cancel(first))],
        [event_of(credit(500))],
    )


def wrong(records: list[Record], page: int = 10_000) -> VerificationFailed:
    """What the audit of a ledger finds."""
    with pytest.raises(VerificationFailed) as raised:
        audited(records, page)
    return raised.value


@pytest.mark.parametrize("page", [1, 2, 7, 10_000])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_right_ledger_is_found_right_whatever_its_pages(page: int, seed: int) -> None:
    events = history(seed, 200)
    records = records_of(
        atomic(*orders(3)),
        opening(20_000, 9),
        *(events[start : start + 9] for start in range(0, 200, 9)),
        [event_of(customer(5_000, OTHER)), event_of(product(1, 9, INK))],
        atomic(*(event_of(order(4, uuid4(), OTHER, INK)) for _ in range(3))),
        atomic(*(event_of(order(4, uuid4(), OTHER, INK)) for _ in range(2))),
        orders(1),
    )
    assert Reason.BATCH_FAILED in {msgspec.json.decode(r.data).get("reason") for r in records}
    fold = audited(records, page)
    assert fold.orders == {}
    assert {OTHER, ANN} <= set(fold.customers)


@pytest.mark.parametrize("page", [1, 10_000])
def test_a_precondition_is_decided_again_at_the_position_it_was_decided_at(page: int) -> None:
    """1 customer, 2 product, 3–8 a batch that fails, 9–10 an order, 11 price, 12–13 refused."""
    records = records_of(
        opening(20_000, 9),
        atomic(*(event_of(order(4, uuid4())) for _ in range(3))),
        [event_of(order(1, uuid4()))],
        [event_of(conditional(price(7), 10)), event_of(conditional(price(8), 10))],
    )
    assert [record.type for record in records[10:]] == [
        *["price.changed"] * 2,
        "submission.refused",
    ]
    assert audited(records, page).products[PEN].position == 11
    first, second = (msgspec.json.decode(record.data) for record in records[10:12])
    for record, data in ((records[10], first), (records[11], second)):
        changed = msgspec.json.encode(data | {"expected_position": 10 + (data is second)})
        if changed != record.data:
            assert wrong(forged(records, record.position, data=changed)).position == 13
    stale = msgspec.json.encode({"base_price_minor": 7, "expected_position": 2}, order="sorted")
    assert wrong(forged(records, 11, data=stale)).position == 12


def test_the_audit_ends_with_the_same_fold_as_the_naive_audit() -> None:
    records = records_of(opening(), history(3, 300))
    whole = audit(records)
    fold = audited(records, page=20)
    assert (fold.customers, fold.products) == (whole.customers, whole.products)


COLUMNS: dict[str, object] = {
    "event_id": uuid4().bytes,
    "stream_id": uuid4().bytes,
    "version": 9,
    "type": "order.failed",
    "schema_version": 3,
    "cause_position": 1,
    "occurred_at_us": 5,
    "recorded_at_us": 5,
    "meta": b'{"source":"/elsewhere"}',
    "data": b'{"amount_minor":1}',
    "hash": bytes(32),
}


@pytest.mark.parametrize("position", [1, 4, 7, 11])
@pytest.mark.parametrize("column", COLUMNS)
def test_one_changed_column_is_found_where_it_is(column: str, position: int) -> None:
    records = shop()
    records[position - 1] = structs.replace(records[position - 1], **{column: COLUMNS[column]})
    assert wrong(records).position == position
    assert wrong(records, page=3).position == position


@pytest.mark.parametrize("position", range(1, 11))
def test_a_record_that_is_gone_is_missed(position: int) -> None:
    records = shop()
    del records[position - 1]
    assert wrong(records).position == position


@pytest.mark.parametrize(("one", "other"), [(1, 2), (4, 6), (3, 11), (10, 11)])
def test_two_records_that_changed_places_are_found_at_the_first(one: int, other: int) -> None:
    records = shop()
    records[one - 1], records[other - 1] = (
        structs.replace(records[other - 1], position=one),
        structs.replace(records[one - 1], position=other),
    )
    assert wrong(records).position == one


DECIDED = {
    "event_id": uuid4().bytes,
    "stream_id": PEN.bytes,
    "version": 9,
    "type": "submission.refused",
    "schema_version": 2,
    "cause_position": 1,
    "occurred_at_us": 5,
    "recorded_at_us": 2_000_000,
    "meta": b'{"source":"/elsewhere"}',
    "data": b'{"reason": "INSUFFICIENT_STOCK"}',
}


@pytest.mark.parametrize("position", [4, 6, 8, 10])
@pytest.mark.parametrize("column", DECIDED)
def test_a_decided_event_is_wrong_in_any_column_even_if_the_chain_holds(
    column: str, position: int
) -> None:
    records = forged(shop(), position, **{column: DECIDED[column]})
    assert wrong(records).position == position
    assert wrong(records, page=2).position == position


def data_of(total_minor: int) -> bytes:
    return encode_payload(OrderCompleted(ANN, PEN, 2, total_minor // 2, total_minor))


def test_the_error_describes_the_wrong_decision() -> None:
    records = shop()
    failed = encode_payload(OrderFailed(Reason.INSUFFICIENT_BALANCE))
    said = {
        "order.completed says total_minor 1800, but decided is 2000": forged(
            records, 4, data=encode_payload(OrderCompleted(ANN, PEN, 2, 1000, 1800))
        ),
        "order.failed stands here, but decided is order.completed": forged(
            records, 4, type="order.failed", data=failed
        ),
        "order.completed stands here, but decided is order.failed (INSUFFICIENT_STOCK)": forged(
            records, 6, type="order.completed", data=data_of(2000)
        ),
        "order.failed says reason INSUFFICIENT_BALANCE, but decided is INSUFFICIENT_STOCK": forged(
            records, 6, data=failed
        ),
    }
    for what, forgery in said.items():
        assert what in str(wrong(forgery))


def test_a_cancel_that_is_paid_twice_is_found_though_evolve_would_take_it() -> None:
    records = shop()
    paid = encode_payload(OrderCancelled(ANN, PEN, 2, 2000))
    forgery = forged(records, 10, type="order.cancelled", data=paid)
    assert str(wrong(forgery)) == (
        "position 10: order.cancelled stands here, "
        "but decided is order.cancel-refused (ALREADY_CANCELLED)"
    )


@pytest.mark.parametrize("position", [4, 6, 8, 10])
def test_a_decision_that_is_missing_is_named_where_it_must_stand(position: int) -> None:
    records = shop()
    forgery = rechained(records[: position - 1] + records[position:])
    found = wrong(forgery)
    assert found.position == position
    assert "must stand here" in found.detail


def test_a_decision_that_is_missing_at_the_very_end_is_missed() -> None:
    assert wrong(shop()[:10][:-1]).position == 10


@pytest.mark.parametrize("position", [4, 6, 8, 10])
def test_a_decision_that_stands_twice_is_found(position: int) -> None:
    records = shop()
    twice = rechained([*records[:position], records[position - 1], *records[position:]])
    found = wrong(twice)
    assert (found.position, "nothing caused it" in found.detail) == (position + 1, True)


def test_a_decided_event_after_a_submission_that_needs_none_is_found() -> None:
    records = shop()
    extra = structs.replace(
        records[5],
        event_id=decided_id(records[10].event_id, 0),
        stream_id=records[10].stream_id,
        cause_position=11,
        version=3,
    )
    assert wrong(rechained([*records, extra])).position == 12


def test_a_ledger_that_begins_with_a_decision_is_wrong_there() -> None:
    assert wrong(rechained(shop()[3:])).position == 1


def test_an_event_that_stands_twice_is_found_pages_later() -> None:
    records = shop()
    again = structs.replace(records[10], version=3)
    for page in (2, 10_000):
        found = wrong(rechained([*records, again]), page)
        assert str(found) == "position 12: the same event stands at position 11 already"


def test_a_submitted_event_may_not_have_the_id_of_a_decided_one() -> None:
    event_id = decided_id(uuid4().bytes, 0)
    assert wrong(forged(shop(), 11, event_id=event_id)).position == 11


@pytest.mark.parametrize("page", [2, 10_000])
def test_a_second_history_of_a_stream_is_found(page: int) -> None:
    records = shop()
    again = structs.replace(records[10], event_id=uuid4().bytes, version=1)
    found = wrong(rechained([*records, again]), page)
    assert (found.position, found.detail) == (12, "version is 1, and must be 3")


def test_a_recorded_time_that_falls_is_found() -> None:
    found = wrong(forged(shop(), 11, recorded_at_us=5))
    assert found.position == 11
    assert "recorded before" in found.detail


def test_an_atomic_batch_that_was_taken_apart_is_found() -> None:
    placed = [event_of(order(1, at=uuid4())), event_of(order(9, at=uuid4()))]
    together = records_of(opening(10_000, 3), atomic(*placed))
    audited(together, page=1)
    meta = together[2].meta.replace(b'"atomicid"', b'"anything"')
    for position in (3, 5):
        found = wrong(forged(together, position, meta=meta))
        assert "but decided is" in found.detail


def test_an_imported_order_in_an_atomic_batch_is_found() -> None:
    ledger = records_of(opening(), [event_of(imported_order(at=uuid4()))])
    audited(ledger)
    found = wrong(forged(ledger, 3, meta=b'{"atomicid":"%s","source":"/x"}' % str(ANN).encode()))
    assert (found.position, "atomicid can't be there" in found.detail) == (3, True)


def test_an_amount_that_was_put_in_changes_what_is_decided_later() -> None:
    story = [event_of(customer(500)), event_of(product(1000, 5))]
    poor = records_of([*story, event_of(credit(100)), event_of(order(1))])
    rich = forged(poor, 3, data=encode_payload(WalletCredited(600)))
    assert str(wrong(rich)) == (
        "position 5: order.failed stands here, but decided is order.completed"
    )


def test_an_unreadable_record_is_reported_at_its_position() -> None:
    for changes in (
        {"data": b"{"},
        {"data": b'{"amount_minor": -1}'},
        {"type": "wallet.robbed"},
        {"schema_version": 77},
        {"meta": b"\xff"},
        {"type": "order.failed"},
    ):
        assert wrong(forged(shop(), 11, **changes)).position == 11


def test_an_earlier_wrong_record_is_reported_before_an_unreadable_one() -> None:
    records = forged(shop(), 10, data=b"{}")
    assert wrong(forged(records, 11, data=b"{")).position == 10
    broken = forged(shop(), 4, data=data_of(1800))
    broken[10] = structs.replace(broken[10], data=b"{")
    assert wrong(broken).position == 4


class TestRules:
    """What was decided under each version of the rules is decided by it again."""

    @pytest.fixture(autouse=True)
    def _second_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(RULES, 2, DEARER)

    def ledger(self, *versions: int) -> list[Record]:
        scribe = LedgerBuilder()
        scribe.record(
            [event_of(customer(10**9)), event_of(product(1000, 10)), event_of(product(9, 9, INK))]
        )
        for version in versions:
            events = [event_of(order(2, at=uuid4())), event_of(order(1, at=uuid4(), of=INK))]
            scribe.record([*events, *atomic(*orders(2))], RULES[version])
        return scribe.records

    @pytest.mark.parametrize("page", [1, 10_000])
    def test_a_ledger_decided_by_two_versions_of_the_rules_verifies(self, page: int) -> None:
        records = self.ledger(1, 2, 1, 2)
        metas = {record.meta for record in records if record.cause_position}
        assert metas == {b"{}", b'{"rules":2}'}
        audited(records, page)

    def test_an_event_that_names_other_rules_than_decided_it_is_found(self) -> None:
        records = self.ledger(1, 2)
        first = next(r for r in records if r.meta == decided_meta(2) and b'"total_minor"' in r.data)
        found = wrong(forged(records, first.position, meta=decided_meta(1)))
        assert found.position == first.position

    def test_rules_that_the_code_does_not_have_are_named(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        records = self.ledger(2)
        monkeypatch.delitem(RULES, 2)
        assert "by rules 2, which this code does not know" in str(wrong(records))


def test_a_decided_event_in_an_older_shape_is_right_if_it_says_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records = shop()
    old = records[5]
    monkeypatch.setitem(CURRENT, "order.failed", 2)
    monkeypatch.setitem(UPCASTERS, ("order.failed", 1), lambda data: {"reason": data["why"]})
    older = forged(records, old.position, data=b'{"why":"INSUFFICIENT_STOCK"}')
    audited(older)
    other = forged(records, old.position, data=b'{"why":"INSUFFICIENT_BALANCE"}')
    assert wrong(other).position == old.position


def test_money_that_evolve_makes_up_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    records = shop()
    generous = lambda balance_minor, position: CustomerState(balance_minor + 1, position)  # noqa: E731
    monkeypatch.setattr("ledger.core.decider.customer_with", generous)
    found = wrong(records[:4])
    assert f"{ANN} holds 8001, but 8000 by what the events moved" in found.detail


def test_an_amount_below_zero_is_refused_by_the_conservation_check() -> None:
    conservation = ConservationCheck({ANN: CustomerState(5)}, {})
    with pytest.raises(InvariantViolated, match="would hold -1"):
        conservation.add(UUID(int=1), OrderCompleted(ANN, PEN, 1, 6, 6))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_changed_in_any_decided_event_is_found(data: st.DataObject) -> None:
    records = RANDOM
    decided = [record for record in records if record.cause_position]
    record = data.draw(st.sampled_from(decided))
    column = data.draw(st.sampled_from(sorted(DECIDED)))
    other = getattr(data.draw(st.sampled_from(records)), column)
    if other == getattr(record, column):
        return
    forgery = forged(records, record.position, **{column: other})
    assert wrong(forgery, data.draw(st.sampled_from([3, 50, 10_000]))).position == record.position


RANDOM = records_of(opening(50_000, 9), history(5, 60), history(6, 60))
