"""A naive audit of a whole ledger in memory: a second opinion, apart from `ledger.audit`."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from uuid import UUID

from ledger.core.decider import Fold
from ledger.core.events import DecidedPayload
from ledger.eventlog.codec import origin_of, payload_of
from ledger.eventlog.records import GENESIS_HASH, Record, Submitted, decided_id, next_hash


def audit(records: Sequence[Record]) -> Fold:
    """Check a whole ledger, deciding all of it again; the fold at its end."""
    _is_chained(records)
    _counts_its_streams(records)
    assert len({record.event_id for record in records}) == len(records), "an event stands twice"
    times = [record.recorded_at_us for record in records]
    assert times == sorted(times), "recorded_at fell"
    return _decided_again(records)


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


def _decided_again(records: Sequence[Record]) -> Fold:
    """A fold that forgets no order and knows no batches must decide the same."""
    fold = Fold()
    for atomic_id, group in groupby(_submissions(records), key=lambda each: each[0]):
        told = [(cause, decided) for _, cause, decided in group]
        orders = [(UUID(bytes=cause.stream_id), payload_of(cause)) for cause, _ in told]
        if atomic_id is None:
            again = [
                fold.decide_and_apply(*order, cause.position)
                for order, (cause, _) in zip(orders, told, strict=True)
            ]
        else:
            again = fold.decide_and_apply_batch(orders, told[0][0].position)
        for (cause, decided), payloads in zip(told, again, strict=True):
            _is_what_was_decided(cause, decided, payloads)
    return fold


def _submissions(
    records: Sequence[Record],
) -> Iterator[tuple[UUID | None, Record, list[Record]]]:
    """Each cause with the id of its atomic batch, if any, and what stands right after it."""
    told: tuple[UUID | None, Record, list[Record]] | None = None
    for record in records:
        if record.cause_position == 0:
            if told:
                yield told
            told = (origin_of(record).atomicid, record, [])
        else:
            assert told is not None
            assert record.cause_position == told[1].position
            told[2].append(record)
    if told:
        yield told


def _is_what_was_decided(
    cause: Record, decided: Sequence[Record], again: Sequence[DecidedPayload]
) -> None:
    assert len(decided) == len(again), f"decided twice or not at all at {cause.position}"
    for index, (record, payload) in enumerate(zip(decided, again, strict=True)):
        assert payload_of(record) == payload, f"decided differently at {record.position}"
        assert record.event_id == decided_id(cause.event_id, index)


def causes(records: Iterable[Record]) -> list[UUID]:
    """The ids of the submitted events, in order."""
    return [UUID(bytes=record.event_id) for record in records if record.cause_position == 0]


def ids(events: Iterable[Submitted]) -> list[UUID]:
    """The ids of events."""
    return [event.event_id for event in events]
