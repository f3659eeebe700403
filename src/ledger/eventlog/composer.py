"""One batch of the writer, without I/O: submitted events in, the records to append out."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from uuid import UUID

from msgspec import structs

from ledger.core.decider import evolve_order
from ledger.core.events import (
    TYPE_OF,
    AnyPayload,
    CustomerErased,
    CustomerRegistered,
    DecidedPayload,
    OrderPlaced,
    SubmittedPayload,
)
from ledger.core.fold import Fold, effective, is_refusal
from ledger.core.state import Order
from ledger.eventlog.chain import next_hash
from ledger.eventlog.codec import CURRENT, decided_meta, encode_payload, recorded
from ledger.eventlog.encryption import KEYED, SEALED_VERSION, CustomerKeys, sealed_data
from ledger.eventlog.records import Record, Submitted, decided_id


class Composer:
    """Decides submitted events after `position` and makes their records, chained and versioned.

    `keys` makes and destroys the keys of the customers that are registered and erased on the way.
    `outcomes` counts the submitted events by what came of them and why.
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
        for atomic_id, group in groupby(events, key=attrgetter("atomic_id")):
            if atomic_id is None:
                for event in group:
                    self._record_both(event, self._fold.submit(event.stream_id, event.payload))
            else:
                self._add_atomic(list(group))

    def _add_atomic(self, events: Sequence[Submitted]) -> None:
        orders = [(e.stream_id, e.payload) for e in events if isinstance(e.payload, OrderPlaced)]
        decided = self._fold.submit_atomic(orders)
        for event, payloads in zip(events, decided, strict=True):
            self._record_both(event, payloads)

    def _record_both(self, event: Submitted, decided: tuple[DecidedPayload, ...]) -> None:
        sealed = self._sealed(event, decided) if isinstance(event.payload, KEYED) else None
        self._record(event, event.event_id, event.payload, event.meta, 0, sealed)
        self.outcomes[_outcome(event.payload, decided)] += 1
        cause_position = self._position
        meta = decided_meta(self._fold.rules.version)
        for index, payload in enumerate(decided):
            event_id = decided_id(event.event_id, index)
            self._record(event, event_id, payload, meta, cause_position)

    def _sealed(self, event: Submitted, decided: tuple[DecidedPayload, ...]) -> bytes | None:
        """The data under seal of a registration; an erasure, which has none, destroys the key."""
        customer_id, at_us, keys = event.stream_id.bytes, self._recorded_at_us, self._keys
        takes_effect = not is_refusal(decided)
        match event.payload:
            case CustomerRegistered() as registration:
                key = keys.make(customer_id, at_us) if takes_effect else keys.at_hand(customer_id)
                return sealed_data(event.event_id.bytes, registration, key)
            case CustomerErased() if takes_effect:
                keys.destroy(customer_id, at_us)
        return None

    def _record(
        self,
        cause: Submitted,
        event_id: UUID,
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
            event_id.bytes,
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


def _outcome(submitted: SubmittedPayload, decided: Sequence[DecidedPayload]) -> tuple[str, str]:
    """The type that tells what came of it, and why it was refused, if it was."""
    last = decided[-1] if decided else submitted
    return TYPE_OF[type(last)], getattr(last, "reason", "")


def without_repeats(events: Iterable[Submitted], known: set[bytes]) -> list[Submitted]:
    """The events that are neither in the ledger nor earlier in the batch; the first one counts.

    Orders that are decided all or none are new together or not at all: what is left of them after
    a repeat would be decided without the others.
    """
    first: dict[UUID, Submitted] = {}
    torn: set[UUID | None] = set()
    for event in events:
        if (
            event.event_id.bytes in known
            or first.setdefault(event.event_id, event).atomic_id != event.atomic_id
        ):
            torn.add(event.atomic_id)
    return [e for e in first.values() if e.atomic_id is None or e.atomic_id not in torn]


def order_streams(fold: Fold, versions: Iterable[bytes]) -> list[bytes]:
    """Those of the streams with a history that may hold an order, which must be at hand to decide.

    Whatever is asked of such a stream: else an id would count as new once its order was forgotten.
    """
    return [
        stream_id
        for stream_id in versions
        if (key := UUID(bytes=stream_id)) not in fold.customers and key not in fold.products
    ]


def recall_orders(fold: Fold, histories: Iterable[Sequence[Record]]) -> None:
    """Bring orders back to hand from their histories."""
    for history in histories:
        order: Order | None = None
        events = list(effective([recorded(record) for record in history]))
        for event in events:
            order = evolve_order(order, event.payload)
        if order:
            fold.orders[events[0].stream_id] = order
