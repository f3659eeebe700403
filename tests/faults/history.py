"""What clients asked for and what they were told: what the ledger is held against.

An operation is what a client wants once; each time it asks for it is an attempt. The number of an
operation is the trace id of all its requests, which the ledger keeps with every event.
"""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

Body = dict[str, Any]


class Outcome(StrEnum):
    """What an attempt tells: it will be decided, it never will be, or nobody knows."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"

    @property
    def known(self) -> str:
        """What a client would call it."""
        return "acknowledged" if self is Outcome.OK else self.value


@dataclass(frozen=True)
class Expected:
    """An event that an operation should leave; a new stream's id is told by the answer."""

    type: str
    data: Body
    stream: str | None = None


@dataclass(frozen=True)
class Attempt:
    """One request of an operation, and how it ended. Times are of this machine's own clock."""

    outcome: Outcome
    api: str
    status: int
    detail: str
    began_s: float
    ended_s: float


@dataclass
class Operation:
    """What a client wants done once; with a key it may ask again."""

    number: int
    kind: str
    key: str | None
    events: Sequence[Expected]
    attempts: list[Attempt] = field(default_factory=list)
    streams: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> Outcome:
        """What the client knows by now."""
        known = {attempt.outcome for attempt in self.attempts}
        for outcome in (Outcome.OK, Outcome.UNKNOWN):
            if outcome in known:
                return outcome
        return Outcome.FAILED

    @property
    def accepted(self) -> Attempt | None:
        """The first attempt by which the client knew that it will be decided."""
        return next((a for a in self.attempts if a.outcome is Outcome.OK), None)


@dataclass(frozen=True)
class Read:
    """What a client was shown of one order, product or wallet, and at which position."""

    what: str
    id: str
    api: str
    status: int
    position: int | None
    body: Body
    began_s: float
    ended_s: float


class History:
    """All that the clients of one run asked, were told and were shown."""

    def __init__(self, path: Path) -> None:
        self.operations: dict[int, Operation] = {}
        self.reads: list[Read] = []
        self.violations: list[str] = []
        self.feed: list[tuple[int, str, str]] = []
        self.offered = Counter[str]()
        self._seen: dict[int, int] = {}
        self._made_by: defaultdict[str, list[int]] = defaultdict(list)
        self._file = path.open("a", buffering=1)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def begin(self, kind: str, key: str | None, events: Sequence[Expected]) -> Operation:
        """A new operation."""
        operation = Operation(len(self.operations) + 1, kind, key, events)
        self.operations[operation.number] = operation
        return operation

    def attempted(self, operation: Operation, attempt: Attempt, streams: Sequence[str]) -> None:
        """An attempt has ended; `streams` are the ids that its answer named."""
        operation.attempts.append(attempt)
        told = (attempt.api, attempt.outcome, attempt.status, attempt.detail, *streams)
        self.note(operation.kind, operation.number, attempt.began_s, *told)
        if streams and operation.streams and list(streams) != operation.streams:
            self.violate(f"operation {operation.number} was told other ids than before")
        if not operation.streams:
            operation.streams = list(streams)
            for stream in streams:
                if operation.events[0].stream is None:
                    self._made_by[stream].append(operation.number)
        if attempt.status == 500:
            self.violate(f"operation {operation.number} was answered with 500: {attempt.detail}")

    def shown(self, read: Read, connection: int) -> None:
        """A client was shown something, over this connection."""
        self.reads.append(read)
        self.note("read", read.what, read.id, read.api, read.status, read.position)
        if read.status == 500:
            self.violate(f"a read of {read.what} {read.id} was answered with 500")
        if read.position is not None:
            self.seen(connection, read.position)

    def seen(self, connection: int, position: int) -> None:
        """A position was told over a connection; none before it may have been later."""
        last = self._seen.get(connection, 0)
        if position < last:
            self.violate(f"on connection {connection} position {position} came after {last}")
        self._seen[connection] = max(last, position)

    def accepted(self, stream: str) -> Attempt | None:
        """The attempt by which a client first knew that this thing was accepted."""
        made = [self.operations[number].accepted for number in self._made_by[stream]]
        return min((each for each in made if each), key=lambda each: each.ended_s, default=None)

    def violate(self, what: str) -> None:
        """A client saw what it must never see."""
        self.violations.append(what)
        self.note("violation", what)

    def note(self, *about: object) -> None:
        """Write a line to the file."""
        self._file.write(json.dumps([round(time.monotonic(), 4), *about], default=str) + "\n")

    def operations_by_outcome(self) -> Counter[str]:
        """Operations by what is known of them."""
        return Counter(operation.outcome.known for operation in self.operations.values())

    def orders_by_outcome(self) -> Counter[str]:
        """Orders by what is known of them; a batch has several."""
        counts = Counter[str]()
        for operation in self.operations.values():
            orders = sum(event.type == "order.placed" for event in operation.events)
            counts[operation.outcome.known] += orders
        return counts
