"""Which faults come when: every one of them once, or as a seed has it for as long as asked."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from random import Random

from tests.faults import (
    command_faults,
    disk_faults,
    message_faults,
    network_faults,
    process_faults,
    server_faults,
)
from tests.faults.fault import FAULTS, Fault

MODULES = (
    command_faults,
    disk_faults,
    message_faults,
    network_faults,
    process_faults,
    server_faults,
)
"""Each makes its faults known as it's loaded."""


@dataclass(frozen=True)
class Round:
    """Faults between two checks, one after the other or all at once."""

    faults: tuple[Fault, ...]
    seconds: float
    together: bool = False

    def __str__(self) -> str:
        return (" + " if self.together else ", ").join(fault.name for fault in self.faults)


def _round(*names: str, seconds: float = 0.7, together: bool = False) -> Round:
    return Round(tuple(FAULTS[name] for name in names), seconds, together)


SHORT = (
    _round("kill:writer", "kill:projector", "kill:api"),
    _round(
        "kill:broker",
        "kill:database",
        "alarm:memory",
        "connections-dropped:database",
        together=True,
    ),
    _round("pause:writer", "pause:database", together=True),
    _round("pause:broker", "terminate:writer", "terminate:projector", "terminate:api"),
    _round(
        "network:reset:api-broker",
        "network:cut:writer-database",
        "network:half-close:writer-broker",
        "network:black-hole:projector-database",
        "network:one-way:api-broker",
        "network:delay:writer-database",
        "network:trickle:client-api",
        "network:cut-after:client-api",
    ),
    _round("lost:answer:commit", "lost:message:ack", "lost:answer:confirm"),
    _round("messages:duplicated", "messages:shuffled", "messages:replayed", "poison"),
    _round(
        "failpoint:publisher.before-confirm=die",
        "failpoint:writer.commit-sent=die",
        "failpoint:writer.after-commit=stop",
        "failpoint:projector.before-commit=raise",
    ),
    _round("writers:upgrade", "writers:overtaken"),
    _round("writers:without-single-active-consumer"),
    _round("inbox-full", "disk-full:broker", "alarm:memory"),
    _round("queue-removed"),
    _round("permission-removed:writer", "connections-dropped:database"),
    _round("consumer-timeout:short"),
    _round("crashes:consumer", "clock"),
    _round("rebuild:all"),
    _round("kill-all"),
)
"""Each kind of fault, in a few minutes."""


def matrix() -> Iterator[Round]:
    """Every fault once, and all pairs of processes and servers that die or stop together."""
    for fault in FAULTS.values():
        if fault.alone:
            yield Round((fault,), 1.5)
    gentle = [fault for fault in FAULTS.values() if not fault.alone]
    for start in range(0, len(gentle), 4):
        yield Round(tuple(gentle[start : start + 4]), 1.5)
    for one, other in combinations(process_faults.TARGETS, 2):
        yield Round((FAULTS[f"kill:{one}"], FAULTS[f"kill:{other}"]), 1.5, together=True)
        yield Round((FAULTS[f"pause:{one}"], FAULTS[f"kill:{other}"]), 1.5, together=True)
        yield Round((FAULTS[f"pause:{one}"], FAULTS[f"pause:{other}"]), 1.5, together=True)


def soak(seed: int) -> Iterator[Round]:
    """Rounds without end, as the seed has them."""
    chance = Random(f"{seed} rounds")
    alone = [fault for fault in FAULTS.values() if fault.alone and not fault.slow]
    others = [fault for fault in FAULTS.values() if not fault.alone]
    while True:
        seconds = round(chance.choice([0.2, 1, 1, 2, 4]), 1)
        if chance.random() < 0.3:
            yield Round((_one_of(alone, chance),), seconds)
        else:
            chosen = {_one_of(others, chance): None for _ in range(chance.randint(1, 4))}
            yield Round(tuple(chosen), seconds, together=chance.random() < 0.7)


def _one_of(faults: Sequence[Fault], chance: Random) -> Fault:
    """A fault: a kind with many of them comes more often than others, yet not as often as all."""
    kinds = Counter(fault.kind for fault in faults)
    (kind,) = chance.choices(list(kinds), [sqrt(count) for count in kinds.values()])
    return chance.choice([fault for fault in faults if fault.kind == kind])
