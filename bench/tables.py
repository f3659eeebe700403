"""The figures of a run as tables: the headline, the ceilings, the targets, the resources."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from bench.loads import RequestStats
from bench.resource_use import ResourceUse
from bench.run import BATCH_ORDERS, PACED_PER_S, POPULOUS, STEADY_PER_S, Results, median
from bench.workloads import EVENTS_OF_AN_ORDER, Load

MIB: Final = 2**20


class Table(Struct, frozen=True):
    """A title, the heads of the columns, and the rows."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


class Target(Struct, frozen=True):
    """A figure to reach and the one measured; `at_least` is False where less is better."""

    name: str
    wanted: float
    reached: float
    unit: str
    at_least: bool = True

    @property
    def met(self) -> bool:
        """True if the target was reached; False also where nothing was measured."""
        return self.reached >= self.wanted if self.at_least else self.reached <= self.wanted


def tables(results: Results) -> list[Table]:
    """Every table of the report, the most important first."""
    measured = [
        _not_reached(results),
        _headline(results),
        _targets(results),
        _latencies(results),
        _lags(results),
        _ceilings(results),
        _parts(results),
        _used("Resources, idle", results.idle),
        *([_loaded(results.long)] if results.long else []),
        _memory(results),
    ]
    return [table for table in measured if table.rows]


def not_reached(results: Results) -> dict[str, str]:
    """Steps that failed, and orders that were not decided within their wait, with the reasons."""
    rows = dict(results.errors)
    loads = {
        f"{STEADY_PER_S:,} orders/s": results.steady,
        f"{PACED_PER_S:,} orders/s": results.paced,
    }
    for name, measured in loads.items():
        late = sum(load.late for load in measured)
        if late:
            orders = sum(len(load.decided_ms) for load in measured)
            rows[f"COMPLETED in the wait, at {name}"] = f"{late} of {orders} orders were PENDING"
    return rows


def _not_reached(results: Results) -> Table:
    rows = [(f"not reached: {step}", reason) for step, reason in not_reached(results).items()]
    return Table("Not reached", ("step", "reason"), rows)


def _number(value: float, digits: int = 0) -> str:
    return "not measured" if math.isnan(value) else f"{value:,.{digits}f}"


def ratio(results: Results) -> float:
    """The ledger's orders a second divided by the peer's, from the medians of the rounds."""
    ours = median(load.orders_per_s for load in results.singles)
    theirs = median(load.orders_per_s for load in results.peer)
    return ours / theirs


def targets(results: Results) -> list[Target]:
    """The targets of the project's two-core machines."""
    long, steady = [results.long] if results.long else [], results.steady
    decided = sorted(ms for load in steady for ms in load.decided_ms)
    return [
        Target(
            "orders/s, single, views shown", 4_000, median(load.orders_per_s for load in long), "/s"
        ),
        Target("the same, times the peer", 30, ratio(results), "×"),
        Target("views behind the head, at most", 1, _furthest_s(long), "s", at_least=False),
        Target(
            f"orders/s, batches of {BATCH_ORDERS}",
            12_000,
            _batches_per_s(results),
            "/s",
        ),
        Target(
            f"views behind the head, batches of {BATCH_ORDERS}, at most",
            1,
            _furthest_s(results.batches),
            "s",
            at_least=False,
        ),
        Target("202 at 1,000/s, p50", 5, _median_ms(steady, "p50"), "ms", at_least=False),
        Target("202 at 1,000/s, p99", 25, _median_ms(steady, "p99"), "ms", at_least=False),
        Target("COMPLETED shown, p99", 60, percentile(decided, 99), "ms", at_least=False),
        Target(
            "product reads/s",
            8_000,
            median(stats.per_s for stats in results.reads.get("product", ())),
            "/s",
        ),
        Target(
            "product reads at 1,000/s, p99",
            10,
            median(stats.p99 for stats in results.reads.get("product, 1,000/s", ())) / 1e3,
            "ms",
            at_least=False,
        ),
        Target(
            "CPU an order at saturation",
            0.5,
            median(load.cpu_ms_per_order for load in long),
            "ms",
            at_least=False,
        ),
        Target("writer alone", 20_000, results.median("events/s, writer alone"), "events/s"),
        Target("projector alone", 30_000, results.median("events/s, projector alone"), "events/s"),
        Target("verify", 120_000, results.median("events/s, verify"), "events/s"),
        Target(
            f"memory of a writer with {results.customers:,} customers",
            400,
            results.median(POPULOUS),
            "MiB",
            at_least=False,
        ),
        *(
            Target(f"throughput of a full ledger, of an empty one, {load}", 90, 100 * share, "%")
            for load, share in zip(("singles", "batches"), _growth(results), strict=True)
        ),
    ]


def percentile(sorted_values: Sequence[float], percent: int) -> float:
    """The value that `percent` of the values don't exceed; NaN where there is none."""
    if not sorted_values:
        return math.nan
    return sorted_values[min(len(sorted_values) - 1, len(sorted_values) * percent // 100)]


def _growth(results: Results) -> list[float]:
    """The share of the orders a second on an empty ledger that is left on a full one."""
    if not (results.small and results.grown):
        return [math.nan, math.nan]
    both = zip(results.small, results.grown, strict=True)
    return [grown.orders_per_s / small.orders_per_s for small, grown in both]


def _furthest_s(loads: Sequence[Load]) -> float:
    """The longest lag of the views in seconds, the median of the loads."""
    return median(max(load.lags_s) for load in loads)


def _batches_per_s(results: Results) -> float:
    return median(load.orders_per_s for load in results.batches)


def _median_ms(loads: Sequence[Load], name: str) -> float:
    return median(float(getattr(load.stats, name)) for load in loads) / 1e3


def _headline(results: Results) -> Table:
    rows = [
        ("order ledger", *_spread([load.orders_per_s for load in results.singles])),
        (
            f"order ledger, batches of {BATCH_ORDERS}",
            *_spread([load.orders_per_s for load in results.batches]),
        ),
        ("peer: FastAPI, Celery, Redis", *_spread([load.orders_per_s for load in results.peer])),
    ]
    title = f"Orders a second, decided and shown: {_number(ratio(results))} times the peer"
    return Table(title, ("system", "median", "lowest", "highest"), rows)


def _spread(values: Sequence[float]) -> tuple[str, str, str]:
    spread = (median(values), min(values, default=math.nan), max(values, default=math.nan))
    return tuple(map(_number, spread))  # type: ignore[return-value]


def _targets(results: Results) -> Table:
    rows = []
    for target in targets(results):
        reached = _number(target.reached, 0 if target.reached >= 100 else 2)
        is_measured = not math.isnan(target.reached)
        rows.append(
            (
                target.name,
                f"{target.wanted:,g} {target.unit}",
                f"{reached} {target.unit}" if is_measured else reached,
                "reached" if target.met else "missed" if is_measured else "not reached",
            )
        )
    return Table("Targets, on two cores", ("what", "to reach", "measured", ""), rows)


def _latencies(results: Results) -> Table:
    loads: list[tuple[str, Sequence[RequestStats]]] = [
        ("POST /orders, saturated", [load.stats for load in results.singles]),
        ("POST /orders, 1,000/s", [load.stats for load in results.steady]),
        (f"POST /orders/batch, {PACED_PER_S:,} orders/s", [load.stats for load in results.paced]),
        *((f"GET {name}", stats) for name, stats in results.reads.items()),
        ("peer: POST /orders, saturated", [load.stats for load in results.peer]),
    ]
    rows = [(name, *_latency(stats)) for name, stats in loads]
    columns = ("request", "a second", "p50 ms", "p90 ms", "p99 ms", "max ms")
    return Table("Latencies (medians of the rounds)", columns, rows)


def _latency(stats: Sequence[RequestStats]) -> tuple[str, ...]:
    times = (median(float(getattr(one, n)) for one in stats) for n in _PERCENTILES)
    per_s = median(one.per_s for one in stats)
    return (_number(per_s), *(_number(us / 1e3, 1) for us in times))


_PERCENTILES: Final = ("p50", "p90", "p99", "max")


def _lags(results: Results) -> Table:
    loads: dict[str, Sequence[Load]] = {
        "single orders, saturated": [results.long] if results.long else [],
        "single orders, 1,000/s": results.steady,
        f"batches of {BATCH_ORDERS}, {PACED_PER_S:,} orders/s": results.paced,
        f"batches of {BATCH_ORDERS}, saturated": results.batches,
    }
    rows = [(name, *_lag(measured)) for name, measured in loads.items()]
    columns = ("load", "orders a second", "p50 ms", "max ms")
    return Table("Views behind the head (medians of the rounds)", columns, rows)


def _lag(loads: Sequence[Load]) -> tuple[str, str, str]:
    typical = median(median(load.lags_s) for load in loads)
    per_s = median(load.orders_per_s for load in loads)
    return (_number(per_s), _number(1e3 * typical), _number(1e3 * _furthest_s(loads)))


def _ceilings(results: Results) -> Table:
    long, batches = [results.long] if results.long else [], _batches_per_s(results)
    requests_per_s = median(load.stats.per_s for load in long)
    orders_per_s = median(load.orders_per_s for load in long)
    compared: dict[str, float] = {
        "http requests/s, no work behind": requests_per_s,
        "events/s published and confirmed, groups of 44": orders_per_s,
        "events/s published and confirmed, groups of 256": batches,
        "events/s inserted, batches of 150": EVENTS_OF_AN_ORDER * orders_per_s,
        "events/s inserted, batches of 1,000": EVENTS_OF_AN_ORDER * batches,
        "events/s, paging": EVENTS_OF_AN_ORDER * batches,
    }
    rows = [
        (
            name,
            _number(results.median(name)),
            _number(ours),
            f"{_number(100 * ours / results.median(name))} %",
        )
        for name, ours in compared.items()
    ]
    columns = ("ceiling, alone on the machine", "a second", "end to end", "share")
    return Table("Ceilings", columns, rows)


def _parts(results: Results) -> Table:
    names = [name for name in results.figures if "alone" in name or name.endswith(_PART_ENDS)]
    rows = [
        (name, f"{results.median(name):,.{2 if name.endswith(', s') else 0}f}") for name in names
    ]
    return Table("Parts", ("part", "measured"), rows)


_PART_ENDS: Final = ("the pure fold", "paging", "verify", "rebuild of all", ", s")


def _loaded(load: Load) -> Table:
    network = load.network_bytes / MIB
    title = (
        f"Resources, loaded: {load.cpu_ms_per_order:.2f} ms of CPU an order,"
        f" {network:,.0f} MiB over loopback"
    )
    return _used(title, load.use)


def _used(title: str, use: Mapping[str, ResourceUse]) -> Table:
    columns = ("component", "CPU %", "memory MiB", "read MiB", "written MiB", "processes")
    return Table(title, columns, [(name, *_use(one)) for name, one in use.items()])


def _use(use: ResourceUse) -> tuple[str, ...]:
    sizes = (use.memory_bytes, use.read_bytes, use.written_bytes)
    return (
        f"{use.cpu_percent:.1f}",
        *(f"{size / MIB:,.0f}" for size in sizes),
        str(use.processes),
    )


def _memory(results: Results) -> Table:
    names = list(next(iter(results.memory.values()), {}))
    rows = [
        (ledger, *(f"{used.get(name, 0) / MIB:,.0f}" for name in names))
        for ledger, used in results.memory.items()
    ]
    return Table("Memory under load, MiB", ("ledger", *names), rows)
