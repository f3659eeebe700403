"""What can be told of requests without a server: JSON and numbers."""

import re
import time
from contextlib import suppress
from decimal import Decimal
from urllib.parse import quote, urlencode
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from api.http.connection import MAX_HEAD, decoded_path
from api.http.exchange import Refused
from api.http.parameters import (
    HEADERS,
    POSITION_FORM,
    list_elements,
    parse_idempotency_key,
    read_headers,
)
from api.http.problems import Problem
from api.http.requests import invalid_fields, parse_json, read_query
from api.http.responses import problem_response
from api.schemas import Deposit, PlaceOrder, PlaceOrders, money
from ledger.core.events import MAX_AMOUNT_MINOR
from ledger.runtime.logs import mask_secrets
from ledger.runtime.timestamps import BadTimestamp, format_us, parse_rfc3339

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


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"quantity": 1e400}', "quantity must be at most 1000000"),
        ('{"quantity": 1e28}', "quantity must be at most 1000000"),
        ('{"quantity": -1e400}', "quantity must be at least 1"),
        ('{"quantity": 1e-400}', "quantity must be a whole number, without quotes"),
        ('{"quantity": 0e400}', "quantity must be at least 1"),
        ('{"": 1}', '"" is not a field of this request: leave it out'),
    ],
)
def test_a_number_out_of_range_and_a_name_without_letters_are_named(body: str, words: str) -> None:
    ids = f'"customer_id": "{NAME}", "product_id": "{NAME}"'
    with pytest.raises(ValidationError) as raised:
        PlaceOrder.model_validate(parse_json(f"{{{ids}, {body[1:]}".encode()))
    assert invalid_fields(raised.value).detail == words


@pytest.mark.parametrize("body", ['{"": 1, "": 2}', '{"": "\\ud800"}', '{"a": {"": 1, "": 2}}'])
def test_a_name_without_letters_is_shown_as_such(body: str) -> None:
    with pytest.raises(Problem, match=r'^"" '):
        parse_json(body.encode())


def test_a_parameter_without_a_name_is_shown_as_such() -> None:
    with pytest.raises(Problem, match=r'^"" is not a parameter: known here: limit$'):
        read_query(b"=1", ["limit"])


def test_a_list_that_is_too_short_is_told_so_in_words() -> None:
    with pytest.raises(ValidationError) as raised:
        PlaceOrders.model_validate({"orders": []})
    assert invalid_fields(raised.value).detail == "orders must have at least 1 element"


@given(st.text(st.sampled_from('"\\,;= a'), max_size=40))
def test_a_separator_in_a_quoted_string_separates_nothing(text: str) -> None:
    quoted = '"' + text.replace("\\", r"\\").replace('"', r"\"") + '"'
    assert list(list_elements(f"a={quoted};b={quoted}, c")) == [
        [f"a={quoted}", f"b={quoted}"],
        [" c"],
    ]


@pytest.mark.parametrize("part", ['"', '"\\', "\\", '"a', ",", ";", '"\\"', '";', '\\"'])
def test_a_list_is_read_in_time_that_grows_with_its_length_alone(part: str) -> None:
    started_at = time.perf_counter()
    list(list_elements(part * (MAX_HEAD // len(part))))
    assert time.perf_counter() - started_at < 0.5


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


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00.000000Z"),
        ("2016-12-31T23:59:60.25Z", "2017-01-01T00:00:00.250000Z"),
        ("2017-01-01T05:29:60+05:30", "2017-01-01T00:00:00.000000Z"),
        ("1972-06-30t23:59:60z", "1972-07-01T00:00:00.000000Z"),
    ],
)
def test_a_leap_second_is_the_first_one_after_it(text: str, read: str) -> None:
    assert format_us(parse_rfc3339(text)) == read


@pytest.mark.parametrize("digits", ["123456", "1234567", "1234569999", "123456" + "9" * 8000])
def test_digits_beyond_the_microsecond_are_cut_off(digits: str) -> None:
    assert format_us(parse_rfc3339(f"2026-01-31T12:00:00.{digits}Z")).endswith("00.123456Z")
    with pytest.raises(BadTimestamp) as raised:
        parse_rfc3339(f"2026-01-31T12:00:00.{digits}")
    assert len(str(raised.value)) < 100


@pytest.mark.parametrize(
    "text",
    [
        "2016-12-31T12:00:60Z",
        "2016-12-30T23:59:60Z",
        "2016-12-31T23:59:61Z",
        "2016-12-31T23:59:60+01:00",
        "9999-12-31T23:59:60Z",
    ],
)
def test_no_other_second_60_exists(text: str) -> None:
    with pytest.raises(BadTimestamp):
        parse_rfc3339(text)


@given(st.binary(max_size=200))
def test_any_path_is_looked_up_or_refused(raw_path: bytes) -> None:
    with suppress(Refused):
        path = decoded_path(raw_path)
        # Decoding adds no separator; one at the end may be left out.
        assert raw_path.count(b"/") - path.count("/") in (0, 1)


@given(st.lists(st.text(min_size=1)))
def test_a_path_has_the_segments_that_were_encoded(segments: list[str]) -> None:
    path = "/" + "/".join(quote(segment, safe="") for segment in segments)
    assert decoded_path(path.encode()) == "/" + "/".join(
        segment.replace("/", "%2F") for segment in segments
    )


@given(st.binary(max_size=200), st.lists(st.text()))
def test_any_query_is_read_or_refused(query: bytes, names: list[str]) -> None:
    with suppress(Problem):
        assert set(read_query(query, names)) <= set(names)


@given(st.dictionaries(st.text(), st.text(), max_size=20))
def test_a_query_is_read_as_it_was_encoded(values: dict[str, str]) -> None:
    assert read_query(urlencode(values).encode(), values) == values


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=100))
def test_every_key_may_be_in_quotes(key: str) -> None:
    escaped = key.replace("\\", r"\\").replace('"', r"\"")
    assert parse_idempotency_key("Idempotency-Key", f'"{escaped}"') == key


@given(st.text(max_size=300))
def test_any_idempotency_key_is_read_or_refused(text: str) -> None:
    with suppress(Problem):
        key = parse_idempotency_key("Idempotency-Key", text)
        assert key == text or (text[0] == text[-1] == '"' and len(key) <= len(text) - 2)


NAMES = [name.lower().encode() for name in ("Idempotency-Key", "Prefer", "If-None-Match", "X-Y")]


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.binary()), max_size=6))
def test_no_line_of_a_header_is_lost(lines: list[tuple[bytes, bytes]]) -> None:
    keys = [value for name, value in lines if name == b"idempotency-key"]
    if len(keys) > 1:
        with pytest.raises(Problem, match="Idempotency-Key"):
            read_headers(lines)
        return
    headers = read_headers(lines)
    for given_name in headers:
        values = [value for name, value in lines if name == given_name]
        assert headers[given_name] == b",".join(values)


@given(st.text(), st.text())
def test_any_header_value_is_read_or_refused(text: str, more: str) -> None:
    for header in HEADERS:
        with suppress(Problem):
            header.form.parse(header.name, f"{text},{more}")


URL_PARTS = st.lists(
    st.sampled_from(("amqp", "://", ":", "@", "/", " ", '"', "a", "s3cr3t", "bearer ")), max_size=30
).map("".join)


@given(URL_PARTS)
def test_passwords_are_masked_as_by_the_pattern_that_says_it_at_once(line: str) -> None:
    """The one below takes time that grows with the square of the line."""
    masked = re.sub(r"(\w://[^\s:/@\"]*:)[^\s\"]+(?=@)", r"\1***", line)
    assert mask_secrets(line) == re.sub(r"(?i)\b(bearer )[\w.~+/=-]{8,}", r"\1***", masked)


@pytest.mark.parametrize("text", ["", "x", "-1", "+1", "1.0", " 1", "1_0", "²", "٣", "9" * 400])
def test_only_decimal_digits_are_a_whole_number(text: str) -> None:
    with pytest.raises(Problem):
        POSITION_FORM.parse("after", text)
