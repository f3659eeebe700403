"""What a fault is, and the faults by name."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from tests.faults.world import World

Inject = Callable[[World, Random, float], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """Breaks something for about so many seconds; what is still broken then, `World.heal` mends.

    One that is `alone` needs the rest of the world to work; others may come together.
    """

    name: str
    inject: Inject
    alone: bool = False
    slow: bool = False

    @property
    def kind(self) -> str:
        """The name without what it was done to."""
        return self.name.split(":")[0]


FAULTS: Final[dict[str, Fault]] = {}


def add(name: str, inject: Inject, *, alone: bool = False, slow: bool = False) -> None:
    """Make a fault known; a slow one takes over ten seconds and is left out of the short matrix."""
    assert name not in FAULTS
    FAULTS[name] = Fault(name, inject, alone, slow)
