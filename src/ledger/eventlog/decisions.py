"""Decisions: a submitted event and what was decided of it, the unit that is written and read.

The writer appends a decided event right after its cause, in the same transaction. This module makes
the records of both, finds the two again, and groups the decisions of an atomic batch, which are
decided together.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final
from uuid import UUID

from msgspec import Struct, structs

from ledger.core.decider import Fold, OrderState, evolve_order, is_refusal
from ledger.core.events import SUBMITTED, TYPE_OF, DecidedPayload, OrderPlaced, SubmissionRefused
from ledger.eventlog.codec import (
    CURRENT,
    NO_KEYS,
    READ_ERRORS,
    decided_meta,
    decode_submitted,
    encode_payload,
    may_be_atomic,
    origin_of,
    payload_of,
    uuid_of,
)
from ledger.eventlog.encryption import NEEDS_KEY, SEALED_VERSION, CustomerKeys
from ledger.eventlog.records import (
    Head,
    Record,
    Submitted,
    VerificationFailed,
    decided_id,
    next_hash,
)

REFUSED: Final = TYPE_OF[SubmissionRefused]


class Decision(Struct, frozen=True, gc=False):
    """A submitted event, `cause`, and what was decided of it: one event, or none.

    The look-ups of the reader find no second one: a rule that decides two needs other SQL there.
    """

    cause: Record
    decided: tuple[Record, ...] = ()

    @property
    def records(self) -> tuple[Record, ...]:
        """All records of the decision, in the order of the ledger."""
        return (self.cause, *self.decided)

    @property
    def outcome(self) -> Record:
        """The record whose type tells what came of the cause: itself if nothing was decided."""
        return self.decided[-1] if self.decided else self.cause

    @property
    def took_effect(self) -> bool:
        """False if the submission was refused: then the cause changes no state and no view."""
        return not self.decided or self.decided[0].type != REFUSED

    @property
    def effective_records(self) -> tuple[Record, ...]:
        """The records to apply to state and views: all but a cause that was refused."""
        # Spelled out, as every event that is read passes here.
        if self.decided and self.decided[0].type == REFUSED:
            return self.decided
        return (self.cause, *self.decided)


def to_decisions(records: Sequence[Record]) -> list[Decision]:
    """Split contiguous records into decisions; the first record must be a submitted event.

    Raises VerificationFailed where it is a decided one.
    """
    decisions: list[Decision] = []
    end = len(records)
    # Backwards, so that each slice ends where the decision after it begins.
    for index in range(end - 1, -1, -1):
        if not records[index].cause_position:
            decisions.append(Decision(records[index], tuple(records[index + 1 : end])))
            end = index
    if end:
        raise missing_cause_error(records[0])
    decisions.reverse()
    return decisions


def missing_cause_error(record: Record) -> VerificationFailed:
    """Build the error for a decided event without a submitted event before it."""
    return VerificationFailed(record.position, f"{record.type} stands here, and nothing caused it")


def last_decision_index(records: Sequence[Record], *, whole_batches: bool) -> int:
    """Return the index at which the last decision begins, or with `whole_batches` its atomic batch.

    It is 0 if all records are of one decision or batch.
    """
    causes = (n for n in range(len(records) - 1, -1, -1) if not records[n].cause_position)
    start = next(causes, 0)
    if whole_batches and start > 0 and (atomic_id := _atomic_id(records[start])):
        for before in causes:
            if _atomic_id(records[before]) != atomic_id:
                break
            start = before
    return start


def _atomic_id(record: Record) -> UUID | None:
    try:
        return origin_of(record).atomicid
    except READ_ERRORS:
        return None  # whoever decodes the record says what is wrong with it


def by_atomic_batch(
    decisions: Iterable[Decision], keys: Mapping[bytes, bytes | None] = NO_KEYS
) -> Iterator[list[tuple[Decision, Submitted]]]:
    """Decode the causes and group the decisions: an atomic batch together, any other one alone.

    A customer's name is NO_NAME unless `keys` has its encryption key. Raises VerificationFailed for
    a cause that can not be read, after yielding all before it.
    """
    pairs: list[tuple[Decision, Submitted]] = []
    failure: VerificationFailed | None = None
    for decision in decisions:
        try:
            pairs.append((decision, _submitted_event(decision.cause, keys)))
        except VerificationFailed as error:
            failure = error
            break
    for _, batch in groupby(pairs, key=_batch_of):
        yield list(batch)
    if failure:
        raise failure


def _batch_of(pair: tuple[Decision, Submitted]) -> tuple[UUID | None, int]:
    cause, atomic_id = pair[0].cause, pair[1].atomic_id
    # A batch is one transaction, and so of one recorded time; whoever uses an id again later has
    # begun another batch.
    return atomic_id, cause.recorded_at_us if atomic_id else cause.position


def _submitted_event(cause: Record, keys: Mapping[bytes, bytes | None]) -> Submitted:
    if cause.type not in SUBMITTED:
        raise missing_cause_error(cause)
    try:
        event = decode_submitted(cause, keys)
    except READ_ERRORS as error:
        raise VerificationFailed(cause.position, f"{cause.type} can't be read: {error}") from error
    if event.atomic_id and not may_be_atomic(event.payload):
        raise VerificationFailed(
            cause.position, "only orders are decided all or none: atomicid can't be there"
        )
    return event


def decide_batch(
    fold: Fold, events: Sequence[Submitted], position: int
) -> list[tuple[DecidedPayload, ...]]:
    """Decide and apply an atomic batch all or none, or events that have no `atomic_id` one by one.

    The events have the same `atomic_id`, or none; `position` is that of the first.
    """
    if events[0].atomic_id is not None:
        orders = [(e.stream_id, e.payload) for e in events if isinstance(e.payload, OrderPlaced)]
        return fold.decide_and_apply_batch(orders, position)
    verdicts = []
    for event in events:
        verdict = fold.decide_and_apply(event.stream_id, event.payload, position)
        verdicts.append(verdict)
        position += 1 + len(verdict)
    return verdicts


def recall_orders(fold: Fold, histories: Iterable[Sequence[Record]]) -> None:
    """Load the orders of these stream histories into the fold, so that it can decide about them."""
    for history in histories:
        order: OrderState | None = None
        for decision in to_decisions(history):
            for record in decision.effective_records:
                order = evolve_order(order, payload_of(record), record.position)
        if order:
            fold.orders[uuid_of(history[0].stream_id)] = order


def drop_duplicates(events: Iterable[Submitted], recorded_ids: set[bytes]) -> list[Submitted]:
    """Drop duplicates: events that are in the ledger already, or that came earlier in the batch.

    An atomic batch with any duplicate is dropped whole: else the rest of it would be decided
    without the others.
    """
    first: dict[UUID, Submitted] = {}
    incomplete_batches: set[UUID | None] = set()
    for event in events:
        if (
            event.event_id.bytes in recorded_ids
            or first.setdefault(event.event_id, event).atomic_id != event.atomic_id
        ):
            incomplete_batches.add(event.atomic_id)
    return [
        e for e in first.values() if e.atomic_id is None or e.atomic_id not in incomplete_batches
    ]


class Composed(Struct, frozen=True):
    """The records to append, and the submitted events counted by type and reason of the outcome."""

    records: list[Record]
    outcomes: Counter[tuple[str, str]]


def compose(
    events: Iterable[Submitted],
    fold: Fold,
    head: Head,
    versions: Mapping[bytes, int],
    recorded_at_us: int,
    keys: CustomerKeys,
) -> Composed:
    """Decide submitted events, and make the records to append after the head.

    `versions` are those of the streams so far. `keys` makes and destroys the encryption keys of the
    customers that are registered and erased on the way.
    """
    position, hash_, versions = head.position, head.hash, Counter(versions)
    records: list[Record] = []
    outcomes: Counter[tuple[str, str]] = Counter()
    meta_of_decided = decided_meta(fold.rules.version)
    for _, group in groupby(events, key=attrgetter("atomic_id")):
        batch = list(group)
        for event, verdict in zip(batch, decide_batch(fold, batch, position + 1), strict=True):
            sealed = None
            if isinstance(event.payload, NEEDS_KEY):
                took_effect = not is_refusal(verdict)
                sealed = keys.seal_or_erase(event, recorded_at_us, took_effect=took_effect)
            outcome = verdict[-1] if verdict else event.payload
            outcomes[TYPE_OF[type(outcome)], getattr(outcome, "reason", "")] += 1
            event_id, stream_id = event.event_id.bytes, event.stream_id.bytes
            cause_position = position + 1
            for index, payload in enumerate((event.payload, *verdict)):
                position += 1
                versions[stream_id] += 1
                name = TYPE_OF[type(payload)]
                if index or sealed is None:
                    schema_version, data = CURRENT[name], encode_payload(payload)
                else:
                    schema_version, data = SEALED_VERSION, sealed
                record = Record(
                    position,
                    decided_id(event_id, index - 1) if index else event_id,
                    stream_id,
                    versions[stream_id],
                    name,
                    schema_version,
                    cause_position if index else 0,
                    event.occurred_at_us,
                    recorded_at_us,
                    meta_of_decided if index else event.meta,
                    data,
                )
                hash_ = next_hash(hash_, record)
                records.append(structs.replace(record, hash=hash_))
    return Composed(records, outcomes)
