"""What is known of a run once it is over."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ledger.core.events import Recorded
from ledger.eventlog.codec import decode_recorded
from ledger.eventlog.records import Record
from tests.core.story import effective
from tests.faults.history import History
from tests.projections.view_rows import View

Views = Mapping[str, View]


@dataclass(frozen=True)
class HeadSeen:
    """Where the ledger ended at some moment of the run."""

    position: int
    hash: bytes
    epoch: int


@dataclass(frozen=True)
class Evidence:
    """All that is known of a run once everything works again and nobody asks for anything."""

    records: Sequence[Record]
    history: History
    keys: Mapping[bytes, bytes | None] = field(default_factory=dict)
    heads: Sequence[HeadSeen] = ()
    views: Sequence[tuple[int, Views]] = ()
    waiting: int = 0
    parked: Sequence[bytes] = ()
    planted: frozenset[bytes] = frozenset()
    hears_from_s: Mapping[str, Sequence[float]] = field(default_factory=dict)
    not_told_s: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def events(self) -> Iterator[Recorded]:
        """The events that took effect, as far as they can be read."""
        return effective([decode_recorded(record, self.keys) for record in self.records])
