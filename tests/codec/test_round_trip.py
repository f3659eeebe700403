"""What is written is what is read, on the wire and at rest."""

import json
from random import Random
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from ledger.core.events import TYPE_OF, AnyPayload, OrderCancelRequested, OrderPlaced, Recorded
from ledger.eventlog.codec import (
    CURRENT,
    decode_group,
    decode_payload,
    decode_recorded,
    encode_group,
    encode_payload,
    encode_submitted,
)
from ledger.eventlog.records import Record, Submitted

from .strategies import (
    END_OF_TIME_US,
    GOOD,
    payloads,
    places,
    sources,
    submitted,
    times_us,
    uuids,
)


@given(st.lists(submitted, max_size=8), sources)
def test_a_group_is_read_as_it_was_sent_in_the_order_it_was_sent(
    events: list[Submitted], source: str
) -> None:
    group = encode_group(encode_submitted(event, source) for event in events)
    meta = json.dumps({"source": source}, ensure_ascii=False).encode()
    read, rejected = decode_group(group)
    assert rejected == []
    assert [structs.replace(event, meta=b"{}") for event in read] == events
    assert all(json.loads(event.meta) == json.loads(meta) for event in read)


@given(submitted, sources)
def test_an_event_read_and_sent_again_is_the_same_bytes(event: Submitted, source: str) -> None:
    sent = encode_submitted(event, source)
    (read,), _ = decode_group(encode_group([sent]))
    assert encode_submitted(read, source) == sent


@given(submitted, sources)
def test_what_is_sent_is_a_cloudevent_that_any_json_reader_understands(
    event: Submitted, source: str
) -> None:
    cloud_event = json.loads(encode_submitted(event, source))
    assert cloud_event["specversion"] == "1.0"
    assert UUID(cloud_event["id"]) == event.event_id
    assert UUID(cloud_event["subject"]) == event.stream_id
    assert cloud_event["source"] == source
    assert cloud_event["type"] == TYPE_OF[type(event.payload)]
    assert cloud_event["time"].endswith("Z")
    assert cloud_event["data"] == json.loads(encode_payload(event.payload))


@given(payloads, uuids, uuids, places, times_us, times_us)
def test_a_record_is_read_as_the_event_it_was_written_from(
    payload: AnyPayload, event_id: UUID, stream_id: UUID, place: int, occurred: int, kept: int
) -> None:
    name = TYPE_OF[type(payload)]
    record = Record(
        place,
        event_id.bytes,
        stream_id.bytes,
        7,
        name,
        CURRENT[name],
        place,
        occurred,
        kept,
        b"{}",
        encode_payload(payload),
    )
    event = Recorded(place, stream_id, occurred, kept, payload)
    assert decode_recorded(record) == event


@given(payloads)
def test_data_is_canonical_json(payload: AnyPayload) -> None:
    data = encode_payload(payload)
    fields = json.loads(data)
    assert data == canonical(fields)
    # What may be left out is where there is none: `null` never stands there.
    assert set(structs.asdict(payload)) - set(fields) <= {"expected_position", "history", "stock"}
    assert None not in fields.values()
    assert not any(isinstance(value, float) for value in fields.values())


def canonical(fields: object) -> bytes:
    text = json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode()


@given(payloads, st.randoms())
def test_the_order_of_keys_and_white_space_on_the_wire_change_no_canonical_byte(
    payload: AnyPayload, shuffle: Random
) -> None:
    name = TYPE_OF[type(payload)]
    fields = list(json.loads(encode_payload(payload)).items())
    shuffle.shuffle(fields)
    sloppy = json.dumps(dict(fields), indent=3).encode()
    assert encode_payload(decode_payload(name, CURRENT[name], sloppy)) == encode_payload(payload)


def test_a_default_is_written_out_so_that_a_later_default_changes_no_history() -> None:
    data = json.loads(encode_payload(OrderPlaced(UUID(int=1), UUID(int=2))))
    assert data["quantity"] == 1


@pytest.mark.parametrize("spelled", [None, {}])
def test_an_event_without_data_may_leave_it_out(spelled: object) -> None:
    wire = GOOD | {"type": "order.cancel-requested", "data": spelled}
    wire = {key: value for key, value in wire.items() if value is not None}
    (event,), rejected = decode_group(canonical([wire]))
    assert (event.payload, rejected) == (OrderCancelRequested(), [])


@pytest.mark.parametrize(
    "extension",
    [{"tracestate": "a=b"}, {"datacontenttype": "application/json"}, {"mine": [1, {}]}],
)
def test_an_extension_that_is_not_ours_is_passed_over(extension: dict[str, object]) -> None:
    assert decode_group(canonical([GOOD | extension])) == decode_group(canonical([GOOD]))


@pytest.mark.parametrize(
    ("time", "occurred_at_us"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.000001Z", 1),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T23:00:00-01:00", 0),
        ("2025-01-01T00:00:00z", 1_735_689_600_000_000),
        ("9999-12-31T23:59:59Z", END_OF_TIME_US),
    ],
)
def test_a_time_is_read_in_utc_to_the_microsecond(time: str, occurred_at_us: int) -> None:
    (event,), _ = decode_group(canonical([GOOD | {"time": time}]))
    assert event.occurred_at_us == occurred_at_us


def test_an_empty_group_is_no_event_and_no_poison() -> None:
    assert decode_group(encode_group([])) == ([], [])


@given(submitted)
def test_the_default_schema_version_is_one(event: Submitted) -> None:
    wire = json.loads(encode_submitted(event, "tests"))
    wire.pop("schemaversion", None)
    named = wire | {"schemaversion": 1}
    assert decode_group(canonical([wire])) == decode_group(canonical([named]))
