"""Customers, wallets, products, stock and prices: what is taken in, and what is refused."""

from uuid import UUID

import pytest

from ledger.core.decider import CustomerState, ProductState, Status
from ledger.core.events import (
    DEFAULT_BALANCE_MINOR,
    MAX_AMOUNT_MINOR,
    MAX_BALANCE_MINOR,
    MAX_STOCK,
    CustomerRegistered,
    OrderCompleted,
    Reason,
    SubmissionRefused,
)
from tests.submissions import (
    ANN,
    NOBODY,
    ORDER,
    PEN,
    Submission,
    cancel,
    credit,
    customer,
    erasure,
    order,
    price,
    product,
    receipt,
)

from .story import given, given_state

EVERYTHING = (customer(), product(), order())


def test_a_customer_starts_with_the_opening_balance() -> None:
    given().when(customer(123)).then().leaves(balance_minor=123)


def test_the_default_opening_balance_is_5000_00() -> None:
    story = given().when((ANN, CustomerRegistered("ann"))).then()
    story.leaves(balance_minor=DEFAULT_BALANCE_MINOR)
    assert DEFAULT_BALANCE_MINOR == 5000_00


def test_an_erasure_moves_neither_money_nor_stock_nor_an_order() -> None:
    story = given(*EVERYTHING).when(erasure()).then()
    story.leaves(balance_minor=499_000, stock=9, initial_stock=10, status=Status.COMPLETED)
    story.when(credit(1), cancel()).leaves(balance_minor=500_001, status=Status.CANCELLED)


def test_a_second_erasure_takes_effect_as_the_first_did() -> None:
    given(customer(7), erasure()).when(erasure()).then().leaves(balance_minor=7)


@pytest.mark.parametrize("at", [NOBODY, PEN, ORDER])
def test_who_is_no_customer_can_not_be_erased(at: UUID) -> None:
    refused = SubmissionRefused(Reason.UNKNOWN_CUSTOMER)
    given(*EVERYTHING).when(erasure(at)).then(refused).changes_nothing()


def test_an_erased_customer_can_not_be_registered_again() -> None:
    story = given(customer(), erasure()).when(customer(1))
    story.then(SubmissionRefused(Reason.DUPLICATE_CUSTOMER)).changes_nothing()


def test_a_product_starts_with_its_stock_as_the_initial_stock() -> None:
    story = given().when(product(1000, 7)).then()
    assert story.fold.products == {PEN: ProductState(1000, 7, 7, 1)}


def test_a_credit_adds_to_the_wallet() -> None:
    given(customer(1)).when(credit(99)).then().leaves(balance_minor=100)


def test_received_stock_makes_the_sum_the_new_initial_stock() -> None:
    story = given(customer(), product(1000, 10), order(8)).when(receipt(5)).then()
    story.leaves(stock=7, initial_stock=7)


def test_received_stock_makes_the_price_plain_again() -> None:
    (
        given(customer(), product(1000, 10), order(8), receipt(1))
        .when(order(1, at=NOBODY))
        .then(OrderCompleted(ANN, PEN, 1, 1000, 1000))
    )


def test_received_stock_keeps_the_base_price() -> None:
    story = given(product(1234, 1)).when(receipt(1)).then()
    assert story.fold.products[PEN] == ProductState(1234, 2, 2, story.position)


def test_a_new_price_holds_from_the_next_order_on_and_moves_no_stock() -> None:
    (
        given(customer(), product(1000, 10), order(4))
        .when(price(2000))
        .then()
        .leaves(stock=6, initial_stock=10)
        .when(order(1, at=NOBODY))
        .then(OrderCompleted(ANN, PEN, 1, 2000, 2000))
    )


def test_a_new_price_is_multiplied_like_the_first_one() -> None:
    story = given_state(shelf=ProductState(1000, 5, 10)).when(price(2000), order())
    story.then(OrderCompleted(ANN, PEN, 1, 2400, 2400))


@pytest.mark.parametrize("at", [ANN, PEN, ORDER])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("customer", Reason.DUPLICATE_CUSTOMER),
        ("product", Reason.DUPLICATE_PRODUCT),
        ("order", Reason.DUPLICATE_ORDER),
    ],
)
def test_an_id_in_use_by_any_kind_is_never_given_again(at: UUID, kind: str, reason: Reason) -> None:
    again = {"customer": customer(7, at), "product": product(7, 7, at), "order": order(7, at)}
    story = given(*EVERYTHING).when(again[kind])
    story.then(SubmissionRefused(reason)).changes_nothing()


@pytest.mark.parametrize(
    ("submission", "reason"),
    [
        (credit(1, at=NOBODY), Reason.UNKNOWN_CUSTOMER),
        (credit(1, at=PEN), Reason.UNKNOWN_CUSTOMER),
        (credit(1, at=ORDER), Reason.UNKNOWN_CUSTOMER),
        (receipt(1, at=NOBODY), Reason.UNKNOWN_PRODUCT),
        (receipt(1, at=ANN), Reason.UNKNOWN_PRODUCT),
        (receipt(1, at=ORDER), Reason.UNKNOWN_PRODUCT),
        (price(1, at=NOBODY), Reason.UNKNOWN_PRODUCT),
        (price(1, at=ANN), Reason.UNKNOWN_PRODUCT),
        (price(1, at=ORDER), Reason.UNKNOWN_PRODUCT),
        (cancel(at=NOBODY), Reason.UNKNOWN_ORDER),
    ],
)
def test_an_event_about_an_unknown_customer_or_product_is_refused_and_changes_nothing(
    submission: Submission, reason: Reason
) -> None:
    story = given(*EVERYTHING).when(submission)
    story.then(SubmissionRefused(reason)).changes_nothing()


def test_a_wallet_fills_to_its_limit_and_not_a_cent_over() -> None:
    (
        given_state(MAX_BALANCE_MINOR - MAX_AMOUNT_MINOR)
        .when(credit(MAX_AMOUNT_MINOR))
        .then()
        .leaves(balance_minor=MAX_BALANCE_MINOR)
        .when(credit(1))
        .then(SubmissionRefused(Reason.BALANCE_LIMIT))
        .changes_nothing()
    )


def test_a_stock_fills_to_its_limit_and_not_a_unit_over() -> None:
    (
        given(product(stock=0))
        .when(receipt(MAX_STOCK))
        .then()
        .leaves(stock=MAX_STOCK, initial_stock=MAX_STOCK)
        .when(receipt(1))
        .then(SubmissionRefused(Reason.STOCK_LIMIT))
        .changes_nothing()
    )


def test_a_refused_submission_takes_no_id() -> None:
    story = given().when(credit(1), price(1, at=ANN), cancel(at=ANN)).when(customer(5))
    story.then().leaves(balance_minor=5)
    assert story.fold.customers == {ANN: CustomerState(5, story.position)}
