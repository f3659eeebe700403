"""The order of the measurements. Everything is measured in one run, so that ratios hold.

A run is a list of stages, and a stage a few steps on one ledger. Each is guarded: its error becomes
a row of the report and costs no other step its figures. Results are saved after each step, and a
run that ended early can be resumed, stage by stage.
"""

import asyncio
import math
import statistics
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from msgspec import Struct, field
from msgspec.json import decode

from bench import ceilings, parts, peer_load
from bench.loads import RequestStats, closed, opened
from bench.resource_use import ResourceUse, Sampler
from bench.system import PROCESSES, SETTLED_TIMEOUT_S, Parties, System, system
from bench.workloads import Load, saturate, steady
from cli.commands.verify import Verified
from tests.private_servers import Servers

CUSTOMERS: Final = 20
PRODUCTS: Final = 20
ROUND_S: Final = 12
LONG_S: Final = 60
READ_S: Final = 5
STEADY_S: Final = 20
STEADY_PER_S: Final = 1_000
PACED_PER_S: Final = 8_000
BATCH_ORDERS: Final = 100
IDLE_S: Final = 5
SLOWEST_PROJECTOR_PER_S: Final = 5_000
POPULOUS: Final = "memory of a populous writer, MiB"

Say = Callable[[str], None]


class Times(Struct, frozen=True):
    """The length of a run: `quick` is to see that the benchmark itself works."""

    rounds: int
    round_s: int
    long_s: int
    steady_s: int
    filled_events: int
    grown_events: int
    customers: int
    products: int


FULL: Final = Times(3, ROUND_S, LONG_S, STEADY_S, 200_000, 1_000_000, 1_000_000, 100_000)
QUICK: Final = Times(1, 3, 4, 4, 20_000, 30_000, 10_000, 1_000)


class Results(Struct):
    """All figures of a run. A figure that was measured more than once is a list.

    `done` names the stages without errors, `errors` has the message of each step that failed.
    `customers` is how many the populous writer held.
    """

    times: Times
    done: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    singles: list[Load] = field(default_factory=list)
    long: Load | None = None
    batches: list[Load] = field(default_factory=list)
    steady: list[Load] = field(default_factory=list)
    paced: list[Load] = field(default_factory=list)
    peer: list[peer_load.PeerLoad] = field(default_factory=list)
    idle: dict[str, ResourceUse] = field(default_factory=dict)
    reads: dict[str, list[RequestStats]] = field(default_factory=dict)
    figures: dict[str, list[float]] = field(default_factory=dict)
    small: list[Load] = field(default_factory=list)
    grown: list[Load] = field(default_factory=list)
    memory: dict[str, dict[str, int]] = field(default_factory=dict)
    customers: int = 0

    def add(self, name: str, value: float) -> None:
        """Add a measurement of a figure."""
        self.figures.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        """The median of a figure; NaN if it was not measured."""
        return median(self.figures.get(name, ()))


def median(values: Iterable[float]) -> float:
    """The median; NaN of no values, which a report shows as not measured."""
    known = list(values)
    return statistics.median(known) if known else math.nan


class Run:
    """One run: the servers it measures on, and its results so far."""

    def __init__(
        self, servers: Servers, results: Results, save: Callable[[], object], say: Say
    ) -> None:
        self.servers = servers
        self.results = results
        self.times = results.times
        self._save = save
        self._say = say
        self._failures = 0

    @contextmanager
    def guarded(self, step: str) -> Iterator[None]:
        """Say which step begins; keep its error, if it fails, as a row; save the results."""
        self._say(step)
        self.results.errors.pop(step, None)
        try:
            yield
        except Exception as error:  # noqa: BLE001  # whatever it is, the other figures stay
            self.results.errors[step] = f"{type(error).__name__}: {error}"
            self._failures += 1
            self._say(f"not reached: {step}: {self.results.errors[step]}")
        self._save()

    async def all(self) -> None:
        """Measure every stage that is not done yet."""
        stages: dict[str, Callable[[], Awaitable[None]]] = {}
        for number in range(1, self.times.rounds + 1):
            round_ = f"round {number} of {self.times.rounds}"
            stages[f"{round_}, the ledger"] = partial(self._ledger, f"{round_}, the ledger")
            stages[f"{round_}, the peer"] = self._peer
            stages[f"{round_}, the ceilings"] = self._ceilings
        stages |= {
            "the long loads": self._long,
            "the writer alone, and the fold": self._writer,
            f"a ledger of {self.times.filled_events:,} events": self._filled,
            f"a writer with {self.times.customers:,} customers": self._populous,
            "an empty ledger": self._small,
            f"a ledger of {self.times.grown_events:,} events under load": self._grown,
        }
        for stage, measure in stages.items():
            if stage in self.results.done:
                continue
            failures_before = self._failures
            with self.guarded(stage):
                await measure()
            if self._failures == failures_before:
                self.results.done.append(stage)
                self._save()

    async def _ledger(self, stage: str) -> None:
        results, times = self.results, self.times
        async with system(self.servers, *PROCESSES) as ledger:
            parties = await ledger.parties(CUSTOMERS, PRODUCTS)
            if not results.idle:
                results.idle = await _idle(ledger)
            with self.guarded(f"{stage}, single orders"):
                results.singles.append(await saturate(ledger, parties, times.round_s))
            with self.guarded(f"{stage}, batches"):
                batch_s = max(2, times.round_s // 2)
                results.batches.append(await saturate(ledger, parties, batch_s, BATCH_ORDERS))
            with self.guarded(f"{stage}, reads"):
                await _reads(ledger, parties, results)

    async def _peer(self) -> None:
        async with peer_load.peer(self.servers) as peer:
            await peer.race()
            parties = await peer.parties(CUSTOMERS, PRODUCTS)
            duration_s = max(2, self.times.round_s // 2)
            self.results.peer.append(await peer_load.saturate(peer, parties, duration_s))

    async def _ceilings(self) -> None:
        results = self.results
        results.add("http requests/s, no work behind", await ceilings.answering())
        async with system(self.servers) as ledger:
            for size in (44, 256):
                rate = await ceilings.publishing(ledger, size)
                results.add(f"events/s published and confirmed, groups of {size}", rate)
            rate = await ceilings.appending(ledger, 150)
            results.add("events/s inserted, batches of 150", rate)
        async with system(self.servers) as ledger:
            rate = await ceilings.appending(ledger, 1_000)
            results.add("events/s inserted, batches of 1,000", rate)

    async def _long(self) -> None:
        results, times = self.results, self.times
        async with system(self.servers, *PROCESSES) as ledger:
            parties = await ledger.parties(CUSTOMERS, PRODUCTS)
            with self.guarded(f"{times.long_s} s of single orders as fast as they are taken"):
                results.long = await saturate(ledger, parties, times.long_s)
            for number in (1, 2):
                with self.guarded(f"{times.steady_s} s at {STEADY_PER_S:,} orders/s, {number}"):
                    load = await steady(ledger, parties, STEADY_PER_S, times.steady_s)
                    results.steady.append(load)
            with self.guarded(f"{times.steady_s} s at {PACED_PER_S:,} orders/s in batches"):
                load = await steady(ledger, parties, PACED_PER_S, times.steady_s, BATCH_ORDERS)
                results.paced.append(load)

    async def _writer(self) -> None:
        submitted = self.times.filled_events // 2
        self.results.add("submitted events/s, the pure fold", parts.fold(submitted))
        async with system(self.servers) as ledger:
            rate = await parts.writing(ledger, submitted)
            self.results.add("events/s, writer alone", rate)

    async def _filled(self) -> None:
        results = self.results
        async with system(self.servers) as ledger:
            events = await parts.filled(ledger, self.times.filled_events)
            with self.guarded("paging"):
                async with ledger.engine() as engine, engine.connect() as connection:
                    results.add("events/s, paging", await ceilings.paging(connection))
            with self.guarded("the projector alone"):
                results.add("events/s, projector alone", await parts.projecting(ledger, events))
            with self.guarded("verify"):
                await _verified(ledger, events, results)
            with self.guarded("rebuild of all views"):
                duration_s, _ = await parts.command(ledger, "rebuild", "--all")
                results.add("events/s, rebuild of all", events / duration_s)
            with self.guarded("start of the writer"):
                results.add("start of the writer, s", await parts.starting(ledger))

    async def _populous(self) -> None:
        async with system(self.servers) as ledger:
            used = await parts.populous(ledger, self.times.customers, self.times.products)
            self.results.add(POPULOUS, used / 2**20)
            self.results.customers = self.times.customers

    async def _small(self) -> None:
        self.results.small = await self._loads_on(0)

    async def _grown(self) -> None:
        self.results.grown = await self._loads_on(self.times.grown_events)

    async def _loads_on(self, events: int) -> list[Load]:
        """Single orders, and batches of them, on a ledger of so many events."""
        duration_s = self.times.round_s
        async with system(self.servers) as ledger:
            if events:
                await parts.filled(ledger, events)
            for name in PROCESSES:
                ledger.stack.start(name)
            await ledger.stack.ready()
            await ledger.settled(events, SETTLED_TIMEOUT_S + events / SLOWEST_PROJECTOR_PER_S)
            parties = await ledger.parties(CUSTOMERS, PRODUCTS)
            singles = await saturate(ledger, parties, duration_s)
            used = {name: use.memory_bytes for name, use in singles.use.items()}
            self.results.memory[f"{events:,} events"] = used
            return [singles, await saturate(ledger, parties, duration_s // 4 or 1, BATCH_ORDERS)]


async def _idle(ledger: System) -> dict[str, ResourceUse]:
    with Sampler(ledger.components()) as sampler:
        await asyncio.sleep(IDLE_S)
    return sampler.use()


async def _reads(ledger: System, parties: Parties, results: Results) -> None:
    product = f"/api/v1/products/{parties.products[0]}"
    shown = await ledger.stack.http.get("/orders", params={"limit": 100})
    orders = [f"/api/v1/orders/{order['order_id']}" for order in shown.json()["items"]]
    reads = results.reads
    for name, paths in (("product", [product]), ("order", orders)):
        stats = await closed(ledger.url, "get.lua", READ_S, *paths)
        reads.setdefault(name, []).append(stats)
    stats = await opened(ledger.url, "reads", STEADY_PER_S, READ_S, parties)
    reads.setdefault("product, 1,000/s", []).append(stats)
    reads.setdefault("product, while it sells", []).append(
        await _reads_of_a_seller(ledger, parties)
    )


async def _reads_of_a_seller(ledger: System, parties: Parties) -> RequestStats:
    one = Parties(parties.customers[:1], parties.products[:1])
    product = f"/api/v1/products/{one.products[0]}"
    selling = asyncio.create_task(opened(ledger.url, "orders", 200, READ_S + 1, one))
    stats = await closed(ledger.url, "get.lua", READ_S, product)
    await selling
    return stats


async def _verified(ledger: System, events: int, results: Results) -> None:
    duration_s, output = await parts.command(ledger, "verify", "--json")
    verified = decode(output, type=Verified)
    results.add("events/s, verify", events / duration_s)
    results.add("events/s, verify: the ledger alone", events / verified.ledger_s)
    results.add("events/s, verify: the views alone", events / verified.views_s)
