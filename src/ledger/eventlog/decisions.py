"""Decisions: a submitted event and what was decided of it, the unit that is written and read.

The writer appends a decided event right after its cause, in the same transaction. This module finds
the two again, and groups the decisions of an atomic batch, which are decided together.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final
from uuid import UUID

from msgspec import Struct

from ledger.core.decider import evolve_order
from ledger.core.events import SUBMITTED, TYPE_OF, DecidedPayload, OrderPlaced, SubmissionRefused
from ledger.core.fold import Fold
from ledger.core.state import OrderState
from ledger.eventlog.chain import VerificationFailed
from ledger.eventlog.codec import READ_ERRORS, decode_submitted, origin_of, payload_of, uuid_of
from ledger.eventlog.records import Record, Submitted

REFUSED: Final = TYPE_OF[SubmissionRefused]


class Decision(Struct, frozen=True, gc=False):
    """A submitted event, `cause`, and the events that were decided of it, none or more."""

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
    start = _cause_before(records, len(records))
    if whole_batches and start > 0 and (atomic_id := _atomic_id(records[start])):
        while start > 0:
            before = _cause_before(records, start)
            if before < 0 or _atomic_id(records[before]) != atomic_id:
                break
            start = before
    return max(start, 0)


def _cause_before(records: Sequence[Record], end: int) -> int:
    """The index of the last submitted event before `end`, or -1."""
    return next((n for n in range(end - 1, -1, -1) if not records[n].cause_position), -1)


def _atomic_id(record: Record) -> UUID | None:
    try:
        return origin_of(record).atomicid
    except READ_ERRORS:
        return None  # whoever decodes the record says what is wrong with it


def by_atomic_batch(
    decisions: Iterable[Decision],
) -> Iterator[list[tuple[Decision, Submitted]]]:
    """Decode the causes and group the decisions: an atomic batch together, any other one alone.

    Raises VerificationFailed for a cause that can not be read, after yielding all before it.
    """
    batch: list[tuple[Decision, Submitted]] = []
    for decision in decisions:
        try:
            event = _submitted_event(decision.cause)
        except VerificationFailed:
            if batch:
                yield batch
            raise
        if batch and not _is_same_batch(batch[0], (decision, event)):
            yield batch
            batch = []
        batch.append((decision, event))
    if batch:
        yield batch


def _is_same_batch(first: tuple[Decision, Submitted], other: tuple[Decision, Submitted]) -> bool:
    # A batch is one transaction, and so of one recorded time; whoever uses an id again later has
    # begun another batch.
    return (
        first[1].atomic_id is not None
        and first[1].atomic_id == other[1].atomic_id
        and first[0].cause.recorded_at_us == other[0].cause.recorded_at_us
    )


def _submitted_event(cause: Record) -> Submitted:
    if cause.type not in SUBMITTED:
        raise missing_cause_error(cause)
    try:
        event = decode_submitted(cause)
    except READ_ERRORS as error:
        raise VerificationFailed(cause.position, f"{cause.type} can't be read: {error}") from error
    if event.atomic_id and not isinstance(event.payload, OrderPlaced):
        raise VerificationFailed(
            cause.position, "only orders are decided all or none: atomicid can't be there"
        )
    return event


def decide_batch(fold: Fold, events: Sequence[Submitted]) -> list[tuple[DecidedPayload, ...]]:
    """Decide and apply an atomic batch all or none, or events that have no `atomic_id` one by one.

    The events have the same `atomic_id`, or none.
    """
    if events[0].atomic_id is None:
        return [fold.decide_and_apply(event.stream_id, event.payload) for event in events]
    return fold.decide_and_apply_batch(
        [(e.stream_id, e.payload) for e in events if isinstance(e.payload, OrderPlaced)]
    )


def recall_orders(fold: Fold, histories: Iterable[Sequence[Record]]) -> None:
    """Load the orders of these stream histories into the fold, so that it can decide about them."""
    for history in histories:
        order: OrderState | None = None
        for decision in to_decisions(history):
            for record in decision.effective_records:
                order = evolve_order(order, payload_of(record))
        if order:
            fold.orders[uuid_of(history[0].stream_id)] = order
