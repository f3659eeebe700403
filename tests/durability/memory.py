"""How much memory the processes of a ledger take, over time."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import psutil

from tests.harness import Stack
from tests.ledger.pipeline import beside

LIMIT_BYTES: Final = 400 * 2**20
GROWTH_BYTES: Final = 24 * 2**20
"""What a process may have more towards the end, as no two moments are alike."""

EVERY_S: Final = 0.2


class Samples:
    """The resident memory of each process of a stack, again and again."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.bytes: dict[str, list[int]] = defaultdict(list)

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            self.take()
            await asyncio.sleep(EVERY_S)

    def take(self) -> None:
        """Measure now."""
        for name, process in self._stack.processes.items():
            self.bytes[name].append(psutil.Process(process.pid).memory_info().rss)

    def check_limit(self) -> None:
        """No process may have had too much."""
        for name, sizes in self.bytes.items():
            assert max(sizes) < LIMIT_BYTES, f"{name} took {max(sizes):,} bytes"

    def check_growth(self) -> None:
        """No process may have had more and more."""
        for name, sizes in self.bytes.items():
            third = len(sizes) // 3
            first, last = max(sizes[: third + 1]), max(sizes[-third - 1 :])
            assert last - first < GROWTH_BYTES, f"{name} grew from {first:,} to {last:,} bytes"


@asynccontextmanager
async def measured(stack: Stack) -> AsyncIterator[Samples]:
    """Measure while the block runs."""
    samples = Samples(stack)
    async with beside(samples.run()):
        yield samples
