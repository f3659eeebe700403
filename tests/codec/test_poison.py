"""Poison: what can't become an event is rejected with its reason, and the line goes on."""

import json
import re
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ledger.core.events import DECIDED
from ledger.eventlog.codec import (
    Rejected,
    Unreadable,
    decode_group,
    decode_payload,
    encode_group,
    encode_payload,
    encode_submitted,
)
from ledger.eventlog.records import Submitted, decided_id
from ledger.runtime.timestamps import MAX_US

from .strategies import GOOD, submitted

GOOD_BYTES = json.dumps(GOOD).encode()
DEEP = 100_000
V8 = UUID(bytes=decided_id(UUID(GOOD["id"]).bytes, 0))


def wire(**spoiled: object) -> bytes:
    return json.dumps(GOOD | spoiled).encode()


def without(field: str) -> bytes:
    return json.dumps({key: value for key, value in GOOD.items() if key != field}).encode()


def amount(literal: bytes) -> bytes:
    """The good event with this literal, whatever it is, in the place of its amount."""
    return GOOD_BYTES.replace(b'"amount_minor": 5', b'"amount_minor": ' + literal)


def data_of(name: str, /, **fields: object) -> bytes:
    return wire(type=name, data=fields)


def username(literal: bytes) -> bytes:
    event = data_of("customer.registered", username="HERE")
    return event.replace(b'"HERE"', literal)


PLACED: dict[str, Any] = {"customer_id": str(UUID(int=1)), "product_id": str(UUID(int=2))}
LISTED = {"name": "pen", "description": "", "base_price_minor": 1, "initial_stock": 0}

POISON: dict[str, tuple[bytes, str]] = {
    "a number": (b"1", "Expected `object`"),
    "null": (b"null", "Expected `object`"),
    "an empty object": (b"{}", "missing required field"),
    "a group in a group": (b"[" + GOOD_BYTES + b"]", "Expected `object`"),
    "specversion 0.3": (wire(specversion="0.3"), "specversion"),
    "specversion as a number": (wire(specversion=1.0), "specversion"),
    "no specversion": (without("specversion"), "specversion"),
    "no id": (without("id"), "id"),
    "no subject": (without("subject"), "subject"),
    "no source": (without("source"), "source"),
    "no type": (without("type"), "type"),
    "no time": (without("time"), "time"),
    "no data": (without("data"), "amount_minor"),
    "an id that is no UUID": (wire(id="order-1"), r"UUID.*\$\.id"),
    "an id of UUID version 8": (wire(id=str(V8)), "version 8"),
    "an id of UUID version 8 without hyphens": (wire(id=V8.hex), "version 8"),
    "an id of UUID version 8 in capitals": (wire(id=str(V8).upper()), "version 8"),
    "a subject that is no UUID": (wire(subject="ann"), r"UUID.*\$\.subject"),
    "an empty source": (wire(source=""), "source"),
    "a source that is too long": (wire(source="x" * 201), "source"),
    "an unknown type": (wire(type="order.shipped"), "order.shipped"),
    "a type in other letters": (wire(type="Wallet.Credited"), "Wallet.Credited"),
    "no time zone": (wire(time="2025-01-01T00:00:00"), "timezone"),
    "a time before 1970": (wire(time="1969-12-31T23:59:59.999999Z"), "1970"),
    "a time before 1970 in UTC": (wire(time="1970-01-01T00:00:00+00:01"), "1970"),
    "a time before the year 1 in UTC": (wire(time="0001-01-01T00:00:00+23:59"), "1970"),
    "a time after 9999 in UTC": (wire(time="9999-12-31T23:59:59-00:01"), "9999"),
    "a time as a number": (wire(time=1735689600), "datetime"),
    "a day that is not": (wire(time="2025-02-30T00:00:00Z"), "RFC3339"),
    "schemaversion 0": (wire(schemaversion=0), "not 0"),
    "schemaversion -1": (wire(schemaversion=-1), "not -1"),
    "schemaversion of the future": (wire(schemaversion=99), "not 99"),
    "schemaversion as text": (wire(schemaversion="1"), "schemaversion"),
    "a huge schemaversion": (wire(schemaversion=10**4000), "not 1000"),
    "data as a list": (wire(data=[5]), "Expected `object`"),
    "data as text": (wire(data='{"amount_minor":5}'), "Expected `object`"),
    "data null": (wire(data=None), "Expected `object`"),
    "1e3 for an integer": (amount(b"1e3"), "Expected `int`"),
    "1.5 for an integer": (amount(b"1.5"), "Expected `int`"),
    "1.0 for an integer": (amount(b"1.0"), "Expected `int`"),
    "1e400 for an integer": (amount(b"1e400"), "out of range"),
    "text for an integer": (amount(b'"5"'), "Expected `int`"),
    "true for an integer": (amount(b"true"), "Expected `int`"),
    "null for an integer": (amount(b"null"), "Expected `int`"),
    "2**64": (amount(b"18446744073709551616"), "<= 1000000000000"),
    "a 30-digit integer": (amount(b"9" * 30), "<= 1000000000000"),
    "a 5,000-digit integer": (amount(b"9" * 5000), "out of range"),
    "a credit of nothing": (amount(b"0"), ">= 1"),
    "a credit below zero": (amount(b"-5"), ">= 1"),
    "a credit over the limit": (amount(b"1000000000001"), "<= 1000000000000"),
    "an unknown field": (wire(data={"amount_minor": 5, "euros": 1}), "unknown field `euros`"),
    "a field of another type": (wire(data={"quantity": 5}), "unknown field `quantity`"),
    "a missing field": (wire(data={}), "missing required field `amount_minor`"),
    "a precondition where there can be none": (
        data_of("order.placed", **PLACED, expected_position=1),
        "unknown field `expected_position`",
    ),
    "a history that ends after 9999": (
        data_of(
            "order.placed", **PLACED, history={"status": "FAILED", "updated_at_us": MAX_US + 1}
        ),
        "<= 253402300799999999",
    ),
    "a history that is not decided": (
        data_of("order.placed", **PLACED, history={"status": "PENDING", "updated_at_us": 0}),
        "PENDING",
    ),
    "a history that is null": (data_of("order.placed", **PLACED, history=None), "history"),
    "an imported stock below zero": (data_of("product.listed", **LISTED, stock=-1), ">= 0"),
    "a precondition before the first position": (
        wire(data={"amount_minor": 5, "expected_position": -1}),
        ">= 0",
    ),
    "a precondition beyond any position": (
        wire(data={"amount_minor": 5, "expected_position": 2**63}),
        "<= 9223372036854775807",
    ),
    "a precondition as text": (
        wire(data={"amount_minor": 5, "expected_position": '"7-a"'}),
        "Expected `int",
    ),
    "data where there is none": (
        wire(type="order.cancel-requested", data={"why": "late"}),
        "unknown field `why`",
    ),
    "text with broken UTF-8": (username(b'"\xff"'), "utf-8"),
    "text with a surrogate as bytes": (username(b'"\xed\xa0\x80"'), "utf-8"),
    "text with an overlong form": (username(b'"\xc0\xaf"'), "utf-8"),
    "an empty username": (username(b'""'), "length >= 1"),
    "a username that is too long": (
        data_of("customer.registered", username="é" * 101),
        "length <= 100",
    ),
    "an opening balance below zero": (
        data_of("customer.registered", username="ann", opening_balance_minor=-1),
        ">= 0",
    ),
    "an opening balance over the limit": (
        data_of("customer.registered", username="ann", opening_balance_minor=10**12 + 1),
        "<= 1000000000000",
    ),
    "a product without a name": (data_of("product.listed", **LISTED | {"name": ""}), ">= 1"),
    "a name that is too long": (
        data_of("product.listed", **LISTED | {"name": "x" * 201}),
        "<= 200",
    ),
    "a description that is too long": (
        data_of("product.listed", **LISTED | {"description": "x" * 2001}),
        "<= 2000",
    ),
    "a product for nothing": (data_of("product.listed", **LISTED | {"base_price_minor": 0}), ">="),
    "a stock below zero": (data_of("product.listed", **LISTED | {"initial_stock": -1}), ">= 0"),
    "a stock over the limit": (
        data_of("product.listed", **LISTED | {"initial_stock": 1_000_000_001}),
        "<= 1000000000 ",
    ),
    "a receipt of nothing": (data_of("stock.received", quantity=0), ">= 1"),
    "a receipt over the limit": (
        data_of("stock.received", quantity=1_000_000_001),
        "<= 1000000000 ",
    ),
    "a price of nothing": (data_of("price.changed", base_price_minor=0), ">= 1"),
    "a price over the limit": (
        data_of("price.changed", base_price_minor=10**12 + 1),
        "<= 1000000000000 ",
    ),
    "an order of nothing": (data_of("order.placed", **PLACED, quantity=0), ">= 1"),
    "an order over the limit": (
        data_of("order.placed", **PLACED, quantity=1_000_001),
        "<= 1000000 ",
    ),
    "an order by no UUID": (data_of("order.placed", **PLACED | {"customer_id": "ann"}), "UUID"),
    "an order of no product": (data_of("order.placed", customer_id=str(UUID(int=1))), "product_id"),
    **{
        f"{name}, which only the fold decides": (wire(type=name, data={}), f"'{name}'")
        for name in DECIDED
    },
}

AT_THE_LIMIT: dict[str, bytes] = {
    "a credit": amount(b"1000000000000"),
    "a source": wire(source="x" * 200),
    "a username": data_of("customer.registered", username="\N{DESERT ISLAND}" * 100),
    "an opening balance": data_of(
        "customer.registered", username="x", opening_balance_minor=10**12
    ),
    "no opening balance": data_of("customer.registered", username="\x00", opening_balance_minor=0),
    "a name": data_of("product.listed", **LISTED | {"name": "é" * 200}),
    "a description": data_of("product.listed", **LISTED | {"description": "é" * 2000}),
    "a stock": data_of("product.listed", **LISTED | {"initial_stock": 10**9}),
    "a base price": data_of("product.listed", **LISTED | {"base_price_minor": 10**12}),
    "a receipt": data_of("stock.received", quantity=10**9),
    "a price": data_of("price.changed", base_price_minor=10**12),
    "an order": data_of("order.placed", **PLACED, quantity=10**6),
    "paired surrogates": username(b'"\\ud83c\\udfdd"'),
}

MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "white space": b" \n",
    "text": b"not JSON",
    "half a group": b"[" + GOOD_BYTES,
    "half an event": b"[" + GOOD_BYTES[:-1],
    "two groups": b"[] []",
    "a trailing comma": b"[" + GOOD_BYTES + b",]",
    "a byte order mark": b"\xef\xbb\xbf[]",
    "UTF-16": "[]".encode("utf-16"),
    "zero bytes": bytes(16),
    "broken UTF-8": b"\xff\xfe[",
    "one event and no group": GOOD_BYTES,
    "an object": b'{"events": []}',
    "null": b"null",
    "a number": b"7",
    "a string": b'"[]"',
    "NaN": b"[" + amount(b"NaN") + b"]",
    "Infinity": b"[" + amount(b"-Infinity") + b"]",
    "a hexadecimal number": b"[" + amount(b"0x10") + b"]",
    "a leading zero": b"[" + amount(b"007") + b"]",
    "a raw control character": b"[" + username(b'"a\nb"') + b"]",
    "an unpaired surrogate": b"[" + username(b'"\\ud800"') + b"]",
    "surrogates the wrong way round": b"[" + username(b'"\\udc00\\ud800"') + b"]",
    "an unpaired surrogate as a type": b"[" + wire(type="\ud800") + b"]",
    "100,000 open brackets": b"[" * DEEP,
    "100,000 nested lists": b"[" * DEEP + b"]" * DEEP,
    "100,000 nested objects": b"[" + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"]",
    "deep data": b"[" + GOOD_BYTES.replace(b"5", b"[" * DEEP + b"]" * DEEP) + b"]",
}


@pytest.mark.parametrize("label", POISON)
def test_poison_is_rejected_with_a_reason_and_its_neighbours_survive(label: str) -> None:
    bad, reason = POISON[label]
    events, rejected = decode_group(encode_group([GOOD_BYTES, bad, GOOD_BYTES]))
    assert [event.event_id for event in events] == [UUID(GOOD["id"])] * 2
    (parked,) = rejected
    assert parked.body == bad
    assert re.search(reason, parked.reason)


@pytest.mark.parametrize("label", MALFORMED)
def test_a_body_that_no_json_reader_gets_through_is_rejected(label: str) -> None:
    body = MALFORMED[label]
    events, rejected = decode_group(body)
    assert events == []
    (parked,) = rejected
    # Python 3.14 bounds recursion by bytes of stack: it gets further, and finds one bad element.
    assert parked.body == body if parked.whole else parked.body == body[1:-1]
    assert parked.reason
    parked.reason.encode()


def test_the_event_that_the_poison_is_made_from_is_good() -> None:
    events, rejected = decode_group(encode_group([GOOD_BYTES]))
    assert len(events) == 1
    assert rejected == []


@pytest.mark.parametrize("label", AT_THE_LIMIT)
def test_what_is_just_within_the_limits_is_taken(label: str) -> None:
    events, rejected = decode_group(encode_group([AT_THE_LIMIT[label]]))
    assert len(events) == 1
    assert rejected == []


def test_every_kind_of_poison_in_one_group_costs_only_itself() -> None:
    group = [each for bad, _ in POISON.values() for each in (GOOD_BYTES, bad)]
    events, rejected = decode_group(encode_group(group))
    assert len(events) == len(POISON)
    assert [parked.body for parked in rejected] == [bad for bad, _ in POISON.values()]


@given(st.lists(st.one_of(submitted, st.sampled_from([bad for bad, _ in POISON.values()]))))
def test_good_and_bad_are_told_apart_in_order(mixed: list[Submitted | bytes]) -> None:
    sent = [each if isinstance(each, bytes) else encode_submitted(each, "t") for each in mixed]
    events, rejected = decode_group(encode_group(sent))
    good = [each.event_id for each in mixed if isinstance(each, Submitted)]
    assert [event.event_id for event in events] == good
    assert [parked.body for parked in rejected] == [b for b in mixed if isinstance(b, bytes)]


@given(st.binary(max_size=200))
@example(b"[[]]")
@example(b'[{"id":"\xff"}]')
def test_the_decoder_raises_for_no_bytes_whatsoever(body: bytes) -> None:
    events, rejected = decode_group(body)
    assert events == []
    assert all(isinstance(each, Rejected) and each.reason for each in rejected)


@given(st.lists(submitted, min_size=1, max_size=3), st.data())
def test_damaged_bytes_are_rejected_or_become_events_that_can_be_kept(
    events: list[Submitted], data: st.DataObject
) -> None:
    body = bytearray(encode_group(encode_submitted(event, "t") for event in events))
    for at in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=4)):
        body[at] = data.draw(st.integers(0, 255))
    read, rejected = decode_group(bytes(body))
    assert read or rejected or body.strip() == b"[]"
    for event in read:
        encode_payload(event.payload)
        encode_submitted(event, "t")
        assert event.event_id.version != 8


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.sampled_from(sorted(GOOD)), json_values)
def test_no_value_in_any_field_spoils_a_neighbour(field: str, value: object) -> None:
    try:
        spoiled = json.dumps(GOOD | {field: value}, allow_nan=False).encode()
    except ValueError:
        return
    events, rejected = decode_group(encode_group([GOOD_BYTES, spoiled, GOOD_BYTES]))
    assert len(events) + len(rejected) == 3
    assert len(events) >= 2


@pytest.mark.parametrize("name", ["", "order.shipped", "ORDER.PLACED", "customer.registered "])
def test_a_record_of_an_unknown_type_is_unreadable(name: str) -> None:
    with pytest.raises(Unreadable, match="unknown event type"):
        decode_payload(name, 1, b"{}")
