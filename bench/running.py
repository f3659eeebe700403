"""The order of the measurements. Everything is measured in one run, so that ratios hold."""

import asyncio
import statistics
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Final

from msgspec import Struct, field
from msgspec.json import decode

from bench import ceilings, parts, peering
from bench.loads import Took, closed, opened
from bench.measuring import Load, saturate, steady
from bench.sampling import Sampler, Spent
from bench.system import PROCESSES, SETTLED_TIMEOUT_S, Parties, System, system
from cli.verification import Verified
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
    """All that a run measured. A figure that was measured more than once is a list.

    `customers` is how many the populous writer held.
    """

    singles: list[Load] = field(default_factory=list)
    long: Load | None = None
    batches: list[Load] = field(default_factory=list)
    steady: list[Load] = field(default_factory=list)
    paced: list[Load] = field(default_factory=list)
    peer: list[peering.PeerLoad] = field(default_factory=list)
    idle: dict[str, Spent] = field(default_factory=dict)
    reads: dict[str, list[Took]] = field(default_factory=dict)
    figures: dict[str, list[float]] = field(default_factory=dict)
    small: list[Load] = field(default_factory=list)
    grown: list[Load] = field(default_factory=list)
    memory: dict[str, dict[str, int]] = field(default_factory=dict)
    customers: int = 0

    def add(self, name: str, value: float) -> None:
        """One more measurement of a figure."""
        self.figures.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        """The median of a figure."""
        return statistics.median(self.figures[name])


async def run(servers: Servers, times: Times, say: Say) -> Results:
    """Measure everything; raises WrongResult where a load's numbers don't add up."""
    results = Results()
    await _rounds(servers, times, results, say)
    await _long(servers, times, results, say)
    await _parts(servers, times, results, say)
    await _memory(servers, times, results, say)
    await _growth(servers, times, results, say)
    return results


async def _rounds(servers: Servers, times: Times, results: Results, say: Say) -> None:
    for number in range(1, times.rounds + 1):
        about = f"round {number} of {times.rounds}"
        say(f"{about}: the ledger")
        async with system(servers, *PROCESSES) as ledger:
            parties = await ledger.parties(CUSTOMERS, PRODUCTS)
            if not results.idle:
                results.idle = await _idle(ledger)
            results.singles.append(await saturate(ledger, parties, times.round_s))
            batch_s = max(2, times.round_s // 2)
            results.batches.append(await saturate(ledger, parties, batch_s, BATCH_ORDERS))
            await _reads(ledger, parties, results)
        say(f"{about}: the peer")
        async with peering.peer(servers) as peer:
            await peer.race()
            them = await peer.parties(CUSTOMERS, PRODUCTS)
            results.peer.append(await peering.saturate(peer, them, max(2, times.round_s // 2)))
        say(f"{about}: the ceilings")
        await _ceilings(servers, results)


async def _idle(ledger: System) -> dict[str, Spent]:
    with Sampler(ledger.components()) as sampler:
        await asyncio.sleep(IDLE_S)
    return sampler.spent()


async def _reads(ledger: System, parties: Parties, results: Results) -> None:
    product = f"/api/v1/products/{parties.products[0]}"
    shown = await ledger.stack.http.get("/orders", params={"limit": 100})
    orders = [f"/api/v1/orders/{order['order_id']}" for order in shown.json()["items"]]
    reads = results.reads
    for name, paths in (("product", [product]), ("order", orders)):
        took = await closed(ledger.url, "get.lua", READ_S, *paths)
        reads.setdefault(name, []).append(took)
    took = await opened(ledger.url, "reads", STEADY_PER_S, READ_S, parties)
    reads.setdefault("product, 1,000/s", []).append(took)
    reads.setdefault("product, while it sells", []).append(
        await _reads_of_a_seller(ledger, parties)
    )


async def _reads_of_a_seller(ledger: System, parties: Parties) -> Took:
    one = Parties(parties.customers[:1], parties.products[:1])
    product = f"/api/v1/products/{one.products[0]}"
    selling = asyncio.create_task(opened(ledger.url, "orders", 200, READ_S + 1, one))
    took = await closed(ledger.url, "get.lua", READ_S, product)
    await selling
    return took


async def _ceilings(servers: Servers, results: Results) -> None:
    results.add("http requests/s, no work behind", await ceilings.answering())
    async with system(servers) as ledger:
        for size in (44, 256):
            rate = await ceilings.publishing(ledger, size)
            results.add(f"events/s published and confirmed, groups of {size}", rate)
        rate = await ceilings.appending(ledger, 150)
        results.add("events/s inserted, batches of 150", rate)
    async with system(servers) as ledger:
        rate = await ceilings.appending(ledger, 1_000)
        results.add("events/s inserted, batches of 1,000", rate)


async def _long(servers: Servers, times: Times, results: Results, say: Say) -> None:
    async with system(servers, *PROCESSES) as ledger:
        parties = await ledger.parties(CUSTOMERS, PRODUCTS)
        say(f"{times.long_s} s as fast as it goes")
        results.long = await saturate(ledger, parties, times.long_s)
        for _ in range(2):
            say(f"{times.steady_s} s at {STEADY_PER_S:,} orders/s")
            results.steady.append(await steady(ledger, parties, STEADY_PER_S, times.steady_s))
        say(f"{times.steady_s} s at {PACED_PER_S:,} orders/s, batches of {BATCH_ORDERS}")
        paced = await steady(ledger, parties, PACED_PER_S, times.steady_s, BATCH_ORDERS)
        results.paced.append(paced)


async def _parts(servers: Servers, times: Times, results: Results, say: Say) -> None:
    say("the writer alone, and the fold")
    results.add("submitted events/s, the pure fold", parts.fold(times.filled_events // 2))
    async with system(servers) as ledger:
        rate = await parts.writing(ledger, times.filled_events // 2)
        results.add("events/s, writer alone", rate)
    say(f"a ledger of {times.filled_events:,} events: paging, projector, rebuild, verify, start")
    async with system(servers) as ledger:
        events = await parts.filled(ledger, times.filled_events)
        async with ledger.engine() as engine, engine.connect() as connection:
            results.add("events/s, paging", await ceilings.paging(connection))
        results.add("events/s, projector alone", await parts.projecting(ledger, events))
        await _verified(ledger, events, results)
        took_s, _ = await parts.command(ledger, "rebuild", "--all")
        results.add("events/s, rebuild of all", events / took_s)
        results.add("start of the writer, s", await parts.starting(ledger))


async def _verified(ledger: System, events: int, results: Results) -> None:
    took_s, said = await parts.command(ledger, "verify", "--json")
    verified = decode(said, type=Verified)
    results.add("events/s, verify", events / took_s)
    results.add("events/s, verify: the ledger alone", events / verified.ledger_s)
    results.add("events/s, verify: the views alone", events / verified.views_s)


async def _memory(servers: Servers, times: Times, results: Results, say: Say) -> None:
    say(f"a writer with {times.customers:,} customers and {times.products:,} products")
    async with system(servers) as ledger:
        used = await parts.populous(ledger, times.customers, times.products)
        results.add(POPULOUS, used / 2**20)
        results.customers = times.customers


async def _growth(servers: Servers, times: Times, results: Results, say: Say) -> None:
    say("as fast as it goes on an empty ledger")
    results.small = await _grown(servers, 0, times.round_s, results)
    say(f"as fast as it goes on a ledger of {times.grown_events:,} events")
    results.grown = await _grown(servers, times.grown_events, times.round_s, results)


async def _grown(servers: Servers, events: int, duration_s: int, results: Results) -> list[Load]:
    """Single orders, and batches of them, on a ledger of so many events."""
    async with AsyncExitStack() as held:
        ledger = await held.enter_async_context(system(servers))
        if events:
            await parts.filled(ledger, events)
        for name in PROCESSES:
            ledger.stack.start(name)
        await ledger.stack.ready()
        await ledger.settled(events, SETTLED_TIMEOUT_S + events / SLOWEST_PROJECTOR_PER_S)
        parties = await ledger.parties(CUSTOMERS, PRODUCTS)
        singles = await saturate(ledger, parties, duration_s)
        used = {name: spent.memory_bytes for name, spent in singles.spent.items()}
        results.memory[f"{events:,} events"] = used
        return [singles, await saturate(ledger, parties, duration_s // 4 or 1, BATCH_ORDERS)]
