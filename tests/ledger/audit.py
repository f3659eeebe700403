"""What must be true of every ledger, whatever happened to those who wrote it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from uuid import UUID

from ledger.chain import GENESIS_HASH, Record, decided_id, next_hash
from ledger.codec import recorded
from ledger.core.events import DecidedPayload, Recorded, Submitted, SubmittedPayload
from ledger.core.fold import Fold


def audit(records: Sequence[Record]) -> Fold:
    """Check a whole ledger, deciding all of it again; the fold at its end."""
    _is_chained(records)
    _counts_its_streams(records)
    assert len({record.event_id for record in records}) == len(records), "an event stands twice"
    times = [record.recorded_at_us for record in records]
    assert times == sorted(times), "recorded_at fell"
    return _decided_again([recorded(record) for record in records])


def _is_chained(records: Sequence[Record]) -> None:
    hash_ = GENESIS_HASH
    for position, record in enumerate(records, 1):
        assert record.position == position, "positions are not dense"
        hash_ = next_hash(hash_, record)
        assert record.hash == hash_, f"the chain breaks at position {position}"


def _counts_its_streams(records: Sequence[Record]) -> None:
    versions = Counter[bytes]()
    for record in records:
        versions[record.stream_id] += 1
        assert record.version == versions[record.stream_id], "versions are not dense"


def _decided_again(events: Sequence[Recorded]) -> Fold:
    """A fold that forgets no order and knows no batches must decide the same."""
    fold = Fold()
    cause: Recorded | None = None
    owed: tuple[DecidedPayload, ...] = ()
    for event in events:
        if event.cause_position == 0:
            assert not owed, "a cause stands without what was decided of it"
            assert isinstance(event.payload, SubmittedPayload)
            cause, owed = event, fold.submit(event.stream_id, event.payload)
        else:
            assert cause is not None
            assert event.cause_position == cause.position
            assert event.payload == owed[0], f"decided differently at {event.position}"
            assert event.event_id == decided_id(cause.event_id, 0)
            owed = owed[1:]
    assert not owed
    return fold


def causes(records: Iterable[Record]) -> list[UUID]:
    """The ids of the submitted events, in order."""
    return [UUID(bytes=record.event_id) for record in records if record.cause_position == 0]


def ids(events: Iterable[Submitted]) -> list[UUID]:
    """The ids of events."""
    return [event.event_id for event in events]
