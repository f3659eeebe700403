"""The audit of a ledger's chain, without I/O: records in, the first thing that is wrong out."""

from collections.abc import Iterable

from msgspec import Struct

from ledger.chain import GENESIS_HASH, Record, next_hash


class Wrong(Exception):
    """What is wrong with a ledger or with a view of it, at the first position where it is."""

    def __init__(self, position: int, what: str) -> None:
        super().__init__(f"position {position}: {what}")
        self.position = position
        self.what = what


class ChainAudit(Struct):
    """Positions, hashes and recorded times; `position` is the last one that was found right."""

    position: int = 0
    hash: bytes = GENESIS_HASH
    recorded_at_us: int = 0

    def take(self, records: Iterable[Record]) -> None:
        """Check the records that come next; raises Wrong."""
        for record in records:
            if record.position != self.position + 1:
                raise Wrong(
                    self.position + 1, f"the event is gone: the next one is at {record.position}"
                )
            hash_ = next_hash(self.hash, record)
            if hash_ != record.hash:
                raise Wrong(
                    record.position, "the hash is not that of the record and of all before it"
                )
            if record.recorded_at_us < self.recorded_at_us:
                raise Wrong(record.position, "it was recorded before the event that precedes it")
            self.position, self.hash = record.position, hash_
            self.recorded_at_us = record.recorded_at_us
