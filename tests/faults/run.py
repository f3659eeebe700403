"""A run: one ledger, clients that never stop, and rounds of faults, each healed and checked."""

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from traceback import format_exc
from typing import Final

from tests.faults.checker import check
from tests.faults.evidence import Evidence
from tests.faults.history import History
from tests.faults.observer import Observer
from tests.faults.schedule import Round
from tests.faults.workload import Clients
from tests.faults.world import APIS, World, open_world
from tests.ledger.pipeline import beside

INJECTED_WITHIN_S: Final = 900.0
HEARS: Final = "receiving the orders that other API processes accept"
NOT_TOLD: Final = "were not told of"
"""What an API process logs that has missed, or has others miss, what was accepted."""


class Broken(Exception):
    """A promise was broken: what, in which round, and where the evidence is."""


@dataclass
class Figures:
    """What a run amounts to."""

    rounds: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    orders: Counter[str] = field(default_factory=Counter)
    ordered: int = 0
    offered: Counter[str] = field(default_factory=Counter)
    reads: int = 0
    recorded: int = 0
    decided: int = 0
    longest_heal_s: float = 0.0

    def __add__(self, other: "Figures") -> "Figures":
        """What two runs amount to together."""
        return Figures(
            self.rounds + other.rounds,
            self.faults + other.faults,
            self.operations + other.operations,
            self.orders + other.orders,
            self.ordered + other.ordered,
            self.offered + other.offered,
            self.reads + other.reads,
            self.recorded + other.recorded,
            self.decided + other.decided,
            max(self.longest_heal_s, other.longest_heal_s),
        )

    def kinds(self) -> Counter[str]:
        """Faults by kind."""
        kinds = Counter[str]()
        for name, count in self.faults.items():
            kinds[name.split(":")[0]] += count
        return kinds


class Run:
    """One run, whose faults and clients follow from its seed."""

    def __init__(self, seed: int, world: World, clients: Clients, observer: Observer) -> None:
        self.seed = seed
        self.home = world.servers.home
        self.world = world
        self.figures = Figures()
        self._clients = clients
        self._observer = observer
        self.broken = False
        self._parked: list[bytes] = []

    async def round(self, round_: Round) -> None:
        """Break what the round says, heal everything, and check; raises Broken."""
        if self.broken:
            raise Broken("a round before this one failed")
        self.broken = True
        history = self.world.history
        history.note("round", round_)
        try:
            await self._inject(round_)
            await self._observer.look_at_views()
            async with self._clients.waiting():
                heal_s = await self.world.heal()
                await self._clients.settle()
                await self.world.until_quiet()
                evidence = await self._evidence()
                violations = check(evidence)
        except Exception as error:  # noqa: BLE001  # whatever it is, the run has failed
            history.note("traceback", format_exc())
            violations = list(_reasons(error))
        if violations:
            said = "\n".join(f"- {violation}" for violation in violations)
            raise Broken(f"seed {self.seed}, after {round_}:\n{said}\nsee {self.home}")
        self.broken = False
        self._count(round_, heal_s, evidence)

    async def _inject(self, round_: Round) -> None:
        works = [
            fault.inject(
                self.world, Random(f"{self.seed} {self.figures.rounds} {n}"), round_.seconds
            )
            for n, fault in enumerate(round_.faults)
        ]
        async with asyncio.timeout(INJECTED_WITHIN_S), asyncio.TaskGroup() as injecting:
            for work in works:
                task = injecting.create_task(work)
                if not round_.together:
                    await asyncio.wait((task,))

    async def _evidence(self) -> Evidence:
        """All there is to know now."""
        world, ledger = self.world, self.world.ledger
        await self._observer.look_at_views()
        self._parked += [body for body, _ in await ledger.until_parked(0)]
        return Evidence(
            await ledger.records(),
            world.history,
            await ledger.keys(),
            list(self._observer.heads),
            list(self._observer.views),
            await world.until_nothing_left(),
            self._parked,
            frozenset(world.planted),
            {api: world.logged(api, HEARS) for api in APIS},
            {api: world.logged(api, NOT_TOLD) for api in APIS},
        )

    def _count(self, round_: Round, heal_s: float, evidence: Evidence) -> None:
        figures, history = self.figures, self.world.history
        figures.rounds += 1
        figures.faults.update(fault.name for fault in round_.faults)
        figures.operations = history.operations_by_outcome()
        figures.orders = history.orders_by_outcome()
        figures.offered = history.offered
        figures.reads += len(history.reads)
        figures.recorded = len(evidence.records)
        submitted = Counter(each.type for each in evidence.records if each.cause_position == 0)
        figures.ordered, figures.decided = submitted["order.placed"], submitted.total()
        figures.longest_heal_s = max(figures.longest_heal_s, heal_s)
        self._observer.views.clear()
        history.reads.clear()


def _reasons(error: BaseException) -> Iterator[str]:
    """What went wrong, in one line for each reason."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _reasons(each)
    else:
        yield f"{type(error).__name__}: {error}"


@asynccontextmanager
async def running(
    seed: int, home: Path, *, clients: int = 10, pause_s: float = 0.04
) -> AsyncIterator[Run]:
    """A run on servers of its own below `home`, which is kept if it fails and removed if not."""
    history = History(home / "history.jsonl")
    try:
        async with AsyncExitStack() as stack:
            world = await stack.enter_async_context(open_world(home, history))
            asking = Clients(seed, clients, history, world.urls)
            world.clients = asking
            observer = Observer(world.ledger)
            await asking.begin(stack, pause_s)
            await stack.enter_async_context(beside(observer.run()))
            run = Run(seed, world, asking, observer)
            yield run
    finally:
        history.close()
    if not run.broken:
        shutil.rmtree(home)
