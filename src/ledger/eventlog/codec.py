"""Events to bytes and back: CloudEvents on the wire, canonical JSON at rest, upcasters.

The wire form is CloudEvents 1.0 in its JSON format; a group of events is its JSON batch format.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from msgspec import UNSET, DecodeError, Meta, Raw, Struct, UnsetType, convert
from msgspec.json import Decoder, Encoder

from ledger.core.events import DECIDED, SUBMITTED, TYPE_OF, AnyPayload, OrderPlaced, Recorded
from ledger.eventlog.encryption import is_sealed, unseal
from ledger.eventlog.records import DECIDED_UUID_VERSION, Record, Submitted
from ledger.runtime.timestamps import MAX_US, from_us, to_us

BATCH_CONTENT_TYPE: Final = "application/cloudevents-batch+json"
EVENT_CONTENT_TYPE: Final = "application/cloudevents+json"
# Of the type system of CloudEvents: an integer has 32 bits, with its sign.
MAX_INTEGER: Final = 2**31 - 1
# Enough for 64 bits.
SEQUENCE_DIGITS: Final = 19
MAX_SOURCE: Final = 200
MAX_SUBMITTER: Final = 200
DECIDED_SOURCE: Final = "/writer"
MAX_TRACEPARENT: Final = 100
# More bad elements of one message are parked as that message: each would be a message of its own,
# and hold up all that waits behind it.
MAX_REJECTED: Final = 1_000

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
# By type and schema_version: the function that lifts data to the next schema_version.
UPCASTERS: Final[dict[tuple[str, int], Upcaster]] = {}

# The current schema_version of each event type, as it is submitted or decided: one more than its
# upcasters. A registration is recorded in a version of its own, with its name encrypted.
CURRENT: Final[dict[str, int]] = {
    name: 1 + sum(of == name for of, _ in UPCASTERS) for name in (*SUBMITTED, *DECIDED)
}

NO_KEYS: Final[Mapping[bytes, bytes | None]] = {}

_PAYLOADS: Final[dict[str, type[AnyPayload]]] = {**SUBMITTED, **DECIDED}


class Unreadable(Exception):
    """Bytes that can't become an event: not JSON, an unknown type, a value out of range."""


class Envelope(Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """A CloudEvent with our extensions. Extensions that we don't know are passed over."""

    specversion: Literal["1.0"]
    id: UUID
    source: Annotated[str, Meta(min_length=1, max_length=MAX_SOURCE)]
    type: str
    subject: UUID
    time: Annotated[datetime, Meta(tz=True)]
    data: Raw = Raw(b"{}")
    schemaversion: int = 1
    submitter: Annotated[str, Meta(min_length=1, max_length=MAX_SUBMITTER)] | None = None
    traceparent: Annotated[str, Meta(max_length=MAX_TRACEPARENT)] | None = None
    atomicid: UUID | None = None


class CloudEvent(Envelope, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """A CloudEvent as the ledger gives it out; `hash` is in hex, `recordedtime` the writer's.

    `sequence` is the position, as a string that sorts as the position does
    (https://github.com/cloudevents/spec/blob/main/cloudevents/extensions/sequence.md). `position`
    is the same as a number, for as long as CloudEvents has integers for it, which end at 2^31 - 1.
    `origin` is the source that a submitted event was recorded with, where `source` is the ledger.
    """

    data: Raw
    datacontenttype: Literal["application/json"]
    schemaversion: int
    sequence: str
    position: int | UnsetType = UNSET
    version: int
    origin: str | None = None
    recordedtime: Annotated[datetime, Meta(tz=True)]
    causationid: UUID | None = None
    rules: int = 1
    hash: str


class Origin(Struct, frozen=True, gc=False, omit_defaults=True):
    """The `meta` column, decoded: where a submitted event came from and who sent it.

    That of a decided event has only the version of the rules.
    """

    source: str = DECIDED_SOURCE
    submitter: str | None = None
    traceparent: str | None = None
    atomicid: UUID | None = None
    rules: int = 1


class Rejected(Struct, frozen=True):
    """Bytes that are no event, and why: a `whole` message, or one element of a batch."""

    body: bytes
    reason: str
    whole: bool = True


_BAD = (DecodeError, UnicodeDecodeError, RecursionError, OverflowError)
# What `decode_recorded`, `decode_payload` and `origin_of` raise for bytes that no event has.
READ_ERRORS: Final = (*_BAD, Unreadable)
# Canonical JSON: sorted keys, no white space, UTF-8, integers only.
_encode = Encoder(order="sorted").encode
encode_payload: Final[Callable[[AnyPayload], bytes]] = _encode
_decode_group = Decoder(list[Envelope]).decode
_decode_elements = Decoder(list[Raw]).decode
_decode_envelope = Decoder(Envelope).decode
_decode_object = Decoder(dict[str, Any]).decode
_decode_origin = Decoder(Origin).decode
_decode_payload: Final = {name: Decoder(payload).decode for name, payload in _PAYLOADS.items()}


def encode_submitted(event: Submitted, source: str | None) -> bytes:
    """The event as one CloudEvent from a source: by default the one that its `meta` names."""
    name = TYPE_OF[type(event.payload)]
    return _encode(
        Envelope(
            specversion="1.0",
            id=event.event_id,
            source=source or _decode_origin(event.meta).source,
            type=name,
            subject=event.stream_id,
            time=from_us(event.occurred_at_us),
            data=Raw(_encode(event.payload)),
            schemaversion=CURRENT[name],
            submitter=event.submitter,
            traceparent=event.traceparent,
            atomicid=event.atomic_id,
        )
    )


def source_of(ledger_id: UUID) -> str:
    """The `source` of the events that a ledger gives out: with it each `id` is unique anywhere."""
    return ledger_id.urn


def encode_recorded(record: Record, cause_id: bytes | None, source: str | None = None) -> bytes:
    """The record as one CloudEvent; `cause_id` is the id of the event that it was decided of.

    Without a `source` it has the one that it was recorded with.
    """
    origin = origin_of(record)
    return _encode(
        CloudEvent(
            specversion="1.0",
            id=UUID(bytes=record.event_id),
            source=source or origin.source,
            origin=origin.source if source and not record.cause_position else None,
            type=record.type,
            subject=UUID(bytes=record.stream_id),
            time=from_us(record.occurred_at_us),
            data=Raw(record.data),
            datacontenttype="application/json",
            schemaversion=record.schema_version,
            submitter=origin.submitter,
            traceparent=origin.traceparent,
            atomicid=origin.atomicid,
            sequence=f"{record.position:0{SEQUENCE_DIGITS}}",
            position=record.position if record.position <= MAX_INTEGER else UNSET,
            version=record.version,
            recordedtime=from_us(record.recorded_at_us),
            causationid=UUID(bytes=cause_id) if cause_id else None,
            rules=origin.rules,
            hash=record.hash.hex(),
        )
    )


def origin_of(record: Record) -> Origin:
    """The decoded `meta` of a record; raises READ_ERRORS."""
    return _decode_origin(record.meta)


def uuid_of(sixteen: bytes) -> UUID:
    """Convert 16 bytes to a UUID."""
    # Half of the time that UUID itself takes, for each event that is read.
    return convert(sixteen, UUID)


def encode_group(events: Iterable[bytes]) -> bytes:
    """Encoded events as one CloudEvents JSON batch."""
    return b"[" + b",".join(events) + b"]"


def decode_group(body: bytes) -> tuple[list[Submitted], list[Rejected]]:
    """The events of one message in order, and what of it could not be read.

    A bad element does not spoil its neighbours. A body that is no JSON array is rejected whole; one
    of more than MAX_REJECTED bad elements is, too, besides the events of it that can be read.
    """
    with suppress(*READ_ERRORS):
        return [_from_envelope(envelope) for envelope in _decode_group(body)], []
    # One by one, to find the bad ones.
    try:
        elements = _decode_elements(body)
    except _BAD as error:
        return [], [Rejected(body, _reason(error))]
    events: list[Submitted] = []
    rejected: list[Rejected] = []
    for element in elements:
        try:
            events.append(_from_envelope(_decode_envelope(element)))
        except READ_ERRORS as error:
            rejected.append(Rejected(bytes(element), _reason(error), whole=False))
    if len(rejected) > MAX_REJECTED:
        why = f"{len(rejected)} of {len(elements)} events, the first: {rejected[0].reason}"
        return events, [Rejected(body, why)]
    return events, rejected


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _from_envelope(envelope: Envelope) -> Submitted:
    if envelope.type not in SUBMITTED:
        raise Unreadable(f"{envelope.type!r} is not the type of a submitted event")
    if envelope.id.version == DECIDED_UUID_VERSION:
        raise Unreadable("an id of UUID version 8 is reserved for decided events")
    payload = decode_payload(envelope.type, envelope.schemaversion, bytes(envelope.data))
    if envelope.atomicid and not may_be_atomic(payload):
        raise Unreadable("only orders are decided all or none: atomicid must not be there")
    occurred_at_us = to_us(envelope.time)
    if not 0 <= occurred_at_us <= MAX_US:
        raise Unreadable("time in UTC is before 1970 or after 9999")
    return Submitted(
        envelope.id,
        envelope.subject,
        occurred_at_us,
        payload,  # type: ignore[arg-type]  # SUBMITTED, checked above
        _meta(envelope.source, envelope.submitter, envelope.traceparent, envelope.atomicid),
        envelope.submitter,
        envelope.traceparent,
        envelope.atomicid,
    )


def may_be_atomic(payload: AnyPayload) -> bool:
    """True for an order that has yet to be decided: no other event can be of an atomic batch."""
    return isinstance(payload, OrderPlaced) and payload.history is UNSET


@lru_cache(maxsize=1024)
def _meta(
    source: str, submitter: str | None, traceparent: str | None, atomic_id: UUID | None
) -> bytes:
    return _encode(Origin(source, submitter, traceparent, atomic_id))


@lru_cache(maxsize=64)
def decided_meta(rules: int) -> bytes:
    """The `meta` of events decided by a version of the rules; for the first version it is {}."""
    return _encode(Origin(rules=rules))


def decode_payload(name: str, version: int, data: bytes) -> AnyPayload:
    """The payload of an event type, upcast if its schema_version is an old one.

    Raises Unreadable for an unknown type or schema_version, msgspec.DecodeError for bad data.
    """
    decode = _decode_payload.get(name)
    if decode is None:
        raise Unreadable(f"unknown event type {name!r}")
    if version == CURRENT[name]:
        return decode(data)
    if not 1 <= version < CURRENT[name]:
        raise Unreadable(f"{name} is known up to schema_version {CURRENT[name]}, not {version}")
    fields = _decode_object(data)
    try:
        # An upcaster may trust the shape that it lifts from: so these mean that it is another.
        for old in range(version, CURRENT[name]):
            fields = UPCASTERS[name, old](fields)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise Unreadable(f"{name} of schema_version {version}: {error!r}") from error
    return convert(fields, _PAYLOADS[name])


def decode_recorded(record: Record, keys: Mapping[bytes, bytes | None] = NO_KEYS) -> Recorded:
    """Decode a record into an event; raises what `payload_of` raises."""
    return Recorded(
        record.position,
        uuid_of(record.stream_id),
        record.occurred_at_us,
        record.recorded_at_us,
        payload_of(record, keys),
    )


def payload_of(record: Record, keys: Mapping[bytes, bytes | None] = NO_KEYS) -> AnyPayload:
    """The payload of a record; with NO_NAME for a sealed name unless `keys` has its key.

    Raises READ_ERRORS, and WrongKey for a key that is not the name's.
    """
    if is_sealed(record):
        return unseal(record, keys.get(record.stream_id))
    return decode_payload(record.type, record.schema_version, record.data)


def decode_submitted(record: Record, keys: Mapping[bytes, bytes | None] = NO_KEYS) -> Submitted:
    """Decode the record of a submitted event into the event as it came through the inbox.

    A customer's name is NO_NAME unless `keys` has its key. Raises what `payload_of` raises.
    """
    origin = origin_of(record)
    return Submitted(
        uuid_of(record.event_id),
        uuid_of(record.stream_id),
        record.occurred_at_us,
        payload_of(record, keys),  # type: ignore[arg-type]
        record.meta,
        origin.submitter,
        origin.traceparent,
        origin.atomicid,
    )
