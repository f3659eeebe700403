"""The hash chain and the ids of decided events: no change goes unseen, no chance is taken."""

from hashlib import sha256
from uuid import RFC_4122, UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec import structs

from ledger.eventlog.records import GENESIS_HASH, Record, decided_id, next_hash

from .strategies import records, uuids

FIELDS = [name for name in Record.__struct_fields__ if name != "hash"]
BYTE_FIELDS = ["event_id", "stream_id", "meta", "data"]
hashes = st.binary(min_size=32, max_size=32)


def test_the_chain_starts_from_32_zero_bytes() -> None:
    assert bytes(32) == GENESIS_HASH


@pytest.mark.parametrize("field", FIELDS)
@given(record=records, other=records, previous=hashes)
def test_a_change_of_any_column_changes_the_hash(
    field: str, record: Record, other: Record, previous: bytes
) -> None:
    value = getattr(other, field)
    assume(value != getattr(record, field))
    changed = structs.replace(record, **{field: value})
    assert next_hash(previous, changed) != next_hash(previous, record)


@pytest.mark.parametrize("field", BYTE_FIELDS)
@given(record=records, data=st.data())
def test_a_change_of_any_bit_changes_the_hash(
    field: str, record: Record, data: st.DataObject
) -> None:
    value = bytearray(getattr(record, field))
    assume(value)
    value[data.draw(st.integers(0, len(value) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    changed = structs.replace(record, **{field: bytes(value)})
    assert next_hash(GENESIS_HASH, changed) != next_hash(GENESIS_HASH, record)


@given(records, hashes, hashes)
def test_a_change_of_the_hash_before_changes_the_hash(
    record: Record, previous: bytes, other: bytes
) -> None:
    assume(previous != other)
    assert next_hash(previous, record) != next_hash(other, record)


@given(records, st.binary(min_size=1, max_size=3), st.binary(min_size=1, max_size=3))
def test_no_byte_can_move_from_one_column_to_the_next(
    record: Record, moved: bytes, rest: bytes
) -> None:
    here = structs.replace(record, meta=record.meta + moved, data=rest)
    there = structs.replace(record, meta=record.meta, data=moved + rest)
    assert next_hash(GENESIS_HASH, here) != next_hash(GENESIS_HASH, there)


@given(records, st.text(min_size=1, max_size=3))
def test_no_letter_can_move_from_the_type_to_what_follows(record: Record, moved: str) -> None:
    here = structs.replace(record, type=record.type + moved)
    there = structs.replace(record, meta=moved.encode() + record.meta)
    assert next_hash(GENESIS_HASH, here) != next_hash(GENESIS_HASH, there)


@given(records, hashes)
def test_the_hash_a_record_carries_is_no_part_of_what_is_hashed(
    record: Record, carried: bytes
) -> None:
    assert next_hash(GENESIS_HASH, structs.replace(record, hash=carried)) == next_hash(
        GENESIS_HASH, record
    )


@given(records, hashes)
def test_anyone_with_sha256_can_recompute_the_chain(record: Record, previous: bytes) -> None:
    name = record.type.encode()
    told = [
        previous,
        record.position.to_bytes(8, "big"),
        record.cause_position.to_bytes(8, "big"),
        record.occurred_at_us.to_bytes(8, "big"),
        record.recorded_at_us.to_bytes(8, "big"),
        record.version.to_bytes(4, "big"),
        record.schema_version.to_bytes(2, "big"),
        len(name).to_bytes(2, "big"),
        len(record.meta).to_bytes(4, "big"),
        len(record.data).to_bytes(4, "big"),
        record.event_id,
        record.stream_id,
        name,
        record.meta,
        record.data,
    ]
    assert next_hash(previous, record) == sha256(b"".join(told)).digest()


def chained(history: list[Record]) -> bytes:
    head = GENESIS_HASH
    for record in history:
        head = next_hash(head, record)
    return head


@given(st.lists(records, min_size=1, max_size=6), st.data())
def test_a_record_changed_left_out_added_or_moved_shows_at_the_head(
    history: list[Record], data: st.DataObject
) -> None:
    head = chained(history)
    at = data.draw(st.integers(0, len(history) - 1))
    forged = structs.replace(history[at], data=history[at].data + b" ")
    assert chained([*history[:at], forged, *history[at + 1 :]]) != head
    assert chained([*history[:at], *history[at + 1 :]]) != head
    assert chained([*history[:at], history[at], *history[at:]]) != head
    assert history == history[::-1] or chained(history[::-1]) != head


@given(uuids, st.integers(0, 2**32 - 1))
def test_a_decided_id_is_the_same_every_time_and_of_version_8(cause: UUID, index: int) -> None:
    decided = UUID(bytes=decided_id(cause.bytes, index))
    assert decided.bytes == decided_id(cause.bytes, index)
    assert decided.version == 8
    assert decided.variant == RFC_4122


@given(uuids, uuids, st.integers(0, 99), st.integers(0, 99))
def test_a_decided_id_differs_by_cause_and_by_index(
    cause: UUID, other: UUID, index: int, other_index: int
) -> None:
    assume((cause, index) != (other, other_index))
    assert decided_id(cause.bytes, index) != decided_id(other.bytes, other_index)


@given(uuids, st.integers(0, 99))
def test_a_decided_id_keeps_the_time_of_its_cause(cause: UUID, index: int) -> None:
    decided = decided_id(cause.bytes, index)
    assert decided[:6] == cause.bytes[:6]
    assert decided != cause.bytes or cause.version == 8


@pytest.mark.parametrize(
    ("index", "decided"),
    [
        (0, "0190b5a2-3c4d-885e-8da1-f93fd9c86768"),
        (1, "0190b5a2-3c4d-8334-9de9-a872b4f3daca"),
    ],
)
def test_decided_ids_are_the_same_on_every_machine_for_ever(index: int, decided: str) -> None:
    cause = UUID("0190b5a2-3c4d-7e6f-8a9b-0c1d2e3f4a5b")
    assert str(UUID(bytes=decided_id(cause.bytes, index))) == decided
