"""The audit of a ledger's decisions: every submitted event is decided again, and compared.

Memory holds customers and products alone. The orders, versions and event ids that a page of records
touches are looked up before it is checked, and dropped after it.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

from msgspec import Struct, structs
from msgspec.json import Decoder

from ledger.core.decider import Fold, InvariantViolated, is_refusal
from ledger.core.events import (
    TYPE_OF,
    DecidedPayload,
    OrderCancelRequested,
    OrderPlaced,
    Recorded,
)
from ledger.core.invariants import ConservationCheck
from ledger.core.pricing import RULES, Rules
from ledger.eventlog.codec import (
    CURRENT,
    NO_KEYS,
    READ_ERRORS,
    decided_meta,
    decode_payload,
    encode_payload,
    origin_of,
)
from ledger.eventlog.decisions import (
    Decision,
    by_atomic_batch,
    decide_batch,
    last_decision_index,
    missing_cause_error,
    recall_orders,
    to_decisions,
)
from ledger.eventlog.reader import EventPage, EventReader, Keys
from ledger.eventlog.records import (
    DECIDED_UUID_VERSION,
    ChainCheck,
    LedgerDamaged,
    Record,
    Submitted,
    VerificationFailed,
    decided_id,
)

Verdict = tuple[DecidedPayload, ...]
Batch = Sequence[tuple[Decision, Submitted]]

_OF_ORDERS: Final = (OrderPlaced, OrderCancelRequested)
_COMPARED_FIRST: Final = ("type", "data")
_decode_object = Decoder(dict[str, Any]).decode


class Earlier(Struct, frozen=True):
    """The records before a page that it takes to check it.

    They are the history of each stream in the page, and the positions of its event ids.
    """

    histories: Mapping[bytes, Sequence[Record]] = {}
    positions: Mapping[bytes, int] = {}


class AuditPage(Struct, frozen=True):
    """A page that ends with a whole atomic batch, and the earlier records needed to check it."""

    page: EventPage
    earlier: Earlier


class DecisionAudit:
    """Checks ids, versions, decisions and invariants, on from a fold that is trusted."""

    def __init__(self, fold: Fold) -> None:
        self.fold = fold
        self._conservation = ConservationCheck(fold.customers, fold.products)
        # Versions of the streams of customers and products are kept, as the fold keeps those.
        self._versions: dict[bytes, int] = {}
        # Of the page being checked: the versions of other streams, the positions of event ids, and
        # the streams that may be those of customers or products.
        self._page_versions: dict[bytes, int] = {}
        self._page_positions: dict[bytes, int] = {}
        self._page_new_streams: set[bytes] = set()

    def streams_to_look_up(self, records: Sequence[Record]) -> list[bytes]:
        """Return the streams whose earlier records are needed to check these."""
        streams = {record.stream_id for record in records}
        return [stream_id for stream_id in streams if stream_id not in self._versions]

    def check(
        self, records: Sequence[Record], earlier: Earlier, keys: Keys = NO_KEYS
    ) -> list[Recorded]:
        """Check the records that come next, whole batches of them; raises VerificationFailed.

        Returns the events that took effect, in order, with the names that `keys` decrypt: whoever
        needs them, too, does not have to decode the records once more.
        """
        self._page_new_streams = set()
        self._page_positions = dict(earlier.positions)
        self._page_versions = {
            stream_id: history[-1].version for stream_id, history in earlier.histories.items()
        }
        try:
            recall_orders(self.fold, earlier.histories.values())
        except READ_ERRORS as error:
            detail = f"the history of a stream that comes up here can't be read: {error}"
            raise VerificationFailed(records[0].position, detail) from error
        effective: list[Recorded] = []
        for batch in by_atomic_batch(to_decisions(records), keys):
            try:
                effective += self._check_batch(batch)
            except InvariantViolated as error:
                raise VerificationFailed(batch[0][0].cause.position, str(error)) from error
        try:
            self._conservation.compare(self.fold.customers, self.fold.products)
        except InvariantViolated as error:
            raise VerificationFailed(records[-1].position, f"up to here {error}") from error
        # A page is read ahead: its histories may have streams whose versions were kept meanwhile.
        new_entries = self._page_new_streams & self._page_versions.keys() - self._versions.keys()
        for stream_id in new_entries:
            key = UUID(bytes=stream_id)
            if key in self.fold.customers or key in self.fold.products:
                self._versions[stream_id] = self._page_versions[stream_id]
        self.fold.orders.clear()
        return effective

    def _check_batch(self, batch: Batch) -> list[Recorded]:
        # What was decided together was decided by the same rules: the first decision names them.
        first = next((decision.decided[0] for decision, _ in batch if decision.decided), None)
        if first and first.meta != decided_meta(self.fold.rules.version):
            self.fold.rules = _rules_of(first)
        verdicts = decide_batch(self.fold, [e for _, e in batch], batch[0][0].cause.position)
        effective: list[Recorded] = []
        for (decision, event), verdict in zip(batch, verdicts, strict=True):
            cause = decision.cause
            self._check_cause(cause)
            if not isinstance(event.payload, _OF_ORDERS):
                self._page_new_streams.add(cause.stream_id)
            self._check_decided(decision, verdict)
            payloads = verdict if is_refusal(verdict) else (event.payload, *verdict)
            for record, payload in zip(decision.effective_records, payloads, strict=True):
                self._conservation.add(event.stream_id, payload)
                effective.append(
                    Recorded(
                        record.position,
                        event.stream_id,
                        record.occurred_at_us,
                        record.recorded_at_us,
                        payload,
                    )
                )
        return effective

    def _check_cause(self, cause: Record) -> None:
        if cause.event_id[6] >> 4 == DECIDED_UUID_VERSION:
            raise VerificationFailed(
                cause.position, "its id is one that only a decided event may have"
            )
        first = self._page_positions.setdefault(cause.event_id, cause.position)
        if first != cause.position:
            raise VerificationFailed(
                cause.position, f"the same event stands at position {first} already"
            )
        version = self._next_version(cause.stream_id)
        if cause.version != version:
            raise VerificationFailed(
                cause.position, f"version is {cause.version}, and must be {version}"
            )

    def _next_version(self, stream_id: bytes) -> int:
        versions = self._versions if stream_id in self._versions else self._page_versions
        versions[stream_id] = version = versions.get(stream_id, 0) + 1
        return version

    def _check_decided(self, decision: Decision, verdict: Verdict) -> None:
        """Raises VerificationFailed unless the verdict was recorded, and nothing more."""
        cause, decided = decision.cause, decision.decided
        for index, payload in enumerate(verdict):
            position = cause.position + 1 + index
            if index == len(decided):
                raise VerificationFailed(
                    position, f"{_described(payload)} must stand here, decided of the one before"
                )
            expected = Record(
                position,
                decided_id(cause.event_id, index),
                cause.stream_id,
                self._next_version(cause.stream_id),
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
                _refuse_difference(decided[index], expected, payload)
        for extra in decided[len(verdict) :]:
            raise missing_cause_error(extra)


def _rules_of(record: Record) -> Rules:
    """The rules that a decided event names; raises VerificationFailed."""
    try:
        version = origin_of(record).rules
    except READ_ERRORS as error:
        raise VerificationFailed(record.position, f"its meta can't be read: {error}") from error
    if version not in RULES:
        raise VerificationFailed(
            record.position, f"it was decided by rules {version}, which this code does not know"
        )
    return RULES[version]


def _refuse_difference(record: Record, expected: Record, payload: DecidedPayload) -> None:
    """Raises VerificationFailed unless the record says the same in an older shape."""
    if record.type == expected.type and record.schema_version < expected.schema_version:
        with suppress(*READ_ERRORS):
            if decode_payload(record.type, record.schema_version, record.data) == payload:
                expected = structs.replace(
                    expected, schema_version=record.schema_version, data=record.data
                )
    for name in (*_COMPARED_FIRST, *Record.__struct_fields__):
        actual, wanted = getattr(record, name), getattr(expected, name)
        if actual == wanted:
            continue
        if name == "type":
            detail = f"{actual} stands here, but decided is {_described(payload)}"
        elif name == "data":
            detail = f"{record.type} says {_data_difference(actual, wanted)}"
        else:
            detail = f"{name} is {_shown(actual)}, and must be {_shown(wanted)}"
        raise VerificationFailed(record.position, detail)


def _described(payload: DecidedPayload) -> str:
    reason = getattr(payload, "reason", None)
    return TYPE_OF[type(payload)] + (f" ({reason})" if reason else "")


def _data_difference(actual: bytes, wanted: bytes) -> str:
    try:
        says, must = _decode_object(actual), _decode_object(wanted)
    except READ_ERRORS:
        return "what can't be read"
    names = [name for name in {**must, **says} if says.get(name) != must.get(name)]
    if not names:
        return "the right things, but not as canonical JSON"
    return ", ".join(f"{n} {says.get(n)}, but decided is {must.get(n)}" for n in names)


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def check_page(
    chain: ChainCheck,
    decisions: DecisionAudit,
    records: Sequence[Record],
    earlier: Earlier,
    keys: Keys = NO_KEYS,
) -> list[Recorded]:
    """Check the records that come next, whole batches of them, their hashes and their decisions.

    Returns what `DecisionAudit.check` does. Raises VerificationFailed, for the first position where
    either is wrong.
    """
    start = chain.position
    try:
        chain.check(records)
    except LedgerDamaged as error:
        # A decision before may be wrong, too. The broken record shows whether more follows of it.
        whole = last_decision_index(records[: error.position - start], whole_batches=True)
        if whole:
            decisions.check(records[:whole], earlier)
        raise
    return decisions.check(records, earlier, keys)


async def audit_pages(
    reader: EventReader, after: int, up_to: int, decisions: DecisionAudit | None
) -> AsyncGenerator[AuditPage, None]:
    """The pages after a position and up to another; if `decisions` is given, with what it needs.

    Such pages also have the encryption keys, for a comparison of views with them.

    Raises LedgerDamaged where a record is missing, after yielding all that is whole before it.
    """
    with_keys = decisions is not None
    async for page in reader.pages(
        after, up_to, whole_batches=True, with_keys=with_keys, up_to_damage=True
    ):
        first, earlier = page.records[0].position, Earlier()
        if decisions:
            ids = [record.event_id for record in page.records if not record.cause_position]
            earlier = Earlier(
                await reader.streams(decisions.streams_to_look_up(page.records), before=first),
                await reader.positions_of(ids, before=first),
            )
        yield AuditPage(page, earlier)
