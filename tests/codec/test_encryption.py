"""A sealed name opens to its own key and event, and to nothing else."""

import json
from uuid import UUID

import pytest
from hypothesis import given
from msgspec import DecodeError, structs

from ledger.core.events import MAX_USERNAME, NO_NAME, CustomerErased, CustomerRegistered
from ledger.eventlog.codec import Unreadable, decode_group, decode_payload, decode_recorded
from ledger.eventlog.encryption import (
    KEY_BYTES,
    REGISTERED,
    SEALED_VERSION,
    CustomerKeys,
    KeyRow,
    WrongKey,
    new_key,
    seal,
)
from ledger.eventlog.records import Record, Submitted

from .strategies import GOOD, text

EVENT, OTHER, ANN = b"e" * 16, b"o" * 16, b"a" * 16
KEY = bytes(range(KEY_BYTES))


def record(name: str, key: bytes = KEY) -> Record:
    data = seal(EVENT, CustomerRegistered(name, 700), key)
    return Record(1, EVENT, ANN, 1, REGISTERED, SEALED_VERSION, 0, 5, 6, b"{}", data)


@given(text(1, MAX_USERNAME))
def test_a_name_is_encrypted_and_decrypted_unchanged(name: str) -> None:
    assert decode_recorded(record(name), {ANN: KEY}).payload == CustomerRegistered(name, 700)


@pytest.mark.parametrize("keys", [{}, {ANN: None}, {OTHER: KEY}])
def test_without_its_key_only_the_name_of_a_registration_is_missing(
    keys: dict[bytes, bytes | None],
) -> None:
    assert decode_recorded(record("ann"), keys).payload == CustomerRegistered(NO_NAME, 700)


@given(text(1, MAX_USERNAME))
def test_the_length_of_a_name_shows_only_in_steps_of_64_bytes(name: str) -> None:
    data = record(name).data
    assert len(data) == len(record("x" * (len(name.encode()) // 64 * 64 or 1)).data)


def test_the_same_name_of_two_customers_or_in_two_events_looks_different() -> None:
    ann = CustomerRegistered("ann")
    sealed = {seal(event, ann, key) for event in (EVENT, OTHER) for key in (KEY, new_key())}
    assert len(sealed) == 4


@pytest.mark.parametrize(
    ("record", "key"),
    [
        (record("ann"), new_key()),
        (structs.replace(record("ann"), event_id=OTHER), KEY),
        (structs.replace(record("ann"), data=record("bob", new_key()).data), KEY),
        (structs.replace(record("ann"), data=record("ann").data.replace(b'"}', b'A"}')), KEY),
    ],
    ids=["another key", "another event", "data of another", "a letter more"],
)
def test_a_wrong_key_raises_instead_of_looking_erased(record: Record, key: bytes) -> None:
    with pytest.raises(WrongKey, match="position 1"):
        decode_recorded(record, {ANN: key})


@pytest.mark.parametrize("fault", [b"", b"{}", b"[]", b'{"opening_balance_minor":-1}'])
def test_data_that_is_no_sealed_registration_is_unreadable(fault: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_recorded(structs.replace(record("ann"), data=fault))


def test_a_sealed_registration_can_not_be_submitted() -> None:
    sealed = record("ann")
    wire = {"type": REGISTERED, "schemaversion": SEALED_VERSION, "data": json.loads(sealed.data)}
    events, (rejected,) = decode_group(json.dumps([GOOD | wire]).encode())
    assert events == []
    assert "schema_version 1, not 2" in rejected.reason
    with pytest.raises(Unreadable):
        decode_payload(REGISTERED, SEALED_VERSION, sealed.data)


def event(customer_id: bytes, payload: CustomerRegistered | CustomerErased) -> Submitted:
    return Submitted(UUID(bytes=EVENT), UUID(bytes=customer_id), 0, payload)


def registered(keys: CustomerKeys, customer_id: bytes, *, took_effect: bool = True) -> bytes:
    """The data of a registration that is recorded with these keys at 5 µs."""
    ann = event(customer_id, CustomerRegistered("ann", 700))
    data = keys.seal_or_erase(ann, 5, took_effect=took_effect)
    assert data is not None
    return data


def erased(keys: CustomerKeys, customer_id: bytes, at_us: int) -> None:
    assert keys.seal_or_erase(event(customer_id, CustomerErased()), at_us, took_effect=True) is None


def test_a_key_that_is_made_is_stored_and_one_that_is_only_used_is_not() -> None:
    keys = CustomerKeys({ANN: None})
    for customer_id in (ANN, OTHER):
        refused = {registered(keys, customer_id, took_effect=False) for _ in range(2)}
        assert len(refused) == 2
    assert (keys.made, keys.destroyed) == ({}, {})
    data = registered(keys, OTHER)
    assert registered(keys, OTHER, took_effect=False) == data
    (row,) = keys.made.values()
    assert row == KeyRow(OTHER, row.sealing_key, 5)
    assert row.sealing_key is not None
    assert data == record("ann", row.sealing_key).data


@pytest.mark.parametrize("stored", [KEY, None])
def test_a_key_that_came_before_its_customer_is_neither_doubled_nor_brought_back(
    stored: bytes | None,
) -> None:
    keys = CustomerKeys({ANN: stored})
    data = registered(keys, ANN)
    assert (data == record("ann", KEY).data) == (stored is not None)
    assert (keys.made, keys.destroyed) == ({}, {})


def test_a_key_made_and_destroyed_in_one_batch_is_never_stored() -> None:
    keys = CustomerKeys({})
    data = registered(keys, ANN)
    erased(keys, ANN, 6)
    assert keys.made == {ANN: KeyRow(ANN, None, 5, 6)}
    assert keys.destroyed == {}
    assert registered(keys, ANN, took_effect=False) != data


def test_only_a_key_that_is_there_is_destroyed_and_only_once() -> None:
    keys = CustomerKeys({ANN: KEY, OTHER: None})
    for customer_id, at_us in ((ANN, 6), (ANN, 7), (OTHER, 8), (EVENT, 9)):
        erased(keys, customer_id, at_us)
    assert (keys.made, keys.destroyed) == ({}, {ANN: 6})
