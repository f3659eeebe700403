"""The journal balances, at every position, and says the same as the views beside it."""

from collections import Counter
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.core.decider import Fold
from ledger.core.events import SUBMITTED, Recorded
from ledger.eventlog.codec import decode_recorded
from ledger.eventlog.decisions import compose
from ledger.eventlog.encryption import CustomerKeys
from ledger.eventlog.records import EMPTY
from projections.views.journal import JOURNAL, JournalLine, lines
from projections.views.projection import ViewDamaged
from tests.core.story import effective
from tests.ledger.pipeline import Ledger
from tests.submissions import (
    ANN,
    ORDER,
    PEN,
    Submission,
    cancel,
    credit,
    customer,
    erasure,
    event_of,
    history,
    order,
    price,
    product,
    receipt,
)

from .view_rows import advance_to_the_end, all_live, checkpoints, set_checkpoint


def recorded_of(*submissions: Submission) -> list[Recorded]:
    """What the writer would record of these, one after the other."""
    events = [event_of(submission) for submission in submissions]
    composed = compose(events, Fold(), EMPTY, {}, 1_700_000_000_000_000, CustomerKeys({}))
    return [decode_recorded(record) for record in composed.records]


Told = tuple[int, int, UUID | None, str, UUID, str, int, int]


def told(*submissions: Submission) -> list[Told]:
    """The lines of the last of these submissions, without the time."""
    events = recorded_of(*submissions)
    last = max(event.position for event in events if type(event.payload) in SUBMITTED.values())
    found = [line for event in effective(events) if event.position >= last for line in lines(event)]
    return [(line.position, line.line, *_rest(line)) for line in found]


def _rest(line: JournalLine) -> tuple[UUID | None, str, UUID, str, int, int]:
    return line.order_id, line.account, line.account_id, line.unit, line.debit, line.credit


def test_an_opening_balance_and_a_deposit_go_from_deposits_to_the_wallet() -> None:
    assert told(customer(700)) == [
        (1, 1, None, "deposits", ANN, "minor", 700, 0),
        (1, 2, None, "wallet", ANN, "minor", 0, 700),
    ]
    assert told(customer(700), credit(50)) == [
        (2, 1, None, "deposits", ANN, "minor", 50, 0),
        (2, 2, None, "wallet", ANN, "minor", 0, 50),
    ]


def test_initial_stock_and_a_receipt_go_from_received_to_the_stock() -> None:
    assert told(product(stock=9)) == [
        (1, 1, None, "stock", PEN, "units", 9, 0),
        (1, 2, None, "received", PEN, "units", 0, 9),
    ]
    assert told(product(stock=9), receipt(4)) == [
        (2, 1, None, "stock", PEN, "units", 4, 0),
        (2, 2, None, "received", PEN, "units", 0, 4),
    ]


def test_a_sale_moves_money_to_revenue_and_units_to_sold_and_a_cancel_moves_both_back() -> None:
    sale = [customer(5_000), product(1_000, 10), order(2)]
    assert told(*sale) == [
        (4, 1, ORDER, "wallet", ANN, "minor", 2_000, 0),
        (4, 2, ORDER, "revenue", PEN, "minor", 0, 2_000),
        (4, 3, ORDER, "sold", PEN, "units", 2, 0),
        (4, 4, ORDER, "stock", PEN, "units", 0, 2),
    ]
    assert told(*sale, cancel()) == [
        (6, 1, ORDER, "refunds", PEN, "minor", 2_000, 0),
        (6, 2, ORDER, "wallet", ANN, "minor", 0, 2_000),
        (6, 3, ORDER, "stock", PEN, "units", 2, 0),
        (6, 4, ORDER, "sold", PEN, "units", 0, 2),
    ]


@pytest.mark.parametrize(
    "submissions",
    [
        [customer(0)],
        [product(stock=0)],
        [product(), price(7)],
        [customer(5), product(1_000), order()],
        [order()],
        [customer(), customer()],
        [customer(), erasure()],
        [credit(5)],
        [customer(), product(), order(), cancel(), cancel()],
    ],
    ids=[
        "nothing to open with",
        "nothing in stock",
        "a price",
        "a failed order",
        "an order of nobody",
        "a second registration",
        "an erasure",
        "a deposit to nobody",
        "a second cancel",
    ],
)
def test_what_moves_nothing_makes_no_line(submissions: list[Submission]) -> None:
    assert told(*submissions) == []


@given(st.integers(0, 2**32))
def test_the_lines_of_each_event_balance_and_add_up_to_the_fold(seed: int) -> None:
    """So the sums are equal at every position, and so are wallets and stock."""
    composed = compose(history(seed, 60), Fold(), EMPTY, {}, 0, CustomerKeys({}))
    fold = Fold()
    held: Counter[tuple[str, UUID]] = Counter()
    for event in effective([decode_recorded(record) for record in composed.records]):
        fold.apply(event)
        sums: Counter[str] = Counter()
        for line in lines(event):
            sums[line.unit] += line.debit - line.credit
            held[line.account, line.account_id] += line.debit - line.credit
        assert not any(sums.values())
    for key, wallet in fold.customers.items():
        assert -held["wallet", key] == wallet.balance_minor
    for key, shelf in fold.products.items():
        assert held["stock", key] == shelf.stock


OUT_OF_BALANCE = """
    SELECT position, unit FROM journal GROUP BY position, unit HAVING SUM(debit) <> SUM(credit)
"""
OTHER_WALLETS = """
    SELECT w.customer_id, w.balance_minor FROM wallets w
    LEFT JOIN journal j ON j.account_id = w.customer_id AND j.account = 'wallet'
    GROUP BY w.customer_id, w.balance_minor
    HAVING COALESCE(SUM(j.credit - j.debit), 0) <> w.balance_minor
"""
OTHER_STOCK = """
    SELECT s.product_id, s.stock FROM stock s
    LEFT JOIN journal j ON j.account_id = s.product_id AND j.account = 'stock'
    GROUP BY s.product_id, s.stock
    HAVING COALESCE(SUM(j.debit - j.credit), 0) <> s.stock
"""


async def test_an_analyst_finds_it_balanced_and_in_agreement_with_the_views(
    written: Ledger,
) -> None:
    async with written.connection("projector") as connection:
        await advance_to_the_end(connection)
    for query in (OUT_OF_BALANCE, OTHER_WALLETS, OTHER_STOCK):
        assert await written.rows(query, "analyst") == []


async def test_a_line_that_is_there_already_stops_the_projector(written: Ledger) -> None:
    async with written.connection("projector") as connection:
        await advance_to_the_end(connection)
        before = await all_live(written)
        await set_checkpoint(written, JOURNAL.name, 0)
        with pytest.raises(
            ViewDamaged, match=r"a line is there already: .*Duplicate entry.*INTO journal "
        ):
            await advance_to_the_end(connection)
        await connection.rollback()
    assert await all_live(written) == before
    assert (await checkpoints(written))[JOURNAL.name] == 0
