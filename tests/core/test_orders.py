"""Placing an order: all or nothing, refused for the first reason of a fixed precedence."""

from itertools import product as combinations
from uuid import UUID

import pytest

from ledger.core.decider import OrderState, ProductState, Status
from ledger.core.events import (
    MAX_QUANTITY,
    OrderCompleted,
    OrderFailed,
    OrderPlaced,
    Reason,
    SubmissionRefused,
)
from tests.submissions import (
    ANN,
    BOB,
    INK,
    NOBODY,
    ORDER,
    OTHER_ORDER,
    PEN,
    Submission,
    cancel,
    credit,
    customer,
    order,
    product,
)

from .story import given, given_state


def test_a_completed_order_moves_money_and_stock_by_what_it_says() -> None:
    (
        given(customer(5000), product(1000, 10))
        .when(order(3))
        .then(OrderCompleted(ANN, PEN, 3, 1000, 3000))
        .leaves(balance_minor=2000, stock=7, initial_stock=10, status=Status.COMPLETED)
    )


def test_a_completed_order_touches_no_other_wallet_and_no_other_product() -> None:
    story = given(customer(), product(), customer(77, at=BOB), product(9, 9, at=INK))
    story.when(order())
    assert story.fold.customers[BOB].balance_minor == 77
    assert story.fold.products[INK] == ProductState(9, 9, 9, 4)


def test_an_order_remembers_what_a_cancel_must_pay_back() -> None:
    story = given(customer(), product(1000)).when(order(2))
    assert story.fold.orders[ORDER] == OrderState(
        ANN, PEN, 2, Status.COMPLETED, 2000, story.position
    )


def test_the_default_quantity_is_one() -> None:
    story = given(customer(), product(1000)).when((ORDER, OrderPlaced(ANN, PEN)))
    story.then(OrderCompleted(ANN, PEN, 1, 1000, 1000))


def test_the_last_unit_can_be_sold_and_nothing_after_it() -> None:
    (
        given(customer(), product(1000, 1))
        .when(order(1))
        .leaves(stock=0)
        .when(order(1, at=OTHER_ORDER))
        .then(OrderFailed(Reason.INSUFFICIENT_STOCK))
        .leaves(stock=0)
    )


def test_the_last_cent_can_be_spent_and_nothing_after_it() -> None:
    (
        given(customer(1000), product(1000, 10))
        .when(order(1))
        .leaves(balance_minor=0)
        .when(order(1, at=OTHER_ORDER))
        .then(OrderFailed(Reason.INSUFFICIENT_BALANCE))
        .leaves(balance_minor=0)
    )


@pytest.mark.parametrize(
    ("history", "quantity", "reason"),
    [
        ((customer(), product(stock=2)), 3, Reason.INSUFFICIENT_STOCK),
        ((customer(2999), product(1000)), 3, Reason.INSUFFICIENT_BALANCE),
        ((customer(0), product(1)), 1, Reason.INSUFFICIENT_BALANCE),
        ((customer(), product(stock=0)), 1, Reason.INSUFFICIENT_STOCK),
        ((customer(),), 1, Reason.UNKNOWN_PRODUCT),
        ((product(),), 1, Reason.UNKNOWN_CUSTOMER),
        ((), 1, Reason.UNKNOWN_PRODUCT),
    ],
)
def test_an_order_is_all_or_nothing(
    history: tuple[Submission, ...], quantity: int, reason: Reason
) -> None:
    story = given(*history).when(order(quantity))
    story.then(OrderFailed(reason)).leaves(status=Status.FAILED)
    customers, products, _ = story.before
    assert story.fold.customers == customers
    assert story.fold.products == products


def test_a_hundred_orders_for_one_unit_sell_it_once() -> None:
    story = given(customer(), product(100, 1))
    orders = [order(1, at=_id(number)) for number in range(100)]
    statuses = [story.when(each).fold.orders[each[0]].status for each in orders]
    assert statuses == [Status.COMPLETED] + [Status.FAILED] * 99
    story.leaves(stock=0, balance_minor=500_000 - 100)


def _id(number: int) -> UUID:
    return UUID(int=1 + number)


PRECEDENCE = [
    Reason.UNKNOWN_PRODUCT,
    Reason.UNKNOWN_CUSTOMER,
    Reason.INSUFFICIENT_STOCK,
    Reason.INSUFFICIENT_BALANCE,
]


@pytest.mark.parametrize("wrong", list(combinations([False, True], repeat=4)))
def test_refusals_follow_the_fixed_precedence(
    wrong: tuple[bool, bool, bool, bool],
) -> None:
    no_product, no_customer, no_stock, no_money = wrong
    story = given_state(0 if no_money else 10**9, ProductState(1000, 0 if no_stock else 10, 10))
    story.when(order(1, by=NOBODY if no_customer else ANN, of=NOBODY if no_product else PEN))
    reasons = [reason for reason, holds in zip(PRECEDENCE, wrong, strict=True) if holds]
    if reasons:
        story.then(OrderFailed(reasons[0])).leaves(status=Status.FAILED)
    else:
        story.then(OrderCompleted(ANN, PEN, 1, 1000, 1000))


@pytest.mark.parametrize(
    ("history", "again"),
    [
        ((customer(), product(), order()), order()),
        ((customer(), product(), order()), order(9)),
        ((customer(), product(), order()), order(by=NOBODY, of=NOBODY)),
        ((order(),), order()),
        ((customer(), product(), order(), cancel()), order()),
        ((customer(), product()), order(at=ANN)),
        ((customer(), product()), order(at=PEN)),
    ],
    ids=["same", "other quantity", "unknown", "failed", "cancelled", "a customer", "a product"],
)
def test_an_order_under_an_id_in_use_is_refused_before_anything_is_looked_at(
    history: tuple[Submission, ...], again: Submission
) -> None:
    story = given(*history).when(again)
    story.then(SubmissionRefused(Reason.DUPLICATE_ORDER)).changes_nothing()


@pytest.mark.parametrize(
    ("by", "of", "reason"),
    [
        (PEN, PEN, Reason.UNKNOWN_CUSTOMER),
        (ANN, ANN, Reason.UNKNOWN_PRODUCT),
        (OTHER_ORDER, PEN, Reason.UNKNOWN_CUSTOMER),
        (ANN, OTHER_ORDER, Reason.UNKNOWN_PRODUCT),
        (ORDER, PEN, Reason.UNKNOWN_CUSTOMER),
    ],
)
def test_an_id_of_another_kind_is_unknown(by: UUID, of: UUID, reason: Reason) -> None:
    story = given(customer(), product(), order(at=OTHER_ORDER)).when(order(by=by, of=of))
    story.then(OrderFailed(reason))


def test_a_failed_order_is_not_tried_again_when_the_money_arrives() -> None:
    story = given(customer(0), product(), order()).when(credit(10_000))
    story.then().leaves(balance_minor=10_000, status=Status.FAILED)


def test_the_dearest_order_the_limits_allow_fails_for_want_of_money_only() -> None:
    shelf = ProductState(10**12, 10**6, 10**9)
    story = given_state(10**15, shelf).when(order(MAX_QUANTITY))
    story.then(OrderFailed(Reason.INSUFFICIENT_BALANCE))
