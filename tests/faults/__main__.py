"""`make faults`: every fault once, then seeds; or one seed for some minutes."""

import argparse
import asyncio
import re
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
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
    parser.add_argument("--no-matrix", action="store_true", help="only seeds")
    done: list[Figures] = []
    try:
        for seed, rounds in runs(parser.parse_args()):
            done.append(run(seed, rounds))
    except Broken as broken:
        say(f"✗ {broken}")
        return 1
    finally:
        if len(done) > 1:
            say(f"{len(done)} runs in all")
            say(told(sum(done, Figures())))
    return 0


def runs(asked: argparse.Namespace) -> Iterator[tuple[int, Iterable[Round]]]:
    """Seeds, and what to do with each."""
    if asked.seed is not None:
        yield asked.seed, until(soak(asked.seed), asked.minutes)
        return
    if not asked.no_matrix:
        only = asked.only or ""
        yield secrets.randbelow(10**6), [each for each in matrix() if matches(each, only)]
    for _ in range(0 if asked.only else asked.seeds):
        seed = secrets.randbelow(10**6)
        yield seed, until(soak(seed), asked.minutes)


def matches(each: Round, pattern: str) -> bool:
    """Whether a fault of the round has a name like this."""
    return any(re.search(pattern, fault.name) for fault in each.faults)


def until(rounds: Iterable[Round], minutes: float) -> Iterator[Round]:
    """Rounds for as long as the time lasts, from the first one on."""
    end = 0.0
    for round_ in rounds:
        end = end or time.monotonic() + 60 * minutes
        if time.monotonic() >= end:
            return
        yield round_


def run(seed: int, rounds: Iterable[Round]) -> Figures:
    """Run rounds on a ledger of their own, and say what came of them; raises Broken."""
    home = Path(tempfile.gettempdir()) / f"ledger-faults-{seed}-{secrets.token_hex(3)}"
    home.mkdir()
    say(f"seed {seed}")
    figures = asyncio.run(work(seed, home, rounds))
    say(told(figures))
    return figures


async def work(seed: int, home: Path, rounds: Iterable[Round]) -> Figures:
    """Run the rounds."""
    async with running(seed, home) as each:
        for number, next_ in enumerate(rounds, 1):
            say(f"{number:4}  {next_}")
            await each.round(next_)
        return each.figures


def told(figures: Figures) -> str:
    """Figures as lines."""
    orders, operations = figures.orders, figures.operations
    return (
        f"✓ {figures.rounds} rounds, {figures.faults.total()} faults: {listed(figures.kinds())}\n"
        f"  orders: {orders.total()} submitted, {listed(orders)}; {figures.ordered} decided\n"
        f"  operations, orders among them: {operations.total()}, {listed(operations)};"
        f" {figures.decided} events decided, {figures.recorded} recorded\n"
        f"  duplicates, all refused: {figures.offered.total()} events, {listed(figures.offered)}\n"
        f"  views and answers to {figures.reads} reads held against the ledger\n"
        f"  longest time to heal: {figures.longest_heal_s:.1f} s"
    )


def listed(counts: Counter[str]) -> str:
    """Counts by name."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def say(line: str) -> None:
    """Print at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
