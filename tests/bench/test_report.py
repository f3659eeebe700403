"""A run always reports: what failed is a row, and what was measured is kept and shown."""

import asyncio
from pathlib import Path
from typing import cast

import pytest

from bench import report
from bench.compare import Round, ratios
from bench.loads import RequestStats
from bench.run import QUICK, Results, Run
from bench.tables import tables
from bench.workloads import Load
from tests.private_servers import Servers


def load(orders: int, late: int = 0) -> Load:
    stats = RequestStats(orders, 1_000_000, 0, 1.0, 2.0, 3.0, 4.0)
    return Load(stats, orders, 2.0, [0.0, 0.1], [(0.5, 10.0)], {}, 0, [5.0, 6.0], late)


def shown(results: Results) -> str:
    return "\n".join(" | ".join(row) for table in tables(results) for row in table.rows)


def test_a_run_without_figures_still_has_tables_and_a_page(tmp_path: Path) -> None:
    results = Results(QUICK, errors={"the run": "NotInstalled: no wrk"})
    assert "not reached: the run | NotInstalled: no wrk" in shown(results)
    report.write_page(report.Saved({}, results), tmp_path)
    assert "no wrk" in (tmp_path / "report.html").read_text()


def test_measured_figures_are_shown_beside_missing_ones() -> None:
    text = shown(Results(QUICK, singles=[load(4_000)], long=load(9_000)))
    assert "order ledger | 2,000 | 2,000 | 2,000" in text
    assert "orders/s, single, views shown | 4,000 /s | 4,500 /s | reached" in text
    assert "verify | 120,000 events/s | not measured | not reached" in text


def test_orders_that_were_pending_after_their_wait_are_a_row() -> None:
    text = shown(Results(QUICK, paced=[load(8_000, late=1)]))
    assert "not reached: COMPLETED in the wait, at 8,000 orders/s | 1 of 2 orders" in text


def test_results_are_read_again_as_they_were_saved(tmp_path: Path) -> None:
    saved = report.Saved({"cores": "2"}, Results(QUICK, done=["a"], long=load(1), small=[load(2)]))
    report.save(saved, tmp_path)
    assert report.load(tmp_path) == saved
    (tmp_path / "results.json").write_text("{")
    assert report.load(tmp_path) is None


def test_a_failed_stage_is_measured_again_by_a_resumed_run_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    broken = {"_writer"}

    def replace(name: str) -> None:
        async def stage(*_: object) -> None:
            calls.append(name)
            if name in broken:
                raise ValueError("no figure")

        monkeypatch.setattr(Run, name, stage)

    names = ("_ledger", "_peer", "_ceilings", "_long", "_writer", "_filled", "_populous")
    for name in (*names, "_small", "_grown"):
        replace(name)
    results, saves = Results(QUICK), list[int]()
    run = Run(cast(Servers, None), results, lambda: saves.append(len(calls)), lambda step: None)
    asyncio.run(run.all())
    assert results.errors == {"the writer alone, and the fold": "ValueError: no figure"}
    assert len(calls) == 9
    assert set(saves) == set(range(1, 10))
    broken.clear()
    calls.clear()
    asyncio.run(run.all())
    assert calls == ["_writer"]
    assert results.errors == {}


def test_ratios_compare_the_two_sides_of_one_round() -> None:
    rounds = [
        Round("old", 1, {"reads": 100.0}),
        Round("new", 1, {"reads": 110.0}),
        Round("new", 2, {"reads": 90.0}),
        Round("old", 2, {"reads": 100.0}),
        Round("old", 3, {"reads": 100.0}),
    ]
    assert ratios(rounds, "reads") == [1.1, 0.9]
    assert ratios(rounds, "writes") == []
