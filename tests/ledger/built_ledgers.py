"""Ledgers built without a server, as a writer records them, or forged so that the chain holds."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from msgspec import structs

from ledger.audit.decision_audit import DecisionAudit, Earlier, check_page
from ledger.core.decider import Fold
from ledger.core.pricing import CURRENT_RULES, Rules
from ledger.eventlog.codec import decode_group, encode_group, encode_submitted
from ledger.eventlog.decisions import compose, last_decision_index
from ledger.eventlog.encryption import CustomerKeys
from ledger.eventlog.records import GENESIS_HASH, ChainCheck, Head, Record, Submitted, next_hash


class LedgerBuilder:
    """Records events batch by batch, as a writer does that forgets no order."""

    def __init__(self) -> None:
        self._fold = Fold()
        self._keys = CustomerKeys({})
        self.records: list[Record] = []

    def record(self, events: Iterable[Submitted], rules: Rules = CURRENT_RULES) -> None:
        """One batch, as it came through the inbox."""
        events, rejected = decode_group(
            encode_group(encode_submitted(event, "/tests") for event in events)
        )
        assert rejected == []
        self._fold.rules = rules
        hash_ = self.records[-1].hash if self.records else GENESIS_HASH
        head = Head(len(self.records), hash_, 0)
        versions = Counter(record.stream_id for record in self.records)
        at_us = 1_000_000 + len(self.records)
        self.records += compose(events, self._fold, head, versions, at_us, self._keys).records


def records_of(*batches: Iterable[Submitted]) -> list[Record]:
    """The ledger of these batches."""
    scribe = LedgerBuilder()
    for batch in batches:
        scribe.record(batch)
    return scribe.records


def pages_of(
    records: Sequence[Record], page: int
) -> Iterator[tuple[Sequence[Record], Sequence[Record]]]:
    """The ledger in pages of whole decisions and batches; with each, all that stands before it."""
    after, limit = 0, page
    while after < len(records):
        found = records[after : after + limit]
        if after + limit < len(records):
            found = found[: last_decision_index(found, whole_batches=True)]
        if found:
            yield records[:after], found
            after, limit = after + len(found), page
        else:
            limit *= 2


def audited(records: Sequence[Record], page: int = 10_000) -> Fold:
    """Audit a ledger page by page and return the fold; raises VerificationFailed.

    As in `ledger verify`, a page is looked up before the one before it is checked.
    """
    chain, decisions = ChainCheck(), DecisionAudit(Fold())
    pages: list[tuple[Sequence[Record], Earlier]] = []
    for before, found in pages_of(records, page):
        pages.append((found, _earlier(before, decisions.streams_to_look_up(found))))
        if len(pages) > 1:
            check_page(chain, decisions, *pages.pop(0))
    for last in pages:
        check_page(chain, decisions, *last)
    return decisions.fold


def _earlier(before: Sequence[Record], streams: Iterable[bytes]) -> Earlier:
    histories = {each: [r for r in before if r.stream_id == each] for each in streams}
    positions = {record.event_id: record.position for record in before}
    return Earlier({each: history for each, history in histories.items() if history}, positions)


def rechained(records: Iterable[Record]) -> list[Record]:
    """The records at dense positions, with the hashes that they would have."""
    made: list[Record] = []
    hash_ = GENESIS_HASH
    for position, record in enumerate(records, 1):
        moved = structs.replace(record, position=position)
        hash_ = next_hash(hash_, moved)
        made.append(structs.replace(moved, hash=hash_))
    return made


def forged(records: Sequence[Record], position: int, **changes: Any) -> list[Record]:
    """The ledger with one record changed, and every hash from there on made anew."""
    changed = structs.replace(records[position - 1], **changes)
    return rechained([*records[: position - 1], changed, *records[position:]])
