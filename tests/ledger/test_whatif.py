"""What if: other rules change what they change, and nothing else."""

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from uuid import uuid4

import pytest
from msgspec import structs

from ledger.audit.whatif import ProductTallies, Tally, WhatIf
from ledger.core.pricing import CURRENT_RULES, Rules
from ledger.eventlog.records import Record
from tests.core.test_pricing_rules import DEARER
from tests.submissions import (
    ANN,
    INK,
    PEN,
    cancel,
    conditional,
    customer,
    event_of,
    history,
    imported_order,
    imported_product,
    opening,
    order,
    price,
    product,
    receipt,
)

from .built_ledgers import pages_of, records_of

TWICE = Rules(0, (), Decimal(2))
HALF = Rules(0, (), Decimal("0.5"))


def supposed(records: Sequence[Record], rules: Rules, page: int = 10_000) -> list[ProductTallies]:
    """What would have come of a ledger, product by product."""
    return compared(records, rules, page).products()


def compared(records: Sequence[Record], rules: Rules, page: int = 10_000) -> WhatIf:
    """A comparison over a whole ledger, read page by page."""
    whatif = WhatIf(rules)
    for before, found in pages_of(records, page):
        later = records[len(before) + len(found) :]
        last = {record.stream_id: record.position for record in later}
        placed = {record.stream_id for record in found if record.type == "order.placed"}
        whatif.decide(found, {key: last[key] for key in placed & last.keys()})
    return whatif


def of(product_id: object, products: list[ProductTallies]) -> ProductTallies:
    (found,) = (each for each in products if each.product_id == product_id)
    return found


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_rules_give_the_same_outcomes(seed: int) -> None:
    records = records_of(opening(20_000, 9), history(seed, 300))
    for each in supposed(records, CURRENT_RULES, page=40):
        assert each.decided == each.whatif
        assert each.gain_minor == 0


@pytest.mark.parametrize("rules", [TWICE, HALF, DEARER])
def test_where_pages_end_changes_nothing(rules: Rules) -> None:
    records = records_of(opening(20_000, 9), history(4, 300))
    whole_ledger = supposed(records, rules)
    assert supposed(records, rules, page=1) == supposed(records, rules, page=50) == whole_ledger


def test_imported_orders_are_not_counted_and_imported_stock_is_priced_as_it_was() -> None:
    old = [event_of(customer()), event_of(imported_product(5, 10)), event_of(imported_order())]
    records = records_of(old, [event_of(order(1, uuid4()))])
    (pen,) = supposed(records, TWICE)
    assert pen.decided == Tally(1, 0, Counter(), 1, 1200)
    assert pen.whatif == Tally(1, 0, Counter(), 1, 2000)


def test_what_was_decided_is_counted_from_the_record() -> None:
    first = uuid4()
    records = records_of(
        [event_of(customer(10_000)), event_of(product(1000, 10)), event_of(product(500, 1, INK))],
        [event_of(order(2, first)), event_of(order(3, uuid4())), event_of(order(9, uuid4()))],
        [event_of(cancel(first)), event_of(cancel(first)), event_of(order(1, uuid4(), of=INK))],
        [event_of(order(1, uuid4(), of=uuid4())), event_of(order(1, uuid4(), by=uuid4()))],
    )
    whatif = compared(records, TWICE)
    products = whatif.products()
    pen = of(PEN, products)
    assert (pen.name, pen.decided) == (
        "pen",
        Tally(2, 1, {"INSUFFICIENT_STOCK": 1, "UNKNOWN_CUSTOMER": 1}, 3, 3000),
    )
    assert of(None, products).decided == Tally(failed={"UNKNOWN_PRODUCT": 1})
    assert of(INK, products).decided == Tally(1, 0, {}, 1, 500)
    assert whatif.decided == Tally(
        3,
        1,
        {"INSUFFICIENT_STOCK": 1, "UNKNOWN_CUSTOMER": 1, "UNKNOWN_PRODUCT": 1},
        4,
        3500,
    )


def test_dearer_rules_fail_orders_that_were_paid() -> None:
    records = records_of(
        [event_of(customer(3000)), event_of(product(1000, 100))],
        [event_of(order(1, uuid4())) for _ in range(4)],
    )
    (pen,) = supposed(records, TWICE)
    assert pen.decided == Tally(3, 0, {"INSUFFICIENT_BALANCE": 1}, 3, 3000)
    assert pen.whatif == Tally(1, 0, {"INSUFFICIENT_BALANCE": 3}, 1, 2000)
    assert pen.gain_minor == -1000


@pytest.mark.parametrize("page", [1, 10_000])
def test_a_cancel_undoes_what_would_have_happened(page: int) -> None:
    dear, cheap = uuid4(), uuid4()
    records = records_of(
        [event_of(customer(2500)), event_of(product(1000, 100)), event_of(product(1, 1, INK))],
        [event_of(order(2, dear)), event_of(order(1, cheap))],
        [event_of(order(1, uuid4(), of=INK))],
        [event_of(cancel(dear)), event_of(cancel(cheap)), event_of(order(1, uuid4()))],
    )
    pen = of(PEN, supposed(records, HALF, page))
    assert pen.decided == Tally(2, 1, {"INSUFFICIENT_BALANCE": 1}, 1, 1000)
    assert pen.whatif == Tally(3, 2, {}, 1, 500)


def test_receipts_and_prices_are_facts_in_either_world() -> None:
    records = records_of(
        [event_of(customer(10**6)), event_of(product(1000, 2))],
        [event_of(order(2, uuid4())), event_of(order(1, uuid4()))],
        [event_of(receipt(5)), event_of(price(3000)), event_of(order(1, uuid4()))],
    )
    (pen,) = supposed(records, HALF)
    assert pen.decided == Tally(2, 0, {"INSUFFICIENT_STOCK": 1}, 3, 5000)
    assert pen.whatif == Tally(2, 0, {"INSUFFICIENT_STOCK": 1}, 3, 2500)


def test_a_precondition_held_or_failed_in_either_world_as_it_did() -> None:
    """The product is at other positions of the other world, or sold where it was not."""
    records = records_of(
        [event_of(customer(1500)), event_of(product(1000, 9)), event_of(order(1, uuid4()))],
        [event_of(order(1, uuid4())), event_of(conditional(price(600), 4))],
        [event_of(conditional(price(1), 4)), event_of(conditional(cancel(uuid4()), 4))],
        [event_of(order(1, uuid4()))],
    )
    (pen,) = supposed(records, HALF)
    assert pen.decided == Tally(1, 0, {"INSUFFICIENT_BALANCE": 2}, 1, 1000)
    assert pen.whatif == Tally(3, 0, {}, 3, 1300)


def test_an_atomic_batch_is_all_or_none_in_either_world() -> None:
    atomic_id = uuid4()
    batch = [structs.replace(event_of(order(1, uuid4())), atomic_id=atomic_id) for _ in range(3)]
    records = records_of([event_of(customer(2000)), event_of(product(1000, 100))], batch)
    (pen,) = supposed(records, HALF)
    assert pen.decided.completed == 0
    assert pen.whatif == Tally(3, 0, {}, 3, 1500)


def test_products_come_with_the_greatest_change_first() -> None:
    records = records_of(
        [event_of(customer(10**9)), event_of(product(10, 100)), event_of(product(9000, 100, INK))],
        [event_of(order(1, uuid4())), event_of(order(1, uuid4(), of=INK))],
    )
    assert [each.product_id for each in supposed(records, HALF)] == [INK, PEN]
    assert ANN not in {each.product_id for each in supposed(records, TWICE)}
