"""What comes with an event besides its data is kept, hashed and given out again."""

from uuid import UUID

import msgspec
import pytest

from ledger.core.events import OrderHistory, OrderPlaced, SubmittedPayload, WalletCredited
from ledger.eventlog.codec import (
    decided_meta,
    decode_group,
    encode_group,
    encode_payload,
    encode_recorded,
    encode_submitted,
    source_of,
)
from ledger.eventlog.records import Record, Submitted

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PLACED = OrderPlaced(UUID(int=3), UUID(int=4))
EVENT = Submitted(
    UUID(int=1),
    UUID(int=2),
    5,
    PLACED,
    submitter="key:abc",
    traceparent=TRACE,
    atomic_id=UUID(int=9),
)


def test_submitter_trace_and_batch_come_through_the_inbox() -> None:
    (event,), rejected = decode_group(encode_group([encode_submitted(EVENT, "/api")]))
    assert rejected == []
    assert (event.submitter, event.traceparent, event.atomic_id) == ("key:abc", TRACE, UUID(int=9))
    assert msgspec.json.decode(event.meta) == {
        "source": "/api",
        "submitter": "key:abc",
        "traceparent": TRACE,
        "atomicid": str(UUID(int=9)),
    }


def test_the_ledger_gives_an_event_out_as_a_cloudevent_with_all_that_came_with_it() -> None:
    (event,), _ = decode_group(encode_group([encode_submitted(EVENT, "/api")]))
    record = Record(
        7,
        event.event_id.bytes,
        event.stream_id.bytes,
        1,
        "order.placed",
        1,
        0,
        5,
        6,
        event.meta,
        encode_payload(event.payload),
        bytes(32),
    )
    ledger = source_of(UUID(int=10))
    assert ledger == f"urn:uuid:{UUID(int=10)}"
    assert msgspec.json.decode(encode_recorded(record, None, ledger)) == {
        "specversion": "1.0",
        "id": str(UUID(int=1)),
        "source": ledger,
        "origin": "/api",
        "type": "order.placed",
        "subject": str(UUID(int=2)),
        "time": "1970-01-01T00:00:00.000005Z",
        "datacontenttype": "application/json",
        "schemaversion": 1,
        "submitter": "key:abc",
        "traceparent": TRACE,
        "atomicid": str(UUID(int=9)),
        "sequence": "0000000000000000007",
        "position": 7,
        "version": 1,
        "recordedtime": "1970-01-01T00:00:00.000006Z",
        "hash": "00" * 32,
        "data": {"customer_id": str(UUID(int=3)), "product_id": str(UUID(int=4)), "quantity": 1},
    }


def test_no_number_is_beyond_what_cloudevents_has_integers_for() -> None:
    sequences = []
    for position in (9, 10, 2**31 - 1, 2**31, 2**63 - 1):
        record = Record(position, bytes(16), bytes(16), 2, "order.failed", 1, 1, 5, 6, b"{}", b"{}")
        event = msgspec.json.decode(encode_recorded(record, bytes(16)))
        assert event.get("position") == (position if position < 2**31 else None)
        assert int(event["sequence"]) == position
        sequences.append(event["sequence"])
    assert sequences == sorted(sequences)


@pytest.mark.parametrize(
    "payload",
    [WalletCredited(1), OrderPlaced(UUID(int=3), UUID(int=4), 1, OrderHistory("FAILED", 0))],
)
def test_only_orders_that_are_not_decided_can_be_atomic(payload: SubmittedPayload) -> None:
    event = Submitted(UUID(int=1), UUID(int=2), 5, payload, atomic_id=UUID(int=9))
    events, (rejected,) = decode_group(encode_group([encode_submitted(event, "/api")]))
    assert events == []
    assert "atomicid" in rejected.reason


def test_decided_events_name_the_version_of_the_rules_from_the_second_on() -> None:
    assert [decided_meta(version) for version in (1, 2)] == [b"{}", b'{"rules":2}']
    by = {}
    for meta in (decided_meta(1), decided_meta(2)):
        record = Record(2, bytes(16), bytes(16), 2, "order.failed", 1, 1, 5, 6, meta, b"{}")
        by[meta] = msgspec.json.decode(encode_recorded(record, bytes(16))).get("rules")
    assert list(by.values()) == [None, 2]
