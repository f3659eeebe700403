"""Submitted events back from their records, as they came."""

from ledger.eventlog.codec import origin_of, recorded
from ledger.eventlog.records import Record, Submitted


def submitted(record: Record, sealing_key: bytes | None) -> Submitted:
    """The submitted event of a record; with NO_NAME for a name that its key does not open."""
    event, origin = recorded(record, {record.stream_id: sealing_key}), origin_of(record)
    return Submitted(
        event.event_id,
        event.stream_id,
        event.occurred_at_us,
        event.payload,  # type: ignore[arg-type]  # its cause_position is 0
        record.meta,
        origin.submitter,
        origin.traceparent,
        origin.atomicid,
    )
