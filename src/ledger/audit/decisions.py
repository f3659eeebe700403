"""The audit of a ledger's decisions, without I/O: all that was submitted is decided again.

The fold at hand is bounded by customers and products. What else a page of records touches is
recalled from the ledger before, and forgotten after it.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

from msgspec import Struct, structs
from msgspec.json import Decoder

from ledger.core.events import TYPE_OF, DecidedPayload, OrderCancelRequested, OrderPlaced
from ledger.core.fold import Fold, is_refusal
from ledger.core.invariants import Books, LawBroken
from ledger.core.rules import RULES
from ledger.eventlog.chain import ChainAudit, VerificationFailed
from ledger.eventlog.codec import (
    CURRENT,
    READ_ERRORS,
    decided_meta,
    decode_payload,
    encode_payload,
    origin_of,
)
from ledger.eventlog.composer import recall_orders
from ledger.eventlog.decisions import Submission, decide, runs, whole
from ledger.eventlog.reader import Earlier
from ledger.eventlog.records import DECIDED_UUID_VERSION, Record, decided_id_bytes

Verdict = tuple[DecidedPayload, ...]

_OF_ORDERS: Final = (OrderPlaced, OrderCancelRequested)
_TOLD_FIRST: Final = ("type", "data")
_decode_object = Decoder(dict[str, Any]).decode


class _Page(Struct):
    """What is known while a page is checked.

    The versions of streams that are not at hand, the positions of event ids, and the streams that
    may be customers or products.
    """

    versions: dict[bytes, int] = {}
    positions: dict[bytes, int] = {}
    entries: set[bytes] = set()


class DecisionAudit:
    """Ids, versions, decisions and laws, on from a fold that is trusted."""

    def __init__(self, fold: Fold) -> None:
        self.fold = fold
        self._books = Books(fold.customers, fold.products)
        self._versions: dict[bytes, int] = {}
        self._page = _Page()

    def unknown(self, records: Sequence[Record]) -> list[bytes]:
        """The streams of records whose history up to there has to be looked up."""
        streams = {record.stream_id for record in records}
        return [stream_id for stream_id in streams if stream_id not in self._versions]

    def take(self, records: Sequence[Record], earlier: Earlier) -> None:
        """Check the records that come next, whole runs of them; raises VerificationFailed."""
        versions = {stream_id: each[-1].version for stream_id, each in earlier.histories.items()}
        self._page = _Page(versions, dict(earlier.positions))
        try:
            recall_orders(self.fold, earlier.histories.values())
        except READ_ERRORS as error:
            what = f"the history of a stream that comes up here can't be read: {error}"
            raise VerificationFailed(records[0].position, what) from error
        for run in runs(records):
            try:
                self._take_run(run)
            except LawBroken as error:
                raise VerificationFailed(run[0].cause.position, str(error)) from error
        try:
            self._books.settle(self.fold.customers, self.fold.products)
        except LawBroken as error:
            raise VerificationFailed(records[-1].position, f"up to here {error}") from error
        self._forget()

    def _forget(self) -> None:
        """Keep the versions of customers and products, and no order."""
        for stream_id in self._page.entries:
            key = UUID(bytes=stream_id)
            if key in self.fold.customers or key in self.fold.products:
                self._versions[stream_id] = self._version(stream_id)
        self.fold.orders.clear()

    def _version(self, stream_id: bytes) -> int:
        return self._versions.get(stream_id) or self._page.versions.get(stream_id, 0)

    def _take_run(self, run: Sequence[Submission]) -> None:
        self._take_rules(run)
        verdicts = decide(self.fold, run)
        for submission, verdict in zip(run, verdicts, strict=True):
            self._take_cause(submission)
            self._compare(submission, verdict)
            if not is_refusal(verdict):
                for payload in (submission.payload, *verdict):
                    self._books.enter(submission.stream_id, payload)

    def _take_rules(self, run: Sequence[Submission]) -> None:
        """Decide by the rules that the first decided event names."""
        for submission in run:
            if submission.decided:
                record = submission.decided[0]
                if record.meta != decided_meta(self.fold.rules.version):
                    self.fold.rules = RULES[_rules_version(record)]
                return

    def _take_cause(self, submission: Submission) -> None:
        cause = submission.cause
        if cause.event_id[6] >> 4 == DECIDED_UUID_VERSION:
            raise VerificationFailed(
                cause.position, "its id is one that only a decided event may have"
            )
        first = self._page.positions.setdefault(cause.event_id, cause.position)
        if first != cause.position:
            raise VerificationFailed(
                cause.position, f"the same event stands at position {first} already"
            )
        version = self._count(cause.stream_id)
        if cause.version != version:
            raise VerificationFailed(
                cause.position, f"version is {cause.version}, and must be {version}"
            )
        if not isinstance(submission.payload, _OF_ORDERS):
            self._page.entries.add(cause.stream_id)

    def _count(self, stream_id: bytes) -> int:
        """The version of the next event of a stream."""
        versions = self._versions if stream_id in self._versions else self._page.versions
        versions[stream_id] = version = versions.get(stream_id, 0) + 1
        return version

    def _compare(self, submission: Submission, verdict: Verdict) -> None:
        """Raises VerificationFailed unless the verdict was recorded, and nothing more."""
        cause, decided = submission.cause, submission.decided
        for index, payload in enumerate(verdict):
            position = cause.position + 1 + index
            if index == len(decided):
                raise VerificationFailed(
                    position, f"{_told(payload)} must stand here, decided of the one before"
                )
            expected = Record(
                position,
                decided_id_bytes(cause.event_id, index),
                cause.stream_id,
                self._count(cause.stream_id),
                name := TYPE_OF[type(payload)],
                CURRENT[name],
                cause.position,
                cause.occurred_at_us,
                cause.recorded_at_us,
                decided_meta(self.fold.rules.version),
                encode_payload(payload),
                decided[index].hash,
            )
            if decided[index] != expected:
                _refuse(decided[index], expected, payload)
        for extra in decided[len(verdict) :]:
            raise VerificationFailed(
                extra.position, f"{extra.type} stands here, and nothing caused it"
            )


def _rules_version(record: Record) -> int:
    try:
        version = origin_of(record).rules
    except READ_ERRORS as error:
        raise VerificationFailed(record.position, f"its meta can't be read: {error}") from error
    if version not in RULES:
        raise VerificationFailed(
            record.position, f"it was decided by rules {version}, which this code does not know"
        )
    return version


def _refuse(record: Record, expected: Record, payload: DecidedPayload) -> None:
    """Compare a record with the expected one, or with the same in an older shape.

    Raises VerificationFailed.
    """
    if record.type == expected.type and record.schema_version < expected.schema_version:
        expected = _in_older_shape(record, expected, payload)
    for name in (*_TOLD_FIRST, *Record.__struct_fields__):
        found, wanted = getattr(record, name), getattr(expected, name)
        if name == "type" and found != wanted:
            raise VerificationFailed(
                record.position, f"{found} stands here, but decided is {_told(payload)}"
            )
        if name == "data" and found != wanted:
            raise VerificationFailed(record.position, f"{record.type} says {_apart(found, wanted)}")
        if found != wanted:
            raise VerificationFailed(
                record.position, f"{name} is {_text(found)}, and must be {_text(wanted)}"
            )


def _in_older_shape(record: Record, expected: Record, payload: DecidedPayload) -> Record:
    """What is expected, in the shape of the record if that says the same."""
    with suppress(*READ_ERRORS):
        if decode_payload(record.type, record.schema_version, record.data) == payload:
            shape = record.schema_version
            return structs.replace(expected, schema_version=shape, data=record.data)
    return expected


def _told(payload: DecidedPayload) -> str:
    reason = getattr(payload, "reason", None)
    return TYPE_OF[type(payload)] + (f" ({reason})" if reason else "")


def _apart(found: bytes, wanted: bytes) -> str:
    """In what two payloads differ."""
    try:
        says, must = _decode_object(found), _decode_object(wanted)
    except READ_ERRORS:
        return "what can't be read"
    names = [name for name in {**must, **says} if says.get(name) != must.get(name)]
    if not names:
        return "the right things, but not as canonical JSON"
    return ", ".join(f"{n} {says.get(n)}, but decided is {must.get(n)}" for n in names)


def _text(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def take(
    chain: ChainAudit, decisions: DecisionAudit, records: Sequence[Record], earlier: Earlier
) -> None:
    """Check the records that come next, whole runs of them, both ways.

    Raises VerificationFailed, for the first position where either finds something.
    """
    try:
        chain.take(records)
    except VerificationFailed:
        # A decision before may be wrong, too. The broken record shows whether more follows of it.
        intact = sum(record.position <= chain.position for record in records)
        if before := whole(records[: intact + 1]):
            decisions.take(before[:intact], earlier)
        raise
    decisions.take(records, earlier)
