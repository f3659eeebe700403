"""The records of the ledger, their ids and the hash chain over them; events as submitted."""

from collections.abc import Iterable
from hashlib import sha256
from struct import Struct as Layout
from typing import Final
from uuid import UUID

from msgspec import Struct

from ledger.core.events import SubmittedPayload

DECIDED_UUID_VERSION: Final = 8
GENESIS_HASH: Final = bytes(32)
_LAYOUT = Layout(">QQQQIHHII")


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


# Where a ledger without events ends.
EMPTY: Final = Head(0, GENESIS_HASH, 0)


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


def decided_id(cause_id: bytes, index: int) -> bytes:
    """The id of the `index`th event decided of a cause: the same on every machine, for ever.

    UUID version 8 (RFC 9562), which no submitted event may carry; its first 48 bits are those of
    the cause, so that ids made by time stay in the order of time.
    """
    digest = sha256(cause_id + index.to_bytes(4)).digest()
    version = digest[0] & 0x0F | DECIDED_UUID_VERSION << 4
    variant = digest[2] & 0x3F | 0x80
    return cause_id[:6] + bytes((version, digest[1], variant)) + digest[3:10]


class VerificationFailed(Exception):
    """A record or a row of a view is not what it must be; `position` is the first where so."""

    def __init__(self, position: int, detail: str) -> None:
        super().__init__(f"position {position}: {detail}")
        self.position = position
        self.detail = detail


class LedgerDamaged(VerificationFailed):
    """The ledger breaks its own rules; nothing may be built on it until an operator has looked."""


def next_hash(previous_hash: bytes, record: Record) -> bytes:
    """The hash of a record: SHA-256 over the hash before it and every other column.

    The lengths of the columns that have none of their own are hashed, too, so that no two
    different records are the same bytes.
    """
    name = record.type.encode()
    return sha256(
        b"".join(
            (
                previous_hash,
                _LAYOUT.pack(
                    record.position,
                    record.cause_position,
                    record.occurred_at_us,
                    record.recorded_at_us,
                    record.version,
                    record.schema_version,
                    len(name),
                    len(record.meta),
                    len(record.data),
                ),
                record.event_id,
                record.stream_id,
                name,
                record.meta,
                record.data,
            )
        )
    ).digest()


class ChainCheck(Struct):
    """Checks positions, hashes and recorded times of contiguous records.

    The three fields are those of the last record that was right: start with them to check what
    comes after a record that is trusted.
    """

    position: int = 0
    hash: bytes = GENESIS_HASH
    recorded_at_us: int = 0

    def check(self, records: Iterable[Record]) -> None:
        """Check the records that come next; raises LedgerDamaged for the first that is wrong."""
        position, hash_, recorded_at_us = self.position, self.hash, self.recorded_at_us
        last: Record | None = None
        try:
            for record in records:
                position += 1
                if record.position != position:
                    raise gap_error(position, record)
                hash_ = next_hash(hash_, record)
                if hash_ != record.hash:
                    raise LedgerDamaged(
                        position, "the hash is not that of the record and of all before it"
                    )
                if record.recorded_at_us < recorded_at_us:
                    raise LedgerDamaged(
                        position, "it was recorded before the event that precedes it"
                    )
                last, recorded_at_us = record, record.recorded_at_us
        finally:
            # Also after a failure: the caller asks for the last position that was right.
            if last:
                self.position, self.hash = last.position, last.hash
                self.recorded_at_us = last.recorded_at_us


def gap_error(position: int, found: Record | None) -> LedgerDamaged:
    """Build the error for a missing position; `found` is the next record there is, if any."""
    if found is None:
        return LedgerDamaged(position, "the event is gone, and all that came after it")
    return LedgerDamaged(position, f"the event is gone: the next is at {found.position}")
