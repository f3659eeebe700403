"""What can be told of requests without a server: JSON, numbers, preferences, keys."""

from contextlib import suppress
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.requests import Request

from api.idempotency import Keys, draft, draft_batch
from api.parameters import MAX_WAIT_S, POSITION_FORM
from api.prefer import Preference, preference
from api.problems import Problem
from api.requests import invalid_fields, parse_json
from api.responses import problem_response
from api.schemas import Deposit, PlaceOrder, money
from ledger.core.events import MAX_AMOUNT_MINOR, CustomerRegistered, OrderPlaced
from ledger.eventlog.records import Submitted
from ledger.runtime.timestamps import format_us

NAME = UUID("43e8ff2f-5d48-498f-a569-ca2cf9f7fae3")


def request(**headers: str) -> Request:
    """A request with these headers."""
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw})


@given(st.integers(1, MAX_AMOUNT_MINOR))
def test_every_amount_goes_in_and_comes_out_to_the_cent(minor: int) -> None:
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
def test_no_bytes_make_the_reader_fail_in_another_way(body: bytes) -> None:
    with suppress(Problem, ValidationError):
        PlaceOrder.model_validate(parse_json(body))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.decimals() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON_VALUES)
def test_every_wrong_value_is_told_by_its_field(value: object) -> None:
    with pytest.raises(ValidationError) as raised:
        PlaceOrder.model_validate({"customer_id": value, "product_id": str(NAME)})
    assert [found.field for found in invalid_fields(raised.value).errors] == ["customer_id"]


@given(st.dictionaries(st.text(), st.none() | st.integers(), min_size=1))
def test_a_problem_about_any_names_can_be_written_down(names: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as raised:
        PlaceOrder.model_validate(names)
    assert problem_response(invalid_fields(raised.value), "/x").status_code == 422


@pytest.mark.parametrize(
    ("header", "default", "expected"),
    [
        ("wait=5", 0, Preference(5, True)),
        ("wait=0", 2, Preference(0, True)),
        ("Wait=5", 0, Preference(5, True)),
        ("respond-async, wait=10", 2, Preference(10, True)),
        ("wait=10; foo=bar", 2, Preference(10, True)),
        ('wait="7"', 2, Preference(7, True)),
        ("respond-async", 2, Preference(0, True)),
        ("wait=31", 0, Preference(MAX_WAIT_S, True)),
        (f"wait={'9' * 500}", 0, Preference(MAX_WAIT_S, True)),
        ("wait=3, wait=9", 0, Preference(3, True)),
        ("wait=-1", 2, Preference(2, False)),
        ("wait=soon", 2, Preference(2, False)),
        ("wait", 2, Preference(2, False)),
        ("return=minimal", 2, Preference(2, False)),
        (",;=,", 0, Preference(0, False)),
    ],
)
def test_what_a_client_prefers(header: str, default: int, expected: Preference) -> None:
    assert preference(request(prefer=header), default) == expected


def test_no_preference_is_none() -> None:
    assert preference(request(), 2) == Preference(2, False)


@pytest.mark.parametrize(
    ("wish", "decided", "applied"),
    [
        (Preference(5, True), True, {"Preference-Applied": "wait=5"}),
        (Preference(5, True), False, {"Preference-Applied": "respond-async"}),
        (Preference(0, True), True, {"Preference-Applied": "respond-async"}),
        (Preference(2, False), True, {}),
        (Preference(2, False), False, {}),
    ],
)
def test_which_preference_was_honoured(
    wish: Preference, decided: bool, applied: dict[str, str]
) -> None:
    assert wish.applied(decided) == applied


def test_a_key_makes_the_same_ids_on_every_process() -> None:
    """Golden: ids that change would let a retry after an upgrade be decided twice."""
    made = draft(request(idempotency_key="k-1"), "POST /customers", CustomerRegistered("ann"))
    assert made.ids == (made.event.event_id,)
    assert made.event.event_id == UUID("8d5082b3-0327-533f-b3f0-f61ff7666807")
    assert made.event.stream_id == UUID("d3c59fd8-177e-56de-9a74-5f01e4295fab")


def test_ids_differ_by_route_by_path_and_by_key() -> None:
    ids = {
        draft(request(idempotency_key=key), route, CustomerRegistered("ann"), stream).event.event_id
        for key in ("a", "b")
        for route in ("POST /customers", "POST /products")
        for stream in (None, NAME, UUID(int=1))
    }
    assert len(ids) == 12


def of_key(key: str) -> tuple[Submitted, ...]:
    """The events of a request with this key."""
    return draft(request(idempotency_key=key), "POST /customers", CustomerRegistered("ann")).events


def test_the_oldest_keys_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.idempotency.MAX_KEPT", 2)
    keys, kept = Keys(), {}
    for key in "abc":
        kept[key] = keys.claim(of_key(key))
    assert [keys.claim(of_key(key)) is kept[key] for key in "cba"] == [True, True, False]


def test_a_batch_counts_as_all_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.idempotency.MAX_KEPT", 10)
    keys, small = Keys(), of_key("a")
    kept = keys.claim(small)
    payloads = [OrderPlaced(NAME, NAME)] * 10
    keys.claim(draft_batch(request(idempotency_key="b"), "r", payloads, atomic=False).events)
    assert keys.claim(small) is not kept


def test_a_retry_gets_the_event_of_the_first_try() -> None:
    keys, first = Keys(), of_key("a")
    keys.claim(first)
    assert keys.claim(of_key("a")).events is first


def test_a_batch_asks_for_one_more_event_than_it_has() -> None:
    """Where the ledger has that one, the key came with a longer batch."""
    keyed = request(idempotency_key="b")
    payloads = [OrderPlaced(NAME, NAME)] * 3
    shorter = draft_batch(keyed, "r", payloads[:2], atomic=False)
    longer = draft_batch(keyed, "r", payloads, atomic=False)
    assert shorter.ids == longer.ids[:3]
    assert longer.ids[2] == longer.events[2].event_id


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
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(Problem):
        POSITION_FORM.parse("after", text)
