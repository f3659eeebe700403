"""Money: exact both ways, or refused."""

from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.core.events import MAX_BALANCE_MINOR
from ledger.core.money import NotMoney, multiply_half_up, to_amount, to_minor

BALANCES = st.integers(-MAX_BALANCE_MINOR, MAX_BALANCE_MINOR)


@pytest.mark.parametrize(
    ("amount", "minor"),
    [
        ("0", 0),
        ("-0.00", 0),
        ("0.01", 1),
        ("0.1", 10),
        ("5000.00", 500_000),
        ("99450", 9_945_000),
        ("1E+3", 100_000),
        ("1.10000000000000000000000000000000000000", 110),
        ("-12.34", -1234),
        ("10000000000000.00", MAX_BALANCE_MINOR),
        ("10000000000000000000.01", 10**21 + 1),
    ],
)
def test_an_amount_is_read_exactly(amount: str, minor: int) -> None:
    assert to_minor(Decimal(amount)) == minor


@pytest.mark.parametrize(
    "amount",
    [
        "0.001",
        "1.005",
        "-0.009",
        "1E-3",
        "1E-999999",
        "1.000000000000000000000000000001",
        "123456789012345678901234567890.001",
    ],
)
def test_what_has_more_than_two_decimals_is_refused_and_never_rounded(amount: str) -> None:
    with pytest.raises(NotMoney, match="two decimals"):
        to_minor(Decimal(amount))


@pytest.mark.parametrize("amount", ["NaN", "-NaN", "sNaN", "Infinity", "-Infinity"])
def test_what_is_not_finite_is_refused(amount: str) -> None:
    with pytest.raises(NotMoney, match="finite"):
        to_minor(Decimal(amount))


@pytest.mark.parametrize("amount", ["1E+400000", "-1E+999999", "9E+999998"])
def test_an_absurd_exponent_is_refused_without_being_counted_out(amount: str) -> None:
    with pytest.raises(NotMoney):
        to_minor(Decimal(amount))


def test_the_decimal_precision_of_the_surroundings_changes_no_amount() -> None:
    with localcontext() as context:
        context.prec = 3
        assert to_minor(Decimal("12345.67")) == 1_234_567
        with pytest.raises(NotMoney):
            to_minor(Decimal("12345.678"))


@pytest.mark.parametrize(
    ("minor", "amount"),
    [
        (0, "0.00"),
        (1, "0.01"),
        (10, "0.10"),
        (99, "0.99"),
        (500_000, "5000.00"),
        (-1, "-0.01"),
        (-150, "-1.50"),
        (MAX_BALANCE_MINOR, "10000000000000.00"),
    ],
)
def test_an_amount_is_shown_with_two_decimals(minor: int, amount: str) -> None:
    assert to_amount(minor) == amount


@given(BALANCES)
def test_what_is_shown_is_read_back_to_the_cent(minor: int) -> None:
    assert to_minor(Decimal(to_amount(minor))) == minor


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_an_amount_is_either_exact_or_refused(amount: Decimal) -> None:
    try:
        minor = to_minor(amount)
    except NotMoney:
        return
    assert Decimal(to_amount(minor)) == amount


@pytest.mark.parametrize(
    ("minor", "factor", "product"),
    [(3, "1.5", 5), (5, "1.5", 8), (1, "0.5", 1), (1, "0.49", 0), (7, "1.0", 7), (0, "1.5", 0)],
)
def test_a_product_is_rounded_half_up(minor: int, factor: str, product: int) -> None:
    assert multiply_half_up(minor, Decimal(factor)) == product
