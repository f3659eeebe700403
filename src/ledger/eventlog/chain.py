"""The audit of a ledger's chain, without I/O: records in, the first thing that is wrong out."""

from collections.abc import Iterable

from msgspec import Struct

from ledger.eventlog.records import GENESIS_HASH, Record, next_hash


class VerificationFailed(Exception):
    """A record or a view row is not what it must be; `position` is the first place where so."""

    def __init__(self, position: int, detail: str) -> None:
        super().__init__(f"position {position}: {detail}")
        self.position = position
        self.detail = detail


class ChainAudit(Struct):
    """Positions, hashes and recorded times; `position` is the last one that was found right."""

    position: int = 0
    hash: bytes = GENESIS_HASH
    recorded_at_us: int = 0

    def take(self, records: Iterable[Record]) -> None:
        """Check the records that come next; raises VerificationFailed."""
        last: Record | None = None
        position, hash_, recorded_at_us = self.position, self.hash, self.recorded_at_us
        try:
            for record in records:
                position += 1
                if record.position != position:
                    raise VerificationFailed(
                        position, f"the event is gone: the next is at {record.position}"
                    )
                hash_ = next_hash(hash_, record)
                if hash_ != record.hash:
                    raise VerificationFailed(
                        position, "the hash is not that of the record and of all before it"
                    )
                if record.recorded_at_us < recorded_at_us:
                    raise VerificationFailed(
                        position, "it was recorded before the event that precedes it"
                    )
                last, recorded_at_us = record, record.recorded_at_us
        finally:
            if last:
                self.position, self.hash = last.position, last.hash
                self.recorded_at_us = recorded_at_us
