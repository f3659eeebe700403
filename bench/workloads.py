"""The loads on the whole ledger, each with its numbers and a check that they add up."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import httpx
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from bench.loads import CONNECTIONS, RequestStats, closed, opened
from bench.resource_use import ResourceUse, Sampler
from bench.system import Parties, System, WrongResult
from bench.view_lag import LagMonitor

PROBE_EVERY_S: Final = 0.1
EVENTS_OF_AN_ORDER: Final = 2
"""Its placing, and what was decided."""
PROBE_WAIT: Final = {"Prefer": "wait=10"}


class Load(Struct, frozen=True):
    """One load: what the clients saw, what the ledger did, and what each component used for it.

    `orders` is how many the ledger has more than before and `duration_s` the time until the views
    showed all of them; `lags_s` is how far the views were behind at each look, `rates` the
    ledger's events a second over time. `late` orders of the probe were not decided in its wait.
    """

    stats: RequestStats
    orders: int
    duration_s: float
    lags_s: list[float]
    rates: list[tuple[float, float]]
    use: dict[str, ResourceUse]
    network_bytes: int
    decided_ms: list[float] = []
    late: int = 0

    @property
    def orders_per_s(self) -> float:
        """Orders a second, from the first request until the last order was shown."""
        return self.orders / self.duration_s

    @property
    def cpu_ms_per_order(self) -> float:
        """All the CPU of all components, the load generator's left out, an order."""
        return 1e3 * sum(use.cpu_s for use in self.use.values()) / self.orders


async def saturate(system: System, parties: Parties, duration_s: int, size: int = 1) -> Load:
    """Orders as fast as they are taken, one or `size` a request; raises WrongResult."""
    ids = ",".join(parties.customers), ",".join(parties.products)
    before = await _totals(system)
    async with watching(system) as (watch, sampler):
        stats = await closed(system.url, "orders.lua", duration_s, str(size), *ids)
        accepted = stats.requests * size
        await system.settled(before.position + EVENTS_OF_AN_ORDER * accepted)
    recorded = await _checked(system, stats, before, accepted, CONNECTIONS * size)
    return _load(stats, recorded, watch, sampler)


async def steady(
    system: System, parties: Parties, per_s: int, duration_s: int, size: int = 1
) -> Load:
    """`per_s` orders a second, one or `size` a request; raises WrongResult.

    Beside them a client of its own asks for an outcome every now and then.
    """
    others = Parties(parties.customers[:-1], parties.products[:-1])
    before = await _totals(system)
    async with watching(system) as (watch, sampler):
        load = asyncio.create_task(
            opened(system.url, "orders", per_s // size, duration_s, others, size)
        )
        try:
            decided_ms, late = await _probe(system, parties, load)
        finally:
            stats = await load  # also where the probe fails: it must not run on beside the next
        accepted = stats.requests * size + len(decided_ms)
        await system.settled(before.position + EVENTS_OF_AN_ORDER * accepted)
    recorded = await _checked(system, stats, before, accepted, 0)
    return _load(stats, recorded, watch, sampler, decided_ms, late)


@asynccontextmanager
async def watching(system: System) -> AsyncIterator[tuple[LagMonitor, Sampler]]:
    """Look at the ledger and at every component while the block runs."""
    async with system.engine() as engine, LagMonitor(engine) as watch:
        with Sampler(system.components()) as sampler:
            yield watch, sampler


def _load(
    stats: RequestStats,
    recorded: int,
    watch: LagMonitor,
    sampler: Sampler,
    decided_ms: Sequence[float] = (),
    late: int = 0,
) -> Load:
    return Load(
        stats,
        recorded,
        sampler.duration_s,
        watch.lags_s(),
        watch.rates(),
        sampler.use(),
        sampler.network_bytes(),
        list(decided_ms),
        late,
    )


async def _probe(
    system: System, parties: Parties, beside: asyncio.Task[RequestStats]
) -> tuple[list[float], int]:
    """The times in ms until orders of one more client were COMPLETED in the view.

    And the number of them that were not within the wait.
    """
    body = {"customer_id": parties.customers[-1], "product_id": parties.products[-1]}
    stats: list[float] = []
    late = 0
    async with httpx.AsyncClient(base_url=f"{system.url}/api/v1", timeout=30) as http:
        while not beside.done():
            began = time.perf_counter()
            answer = await http.post("/orders", json=body, headers=PROBE_WAIT)
            status = answer.json()["status"]
            # Still PENDING after the wait is slow, not wrong: it counts with the time it was given.
            if status not in ("COMPLETED", "PENDING"):
                raise WrongResult(f"the probe's order was not completed: {answer.text}")
            stats.append(1e3 * (time.perf_counter() - began))
            late += status == "PENDING"
            await asyncio.sleep(PROBE_EVERY_S)
    return stats, late


class _Totals(Struct, frozen=True):
    """The number of orders in the view, and the last position of the ledger."""

    orders: int
    position: int


async def _totals(system: System) -> _Totals:
    async with system.engine() as engine, engine.connect() as connection:
        return _Totals(
            await _number(connection, "SELECT COUNT(*) FROM orders"),
            await _number(connection, "SELECT position FROM ledger_head"),
        )


async def _checked(
    system: System, stats: RequestStats, before: _Totals, accepted: int, in_flight: int
) -> int:
    """The orders that came; raises WrongResult where one was lost, doubled or left undecided.

    A load generator that stops does not hear of what was in flight; so many may be there besides.
    """
    if stats.refused or stats.broken:  # what a generator could not send in time is no request
        raise WrongResult(f"not every request was answered as it should be: {stats}")
    recorded = (await _totals(system)).orders - before.orders
    if not accepted <= recorded <= accepted + in_flight:
        raise WrongResult(f"{accepted} orders were accepted, {recorded} are in the ledger")
    async with system.engine() as engine, engine.connect() as connection:
        await _refuse_imbalance(connection)
    return recorded


async def _refuse_imbalance(connection: AsyncConnection) -> None:
    pending = await _number(connection, "SELECT COUNT(*) FROM orders WHERE status = 'PENDING'")
    if pending:
        raise WrongResult(f"{pending} orders are not decided")
    # One statement, which sees one moment: what was in flight may still be on its way.
    paid_and_held = await _number(
        connection,
        "SELECT (SELECT COALESCE(SUM(total_minor), 0) FROM orders WHERE status = 'COMPLETED')"
        " + (SELECT COALESCE(SUM(balance_minor), 0) FROM wallets)",
    )
    put_in = await _number(
        connection,
        "SELECT COALESCE(SUM(CAST(JSON_UNQUOTE(JSON_EXTRACT(CONVERT(data USING utf8mb4),"
        " IF(type = 'wallet.credited', '$.amount_minor', '$.opening_balance_minor')))"
        " AS SIGNED)), 0) FROM events WHERE type IN ('wallet.credited', 'customer.registered')",
    )
    if paid_and_held != put_in:
        raise WrongResult(f"{put_in} was put in, but {paid_and_held} was paid or is in wallets")


async def _number(connection: AsyncConnection, query: str) -> int:
    return int((await connection.exec_driver_sql(query)).scalar_one())
