"""One batch of the writer, without I/O: submitted events in, the records to append out."""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import groupby
from operator import attrgetter
from uuid import UUID

from msgspec import structs

from ledger.core.events import (
    TYPE_OF,
    AnyPayload,
    CustomerErased,
    CustomerRegistered,
    DecidedPayload,
)
from ledger.core.fold import Fold, is_refusal
from ledger.eventlog.chain import next_hash
from ledger.eventlog.codec import CURRENT, decided_meta, encode_payload
from ledger.eventlog.decisions import decide_batch
from ledger.eventlog.encryption import NEEDS_KEY, SEALED_VERSION, CustomerKeys, seal
from ledger.eventlog.records import Record, Submitted, decided_id_bytes


class Composer:
    """Decides submitted events after `position`, and numbers, versions and chains their records.

    `keys` makes and destroys the encryption keys of the customers that are registered and erased
    on the way. `outcomes` counts the submitted events by the type of their outcome and its reason.
    """

    def __init__(
        self,
        fold: Fold,
        position: int,
        hash_: bytes,
        versions: Mapping[bytes, int],
        recorded_at_us: int,
        keys: CustomerKeys,
    ) -> None:
        self._fold = fold
        self._position = position
        self._hash = hash_
        self._versions = Counter(versions)
        self._recorded_at_us = recorded_at_us
        self._keys = keys
        self.records: list[Record] = []
        self.outcomes: Counter[tuple[str, str]] = Counter()

    def add(self, events: Iterable[Submitted]) -> None:
        """Record submitted events, each with what is decided of it right after it."""
        for _, batch in groupby(events, key=attrgetter("atomic_id")):
            together = list(batch)
            verdicts = decide_batch(self._fold, together)
            for event, verdict in zip(together, verdicts, strict=True):
                self._add_decision(event, verdict)

    def _add_decision(self, event: Submitted, verdict: tuple[DecidedPayload, ...]) -> None:
        sealed = (
            self._seal_or_erase(event, verdict) if isinstance(event.payload, NEEDS_KEY) else None
        )
        event_id = event.event_id.bytes
        self._add_record(event, event_id, event.payload, event.meta, 0, sealed)
        outcome = verdict[-1] if verdict else event.payload
        self.outcomes[TYPE_OF[type(outcome)], getattr(outcome, "reason", "")] += 1
        cause_position = self._position
        meta = decided_meta(self._fold.rules.version)
        for index, payload in enumerate(verdict):
            decided_id = decided_id_bytes(event_id, index)
            self._add_record(event, decided_id, payload, meta, cause_position)

    def _seal_or_erase(self, event: Submitted, verdict: tuple[DecidedPayload, ...]) -> bytes | None:
        """Encrypt the name of a registration, return its data; for an erasure destroy the key."""
        customer_id, at_us, keys = event.stream_id.bytes, self._recorded_at_us, self._keys
        takes_effect = not is_refusal(verdict)
        match event.payload:
            case CustomerRegistered() as registration:
                if takes_effect:
                    key = keys.create(customer_id, at_us)
                else:
                    key = keys.get_or_discarded(customer_id)
                return seal(event.event_id.bytes, registration, key)
            case CustomerErased() if takes_effect:
                keys.destroy(customer_id, at_us)
        return None

    def _add_record(
        self,
        cause: Submitted,
        event_id: bytes,
        payload: AnyPayload,
        meta: bytes,
        cause_position: int,
        sealed: bytes | None = None,
    ) -> None:
        stream_id = cause.stream_id.bytes
        name = TYPE_OF[type(payload)]
        self._position += 1
        self._versions[stream_id] += 1
        record = Record(
            self._position,
            event_id,
            stream_id,
            self._versions[stream_id],
            name,
            SEALED_VERSION if sealed else CURRENT[name],
            cause_position,
            cause.occurred_at_us,
            self._recorded_at_us,
            meta,
            sealed or encode_payload(payload),
        )
        self._hash = next_hash(self._hash, record)
        self.records.append(structs.replace(record, hash=self._hash))


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


def order_streams(fold: Fold, versions: Iterable[bytes]) -> list[bytes]:
    """Return the streams that may be those of orders, whose histories are needed to decide.

    Any event on such a stream needs it: else an id would count as new once its order was forgotten.
    """
    return [
        stream_id
        for stream_id in versions
        if (key := UUID(bytes=stream_id)) not in fold.customers and key not in fold.products
    ]
