"""`make faults`: every fault once, then seeds; or one seed for some minutes."""

import argparse
import asyncio
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

from tests.faults.run import Broken, Figures, running
from tests.faults.schedule import Round, matrix, soak


def main() -> int:
    """Run what the command line asks for; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--seed", type=int, help="soak this seed only")
    parser.add_argument("--minutes", type=float, default=3, help="how long to soak a seed")
    parser.add_argument("--seeds", type=int, default=3, help="fresh seeds after the matrix")
    parser.add_argument("--only", help="of the matrix, the rounds with a fault that matches")
    asked = parser.parse_args()
    if asked.seed is not None:
        return run(asked.seed, until(soak(asked.seed), asked.minutes))
    wanted = [each for each in matrix() if not asked.only or matches(each, asked.only)]
    if failed := run(secrets.randbelow(10**6), wanted):
        return failed
    for _ in range(0 if asked.only else asked.seeds):
        seed = secrets.randbelow(10**6)
        if failed := run(seed, until(soak(seed), asked.minutes)):
            return failed
    return 0


def matches(each: Round, pattern: str) -> bool:
    """Whether a fault of the round has a name like this."""
    return any(re.search(pattern, fault.name) for fault in each.faults)


def until(rounds: Iterable[Round], minutes: float) -> Iterator[Round]:
    """Rounds for as long as the time lasts."""
    end = time.monotonic() + 60 * minutes
    return takewhile(lambda _: time.monotonic() < end, rounds)


def run(seed: int, rounds: Iterable[Round]) -> int:
    """Run rounds on a ledger of their own, and say what came of them."""
    home = Path(tempfile.gettempdir()) / f"ledger-faults-{seed}-{secrets.token_hex(3)}"
    home.mkdir()
    say(f"seed {seed}")
    try:
        say(told(asyncio.run(work(seed, home, rounds))))
    except Broken as broken:
        say(f"✗ {broken}")
        return 1
    return 0


async def work(seed: int, home: Path, rounds: Iterable[Round]) -> Figures:
    """Run the rounds."""
    async with running(seed, home) as each:
        for number, next_ in enumerate(rounds, 1):
            say(f"{number:4}  {next_}")
            await each.round(next_)
        return each.figures


def told(figures: Figures) -> str:
    """Figures as lines."""
    faults = ", ".join(f"{name} {count}" for name, count in sorted(figures.kinds().items()))
    offered = ", ".join(f"{name} {count}" for name, count in sorted(figures.offered.items()))
    asked = figures.operations
    return (
        f"✓ {figures.rounds} rounds, {figures.faults.total()} faults: {faults}\n"
        f"  operations: {asked.total()}, acknowledged {asked['ok']}, unknown {asked['unknown']},"
        f" failed {asked['failed']}; reads: {figures.reads}\n"
        f"  decided: {figures.decided}, recorded: {figures.recorded} events\n"
        f"  offered again, and decided once: {offered or 'nothing'}\n"
        f"  longest time to heal: {figures.longest_heal_s:.1f} s"
    )


def say(line: str) -> None:
    """Print at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
