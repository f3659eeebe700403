"""What another system decided is recorded as it was: it moves nothing, and is never undone."""

import pytest

from ledger.core.decider import ProductState, Status
from ledger.core.events import (
    OrderCancelRefused,
    OrderCancelRequested,
    OrderCompleted,
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
    cancel,
    customer,
    imported_order,
    imported_product,
    order,
    product,
)

from .story import given


@pytest.mark.parametrize("status", ["COMPLETED", "FAILED", "CANCELLED"])
def test_an_imported_order_has_its_status_and_moves_neither_money_nor_units(status: str) -> None:
    (
        given(customer(5000), product(1000, 10))
        .when(imported_order(status))  # type: ignore[arg-type]
        .then()
        .leaves(balance_minor=5000, stock=10, initial_stock=10, status=Status(status))
    )


def test_an_imported_order_may_name_what_the_old_system_had_deleted() -> None:
    story = given().when(imported_order(by=NOBODY, of=BOB)).then()
    story.leaves(status=Status.COMPLETED)
    story.when(cancel()).then(OrderCancelRefused(Reason.IMPORTED)).changes_nothing()


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("COMPLETED", Reason.IMPORTED),
        ("FAILED", Reason.NOT_COMPLETED),
        ("CANCELLED", Reason.ALREADY_CANCELLED),
    ],
)
def test_a_cancel_of_an_imported_order_pays_nothing_back(status: str, reason: Reason) -> None:
    story = given(customer(5000), product(1000, 10), imported_order(status))  # type: ignore[arg-type]
    story.when(cancel()).then(OrderCancelRefused(reason)).changes_nothing()


def test_a_cancel_with_a_stale_precondition_says_that_the_order_was_imported() -> None:
    story = given(customer(), product(), imported_order())
    story.when((ORDER, OrderCancelRequested(expected_position=99)))
    story.then(OrderCancelRefused(Reason.IMPORTED)).changes_nothing()


@pytest.mark.parametrize("at", [ANN, PEN, OTHER_ORDER])
def test_an_imported_order_under_an_id_that_is_taken_is_refused(at: object) -> None:
    story = given(customer(), product(), order(at=OTHER_ORDER)).when(imported_order(at=at))  # type: ignore[arg-type]
    story.then(SubmissionRefused(Reason.DUPLICATE_ORDER)).changes_nothing()


def test_an_imported_product_has_its_stock_and_is_priced_by_its_initial_stock() -> None:
    story = given(customer()).when(imported_product(stock=5, initial_stock=10)).then()
    assert story.fold.products == {PEN: ProductState(1000, 5, 10, 2)}
    story.when(order()).then(OrderCompleted(ANN, PEN, 1, 1200, 1200)).leaves(stock=4)
