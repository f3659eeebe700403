"""The hash chain over the records: how a hash is made, and the one check of it."""

from collections.abc import Iterable
from hashlib import sha256
from struct import Struct as Layout
from typing import Final

from msgspec import Struct

from ledger.eventlog.records import Record

GENESIS_HASH: Final = bytes(32)
_LAYOUT = Layout(">QQQQIHHII")


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
