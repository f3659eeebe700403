"""The golden files: what was ever written is read, and hashed, the same for ever."""

from pathlib import Path

import pytest

from ledger.core.events import DECIDED, NO_NAME, SUBMITTED, CustomerRegistered, Reason
from ledger.eventlog.codec import (
    CURRENT,
    UPCASTERS,
    decode_group,
    decode_payload,
    decode_recorded,
    encode_group,
    encode_payload,
    encode_submitted,
)
from ledger.eventlog.records import GENESIS_HASH, next_hash

from .golden_files import (
    CONDITIONAL,
    EXAMPLES,
    FOLDER,
    KEY,
    NAME,
    SEALED,
    SOURCE,
    golden_of,
    names,
    read,
    record_of,
    sealed_golden,
    wire_bytes,
)

FILES = sorted(FOLDER.glob("*.v*.json"))
WIRES = [path for path in FILES if "wire" in read(path)]


def _name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("name", names())
def test_every_type_and_schema_version_has_a_golden_file(name: str) -> None:
    assert (FOLDER / name).exists(), (
        f"tests/codec/golden/{name} is missing: give the type an example in "
        f"tests/codec/golden_files.py and run that file before the shape changes again"
    )


def test_every_golden_file_is_of_a_type_and_schema_version_that_is_known() -> None:
    assert {path.name for path in FILES} <= set(names())


@pytest.mark.parametrize("name", sorted(CURRENT))
def test_the_upcasters_of_a_type_lead_from_its_first_shape_to_its_current_one(name: str) -> None:
    assert sorted(version for of, version in UPCASTERS if of == name) == [*range(1, CURRENT[name])]


def test_every_type_has_an_example() -> None:
    assert set(EXAMPLES) == {*SUBMITTED, *DECIDED}


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_golden_record_is_still_read(path: Path) -> None:
    record = record_of(read(path))
    event = decode_recorded(record)
    kinds = {**SUBMITTED, **DECIDED}
    assert isinstance(event.payload, kinds[record.type])
    assert (event.position, event.stream_id.bytes) == (record.position, record.stream_id)
    assert event.occurred_at_us == record.occurred_at_us
    assert event.recorded_at_us == record.recorded_at_us


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_golden_record_still_has_the_same_hash(path: Path) -> None:
    golden = read(path)
    assert next_hash(GENESIS_HASH, record_of(golden)).hex() == golden["hash"]


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_the_data_of_a_current_golden_record_is_written_in_the_same_bytes(path: Path) -> None:
    record = record_of(read(path))
    if record.schema_version == CURRENT[record.type]:
        payload = decode_payload(record.type, record.schema_version, record.data)
        assert encode_payload(payload) == record.data


def test_a_golden_sealed_name_is_decrypted_and_encrypted_to_the_same_bytes() -> None:
    golden = read(FOLDER / SEALED)
    record = record_of(golden)
    registration = CustomerRegistered(NAME, 500_000)
    assert decode_recorded(record, {record.stream_id: KEY}).payload == registration
    assert decode_recorded(record).payload == CustomerRegistered(NO_NAME, 500_000)
    assert sealed_golden() == golden


@pytest.mark.parametrize("path", WIRES, ids=_name)
def test_a_golden_cloudevent_is_still_read_as_the_same_event(path: Path) -> None:
    golden = read(path)
    record = record_of(golden)
    events, rejected = decode_group(encode_group([wire_bytes(golden)]))
    assert rejected == []
    (event,) = events
    assert (event.event_id.bytes, event.stream_id.bytes) == (record.event_id, record.stream_id)
    assert event.occurred_at_us == record.occurred_at_us
    assert event.meta == record.meta
    assert event.payload == decode_payload(record.type, record.schema_version, record.data)


@pytest.mark.parametrize("path", WIRES, ids=_name)
def test_a_current_golden_cloudevent_is_written_in_the_same_bytes(path: Path) -> None:
    golden = read(path)
    (event,), _ = decode_group(encode_group([wire_bytes(golden)]))
    if golden["record"]["schema_version"] == CURRENT[golden["record"]["type"]]:
        assert encode_submitted(event, SOURCE) == wire_bytes(golden)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_golden_file_of_the_current_shape_is_what_is_written_today(name: str) -> None:
    assert read(FOLDER / f"{name}.v{CURRENT[name]}.json") == golden_of(EXAMPLES[name])


@pytest.mark.parametrize("name", sorted(CONDITIONAL))
def test_the_golden_file_of_an_event_with_a_precondition_is_what_is_written_today(
    name: str,
) -> None:
    assert read(FOLDER / name) == golden_of(CONDITIONAL[name])


def test_the_words_that_clients_see_as_reasons_are_the_promised_ones() -> None:
    promised = (FOLDER / "reasons.txt").read_text(encoding="utf-8").split()
    assert sorted(Reason) == promised
