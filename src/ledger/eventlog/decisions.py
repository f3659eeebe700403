"""A ledger's records as they were decided: submission by submission, atomic batch by batch."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from uuid import UUID

from msgspec import Struct

from ledger.core.events import SUBMITTED, DecidedPayload, OrderPlaced, SubmittedPayload
from ledger.core.fold import Fold
from ledger.eventlog.chain import VerificationFailed
from ledger.eventlog.codec import READ_ERRORS, origin_of, payload_of, uuid_of
from ledger.eventlog.records import Record


class Submission(Struct, frozen=True, gc=False):
    """A submitted event of the ledger, and the records of what was decided of it."""

    cause: Record
    decided: Sequence[Record]
    stream_id: UUID
    payload: SubmittedPayload
    atomic_id: UUID | None

    def is_decided_with(self, other: "Submission") -> bool:
        """Whether both are of one atomic batch."""
        return (
            self.atomic_id is not None
            and self.atomic_id == other.atomic_id
            and self.cause.recorded_at_us == other.cause.recorded_at_us
        )


def runs(records: Sequence[Record]) -> Iterator[Sequence[Submission]]:
    """What was decided in one go: a submission alone, or those of an atomic batch together.

    The records must be contiguous. Raises VerificationFailed for the first that can not be read,
    after yielding all before it.
    """
    causes = _causes(records)
    if records and causes[:1] != [0]:
        raise VerificationFailed(
            records[0].position, f"{records[0].type} stands here, and nothing caused it"
        )
    run: list[Submission] = []
    for begin, end in pairwise([*causes, len(records)]):
        try:
            submission = _submission(records[begin], records[begin + 1 : end])
        except VerificationFailed:
            if run:
                yield run
            raise
        if run and not submission.is_decided_with(run[0]):
            yield run
            run = []
        run.append(submission)
    if run:
        yield run


def decide(fold: Fold, run: Sequence[Submission]) -> Sequence[tuple[DecidedPayload, ...]]:
    """What the fold decides of each submission of a run, which it applies."""
    if run[0].atomic_id is None:
        return [fold.submit(each.stream_id, each.payload) for each in run]
    orders = [(s.stream_id, s.payload) for s in run if isinstance(s.payload, OrderPlaced)]
    return fold.submit_atomic(orders)


def whole(records: Sequence[Record]) -> Sequence[Record]:
    """The records up to where the last run begins, of which more may follow."""
    causes = _causes(records)
    if not causes:
        return records
    begin = causes.pop()
    atomic_id = _atomic_id(records[begin])
    while atomic_id and causes and _atomic_id(records[causes[-1]]) == atomic_id:
        begin = causes.pop()
    return records[:begin]


def _causes(records: Sequence[Record]) -> list[int]:
    return [index for index, record in enumerate(records) if not record.cause_position]


def _atomic_id(record: Record) -> UUID | None:
    try:
        return origin_of(record).atomicid
    except READ_ERRORS:
        return None


def _submission(cause: Record, decided: Sequence[Record]) -> Submission:
    if cause.type not in SUBMITTED:
        raise VerificationFailed(cause.position, f"{cause.type} stands here, and nothing caused it")
    try:
        payload = payload_of(cause)
        atomic_id = origin_of(cause).atomicid
    except READ_ERRORS as error:
        raise VerificationFailed(cause.position, f"{cause.type} can't be read: {error}") from error
    if atomic_id and not isinstance(payload, OrderPlaced):
        raise VerificationFailed(
            cause.position, "only orders are decided all or none: atomicid can't be there"
        )
    return Submission(
        cause,
        decided,
        uuid_of(cause.stream_id),
        payload,  # type: ignore[arg-type]  # SUBMITTED, checked above
        atomic_id,
    )
