"""The price of an order, by the share of the stock that the sale finds."""

from decimal import localcontext
from fractions import Fraction
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ledger.core.decider import ProductState
from ledger.core.events import MAX_AMOUNT_MINOR, MAX_STOCK, OrderCompleted
from ledger.core.pricing import unit_price_minor
from tests.submissions import ANN, PEN, customer, order, product

from .story import given as given_history
from .story import given_state


@pytest.mark.parametrize(
    ("stock", "initial_stock", "unit_price"),
    [
        (100, 100, 1000),
        (51, 100, 1000),
        (50, 100, 1200),
        (26, 100, 1200),
        (25, 100, 1500),
        (1, 100, 1500),
        (101, 100, 1000),
        (2, 3, 1000),
        (1, 3, 1200),
        (1, 2, 1200),
        (1, 4, 1500),
        (1, 1, 1000),
        (1, 0, 1000),
        (500_000_001, MAX_STOCK, 1000),
        (500_000_000, MAX_STOCK, 1200),
        (250_000_001, MAX_STOCK, 1200),
        (250_000_000, MAX_STOCK, 1500),
    ],
)
def test_an_order_pays_by_the_share_of_stock_it_finds(
    stock: int, initial_stock: int, unit_price: int
) -> None:
    (
        given_state(shelf=ProductState(1000, stock, initial_stock))
        .when(order(1))
        .then(OrderCompleted(ANN, PEN, 1, unit_price, unit_price))
    )


def test_an_initial_stock_of_zero_counts_as_one() -> None:
    assert unit_price_minor(1000, 0, 0) == unit_price_minor(1000, 0, 1) == 1500
    assert unit_price_minor(1000, 1, 0) == unit_price_minor(1000, 1, 1) == 1000


@pytest.mark.parametrize(
    ("base_minor", "stock", "unit_price"),
    [
        (1, 1, 2),  # 1.5
        (3, 1, 5),  # 4.5, which half-even would round down
        (5, 1, 8),  # 7.5
        (15, 1, 23),  # 22.5, which half-even would round down
        (2, 1, 3),  # 3 exactly
        (1, 2, 1),  # 1.2
        (2, 2, 2),  # 2.4
        (3, 2, 4),  # 3.6
        (999, 2, 1199),  # 1198.8
        (MAX_AMOUNT_MINOR - 1, 1, 1_499_999_999_999),  # ….5
    ],
)
def test_a_unit_price_is_rounded_half_up_to_the_cent(
    base_minor: int, stock: int, unit_price: int
) -> None:
    (
        given_state(10**14, ProductState(base_minor, stock, 4))
        .when(order(1))
        .then(OrderCompleted(ANN, PEN, 1, unit_price, unit_price))
    )


@pytest.mark.parametrize(
    ("stock", "quantity", "unit_price"), [(100, 100, 1000), (50, 50, 1200), (25, 2, 1500)]
)
def test_one_unit_price_holds_for_the_whole_quantity(
    stock: int, quantity: int, unit_price: int
) -> None:
    (
        given_state(shelf=ProductState(1000, stock, 100))
        .when(order(quantity))
        .then(OrderCompleted(ANN, PEN, quantity, unit_price, unit_price * quantity))
    )


def test_rounding_comes_before_the_multiplication_by_the_quantity() -> None:
    story = given_state(shelf=ProductState(1, 10, 100)).when(order(10))
    story.then(OrderCompleted(ANN, PEN, 10, 2, 20))


def test_the_price_of_an_order_is_that_of_the_stock_before_it() -> None:
    story = given_history(customer(), product(1000, 4))
    paid: list[int] = []
    for number in range(4):
        story.when(order(1, at=UUID(int=number)))
        paid.extend(e.total_minor for e in story.decided if isinstance(e, OrderCompleted))
    assert paid == [1000, 1000, 1200, 1500]


@given(
    st.integers(1, MAX_AMOUNT_MINOR),
    st.integers(0, MAX_STOCK),
    st.integers(0, MAX_STOCK),
)
@example(1, 1, 2)
@example(3, 1, 4)
def test_every_price_equals_exact_arithmetic(base_minor: int, stock: int, initial: int) -> None:
    left = Fraction(stock, max(initial, 1))
    factor = Fraction(3, 2)
    if left > Fraction(1, 4):
        factor = Fraction(6, 5)
    if left > Fraction(1, 2):
        factor = Fraction(1)
    exact = base_minor * factor
    price = unit_price_minor(base_minor, stock, initial)
    assert exact - Fraction(1, 2) < price <= exact + Fraction(1, 2)


def test_the_decimal_precision_of_the_surroundings_changes_no_price() -> None:
    with localcontext() as context:
        context.prec = 3
        assert unit_price_minor(99_999, 1, 2) == 119_999
