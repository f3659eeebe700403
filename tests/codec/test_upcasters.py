"""Old shapes are read through upcasters and never written again."""

import json
from typing import Any
from uuid import UUID

import pytest

from ledger.core.events import OrderPlaced, ProductListed, WalletCredited
from ledger.eventlog import codec
from ledger.eventlog.codec import (
    Unreadable,
    decode_group,
    decode_payload,
    decode_recorded,
    encode_group,
    encode_payload,
    encode_submitted,
)
from ledger.eventlog.records import GENESIS_HASH, Record, Submitted, next_hash

from .strategies import GOOD

TYPE = "wallet.credited"


@pytest.fixture
def shape_of_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """wallet.credited as if it had said `euros` in v1, `cents` in v2 and amount_minor since."""

    def cents(data: dict[str, Any]) -> dict[str, Any]:
        return {"cents": data["euros"] * 100}

    def amount_minor(data: dict[str, Any]) -> dict[str, Any]:
        return {"amount_minor": data["cents"]}

    monkeypatch.setitem(codec.UPCASTERS, (TYPE, 1), cents)
    monkeypatch.setitem(codec.UPCASTERS, (TYPE, 2), amount_minor)
    monkeypatch.setitem(codec.CURRENT, TYPE, 3)


pytestmark = pytest.mark.usefixtures("shape_of_old")


def old_record(schema_version: int, data: bytes) -> Record:
    return Record(
        1, UUID(int=1).bytes, UUID(int=2).bytes, 1, TYPE, schema_version, 0, 5, 6, b"{}", data
    )


@pytest.mark.parametrize(
    ("schema_version", "data"),
    [(1, b'{"euros":7}'), (2, b'{"cents":700}'), (3, b'{"amount_minor":700}')],
)
def test_each_old_shape_is_upcast_step_by_step_to_the_current_one(
    schema_version: int, data: bytes
) -> None:
    assert decode_payload(TYPE, schema_version, data) == WalletCredited(700)


def test_reading_an_old_record_rewrites_neither_its_bytes_nor_its_hash() -> None:
    record = old_record(1, b'{"euros":7}')
    before = next_hash(GENESIS_HASH, record)
    assert decode_recorded(record).payload == WalletCredited(700)
    assert (record.data, record.schema_version) == (b'{"euros":7}', 1)
    assert next_hash(GENESIS_HASH, record) == before


def test_an_old_schema_version_from_a_client_is_accepted() -> None:
    wire = GOOD | {"schemaversion": 1, "data": {"euros": 7}}
    (event,), rejected = decode_group(json.dumps([wire]).encode())
    assert (event.payload, rejected) == (WalletCredited(700), [])


def test_what_is_written_today_says_that_it_has_todays_shape() -> None:
    event = Submitted(UUID(int=1), UUID(int=2), 5, WalletCredited(700))
    sent = encode_submitted(event, "tests")
    assert json.loads(sent)["schemaversion"] == 3
    (read,), rejected = decode_group(encode_group([sent]))
    assert (read.payload, rejected) == (event.payload, [])


def test_an_upcast_event_is_written_in_todays_shape() -> None:
    assert encode_payload(decode_payload(TYPE, 1, b'{"euros":7}')) == b'{"amount_minor":700}'


def test_the_upcasters_of_one_type_touch_no_other() -> None:
    data = b'{"name":"pen","description":"","base_price_minor":1,"initial_stock":0}'
    assert decode_payload("product.listed", 1, data) == ProductListed("pen", "", 1, 0)


def test_ids_are_upcast_like_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(codec.UPCASTERS, ("order.placed", 1), lambda data: {**data, "quantity": 9})
    monkeypatch.setitem(codec.CURRENT, "order.placed", 2)
    data = json.dumps({"customer_id": str(UUID(int=1)), "product_id": str(UUID(int=2))}).encode()
    assert decode_payload("order.placed", 1, data) == OrderPlaced(UUID(int=1), UUID(int=2), 9)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"euros": None},
        {"euros": "7"},
        {"euros": 0},
        {"euros": 0.5},
        {"euros": {}},
        {"euros": 10**30},
        [],
        "euros",
        None,
    ],
)
def test_bad_data_in_an_old_shape_is_rejected_and_its_neighbours_are_not(data: object) -> None:
    bad = GOOD | {"schemaversion": 1, "data": data}
    good = GOOD | {"schemaversion": 1, "data": {"euros": 7}}
    events, rejected = decode_group(json.dumps([good, bad, good]).encode())
    assert [event.payload for event in events] == [WalletCredited(700)] * 2
    assert [json.loads(each.body) for each in rejected] == [bad]
    assert rejected[0].reason


@pytest.mark.parametrize("schema_version", [-1, 0, 4, 10**6])
def test_a_shape_that_is_not_known_yet_is_unreadable(schema_version: int) -> None:
    with pytest.raises(Unreadable, match="schema_version 3"):
        decode_payload(TYPE, schema_version, b'{"amount_minor":700}')
