"""The records of the ledger as they are stored, events as they were submitted, and their ids."""

from hashlib import sha256
from typing import Final
from uuid import UUID

from msgspec import Struct

from ledger.core.events import SubmittedPayload

DECIDED_UUID_VERSION: Final = 8


class Record(Struct, frozen=True, gc=False):
    """One row of the ledger, column for column; `data` and `meta` are canonical JSON bytes."""

    position: int
    event_id: bytes
    stream_id: bytes
    version: int
    type: str
    schema_version: int
    cause_position: int
    occurred_at_us: int
    recorded_at_us: int
    meta: bytes
    data: bytes
    hash: bytes = b""


COLUMNS: Final = ", ".join(Record.__struct_fields__)


class Head(Struct, frozen=True):
    """Where the ledger ends, and the epoch of the writer that may append to it."""

    position: int
    hash: bytes
    epoch: int


class Submitted(Struct, frozen=True, gc=False):
    """An event as it came through the inbox. `occurred_at_us` is µs since the Unix epoch, UTC.

    Orders with the same `atomic_id`, next to each other in one group, are decided all or none.
    `submitter` names who asked for it and `traceparent` the W3C trace that it belongs to.
    """

    event_id: UUID
    stream_id: UUID
    occurred_at_us: int
    payload: SubmittedPayload
    meta: bytes = b"{}"
    submitter: str | None = None
    traceparent: str | None = None
    atomic_id: UUID | None = None


def decided_id(cause_id: UUID, index: int) -> UUID:
    """The id of the `index`th event decided of a cause: the same on every machine, for ever.

    UUID version 8 (RFC 9562), which no submitted event may carry; its first 48 bits are those of
    the cause, so that ids made by time stay in the order of time.
    """
    return UUID(bytes=decided_id_bytes(cause_id.bytes, index))


def decided_id_bytes(cause_id: bytes, index: int) -> bytes:
    """Return the id as bytes, as the `event_id` column holds it."""
    digest = sha256(cause_id + index.to_bytes(4)).digest()
    version = digest[0] & 0x0F | DECIDED_UUID_VERSION << 4
    variant = digest[2] & 0x3F | 0x80
    return cause_id[:6] + bytes((version, digest[1], variant)) + digest[3:10]
