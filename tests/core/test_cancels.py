"""Cancelling an order: only a completed one, for exactly what was paid, and once."""

from uuid import UUID

import pytest

from ledger.core.decider import ProductState, Status
from ledger.core.events import (
    MAX_BALANCE_MINOR,
    MAX_STOCK,
    OrderCancelled,
    OrderCancelRefused,
    Reason,
    SubmissionRefused,
)
from tests.submissions import (
    ANN,
    BOB,
    NOBODY,
    ORDER,
    OTHER_ORDER,
    PEN,
    Submission,
    cancel,
    credit,
    customer,
    order,
    price,
    product,
    receipt,
)

from .story import given, given_state


def test_a_cancel_returns_exactly_what_was_paid_and_taken() -> None:
    (
        given(customer(5000), product(1000, 10), order(3))
        .when(cancel())
        .then(OrderCancelled(ANN, PEN, 3, 3000))
        .leaves(balance_minor=5000, stock=10, initial_stock=10, status=Status.CANCELLED)
    )


@pytest.mark.parametrize(
    "between",
    [(price(9999),), (receipt(1000),), (credit(1),), (order(6, at=OTHER_ORDER),)],
    ids=["price changed", "stock received", "wallet credited", "another order"],
)
def test_a_refund_is_the_total_that_was_paid_whatever_happened_since(
    between: tuple[Submission, ...],
) -> None:
    story = given(customer(), product(1000, 10), order(4), *between)
    balance_minor = story.fold.customers[ANN].balance_minor
    story.when(cancel()).then(OrderCancelled(ANN, PEN, 4, 4000))
    story.leaves(balance_minor=balance_minor + 4000)


def test_an_order_at_a_raised_price_is_refunded_at_that_price() -> None:
    story = given_state(10_000, ProductState(1000, 1, 4)).when(order()).when(cancel())
    story.then(OrderCancelled(ANN, PEN, 1, 1500)).leaves(balance_minor=10_000, stock=1)


def test_a_cancel_leaves_the_initial_stock_of_the_pricing_rule_alone() -> None:
    story = given(customer(), product(stock=10), order(4), receipt(5)).when(cancel())
    story.leaves(stock=15, initial_stock=11)


def test_a_second_cancel_is_refused_and_never_paid_twice() -> None:
    (
        given(customer(5000), product(1000, 10), order(3), cancel())
        .when(cancel())
        .then(OrderCancelRefused(Reason.ALREADY_CANCELLED))
        .changes_nothing()
        .when(cancel())
        .then(OrderCancelRefused(Reason.ALREADY_CANCELLED))
        .leaves(balance_minor=5000, stock=10, status=Status.CANCELLED)
    )


@pytest.mark.parametrize(
    "history",
    [
        (order(),),
        (customer(0), product(), order()),
        (customer(), product(stock=0), order()),
        (order(), customer(), product()),
    ],
)
def test_a_failed_order_cannot_be_cancelled(history: tuple[Submission, ...]) -> None:
    story = given(*history).when(cancel())
    story.then(OrderCancelRefused(Reason.NOT_COMPLETED)).changes_nothing()
    story.leaves(status=Status.FAILED)


@pytest.mark.parametrize("at", [NOBODY, ANN, PEN, OTHER_ORDER])
def test_a_cancel_of_what_is_no_order_is_refused_whole(at: UUID) -> None:
    story = given(customer(), product(), order()).when(cancel(at=at))
    story.then(SubmissionRefused(Reason.UNKNOWN_ORDER)).changes_nothing()


def test_a_cancel_pays_the_one_who_ordered_and_nobody_else() -> None:
    story = given(customer(), customer(5, at=BOB), product(), order()).when(cancel())
    story.leaves(balance_minor=500_000)
    assert story.fold.customers[BOB].balance_minor == 5


@pytest.mark.parametrize(
    ("room_minor", "decided"),
    [
        (1000, OrderCancelled(ANN, PEN, 1, 1000)),
        (999, OrderCancelRefused(Reason.BALANCE_LIMIT)),
    ],
)
def test_a_refund_fills_a_wallet_to_its_limit_and_not_a_cent_over(
    room_minor: int, decided: OrderCancelled | OrderCancelRefused
) -> None:
    story = given_state(MAX_BALANCE_MINOR).when(order())
    story.when(credit(1000 - room_minor) if room_minor < 1000 else price(1))
    story.when(cancel()).then(decided)
    if isinstance(decided, OrderCancelRefused):
        story.changes_nothing().leaves(status=Status.COMPLETED)
    else:
        story.leaves(balance_minor=MAX_BALANCE_MINOR)


@pytest.mark.parametrize(
    ("received", "decided"),
    [
        (2, OrderCancelled(ANN, PEN, 3, 3000)),
        (3, OrderCancelRefused(Reason.STOCK_LIMIT)),
    ],
)
def test_a_return_fills_the_stock_to_its_limit_and_not_a_unit_over(
    received: int, decided: OrderCancelled | OrderCancelRefused
) -> None:
    story = given_state(shelf=ProductState(1000, MAX_STOCK - 2, MAX_STOCK))
    story.when(order(3), receipt(received), cancel()).then(decided)
    if isinstance(decided, OrderCancelRefused):
        story.changes_nothing().leaves(status=Status.COMPLETED)
    else:
        story.leaves(stock=MAX_STOCK)


def test_the_balance_limit_is_reported_before_the_stock_limit() -> None:
    story = given_state(MAX_BALANCE_MINOR, ProductState(1000, MAX_STOCK, MAX_STOCK))
    story.when(order(), credit(1), receipt(1), cancel())
    story.then(OrderCancelRefused(Reason.BALANCE_LIMIT))


def test_a_cancel_that_met_a_limit_works_once_there_is_room() -> None:
    story = given_state(MAX_BALANCE_MINOR).when(order(), credit(1), cancel())
    story.then(OrderCancelRefused(Reason.BALANCE_LIMIT))
    story.when(order(at=OTHER_ORDER), cancel()).then(OrderCancelled(ANN, PEN, 1, 1000))


def test_an_order_whose_product_is_unknown_is_not_cancelled() -> None:
    story = given(customer(), product(), order())
    del story.fold.products[PEN]
    story.when(cancel(at=ORDER)).then(OrderCancelRefused(Reason.NOT_COMPLETED)).changes_nothing()
