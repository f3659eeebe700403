"""What can be told of requests without a server: JSON and numbers."""

from contextlib import suppress
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from api.http.parameters import POSITION_FORM
from api.http.problems import Problem
from api.http.requests import invalid_fields, parse_json
from api.http.responses import problem_response
from api.schemas import Deposit, PlaceOrder, money
from ledger.core.events import MAX_AMOUNT_MINOR
from ledger.runtime.timestamps import format_us

NAME = UUID("43e8ff2f-5d48-498f-a569-ca2cf9f7fae3")


@given(st.integers(1, MAX_AMOUNT_MINOR))
def test_every_amount_is_read_and_written_exactly(minor: int) -> None:
    written = str(money(minor))
    assert Deposit.model_validate(parse_json(f'{{"amount": {written}}}'.encode())).amount == minor
    assert written == f"{minor // 100}.{minor % 100:02d}"


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_no_amount_is_ever_rounded(amount: Decimal) -> None:
    text = f'{{"amount": {amount}}}'.encode()
    try:
        minor = Deposit.model_validate(parse_json(text)).amount
    except ValidationError as error:
        [found] = invalid_fields(error).errors
        assert found.field == "amount"
    else:
        assert Decimal(minor) == amount.scaleb(2)


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_parsed_or_refused_as_a_problem(body: bytes) -> None:
    with suppress(Problem, ValidationError):
        PlaceOrder.model_validate(parse_json(body))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.decimals() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON_VALUES)
def test_every_invalid_value_is_reported_by_its_field(value: object) -> None:
    with pytest.raises(ValidationError) as raised:
        PlaceOrder.model_validate({"customer_id": value, "product_id": str(NAME)})
    assert [found.field for found in invalid_fields(raised.value).errors] == ["customer_id"]


@given(st.dictionaries(st.text(), st.none() | st.integers(), min_size=1))
def test_a_problem_with_any_field_names_can_be_encoded(names: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as raised:
        PlaceOrder.model_validate(names)
    assert problem_response(invalid_fields(raised.value), "/x").status_code == 422


@pytest.mark.parametrize(
    ("time_us", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1_700_000_000_000_001, "2023-11-14T22:13:20.000001Z"),
        (1_700_000_000_999_999, "2023-11-14T22:13:20.999999Z"),
    ],
)
def test_times_are_rfc_3339_to_the_microsecond(time_us: int, text: str) -> None:
    assert format_us(time_us) == text


@pytest.mark.parametrize("text", ["", "x", "-1", "+1", "1.0", " 1", "1_0", "²", "٣", "9" * 400])
def test_only_decimal_digits_are_a_whole_number(text: str) -> None:
    with pytest.raises(Problem):
        POSITION_FORM.parse("after", text)
