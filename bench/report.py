"""The report of a run: JSON for programs, one HTML page with plots for people."""

import html
import io
from collections.abc import Callable
from pathlib import Path
from typing import Final

import matplotlib as mpl
import msgspec
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench.run import Results
from bench.tables import Table, tables
from ledger.runtime.files import write_atomically

mpl.use("svg")

STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; color: #222 }
table { border-collapse: collapse; margin: 0 0 2rem; width: 100% }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
svg { max-width: 100%; height: auto }
"""


class Saved(msgspec.Struct):
    """The content of `results.json`."""

    about: dict[str, str]
    results: Results


def save(saved: Saved, directory: Path) -> Path:
    """Write `results.json`, whole even if the run is killed just then; its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "results.json"
    write_atomically(path, msgspec.json.format(msgspec.json.encode(saved)))
    return path


def load(directory: Path) -> Saved | None:
    """The results of an earlier run, if there are any that this version reads."""
    try:
        return msgspec.json.decode((directory / "results.json").read_bytes(), type=Saved)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def write_page(saved: Saved, directory: Path) -> Path:
    """Write `report.html`; its path."""
    path = directory / "report.html"
    path.write_text(_page(saved.results, saved.about))
    return path


def _page(results: Results, about: dict[str, str]) -> str:
    facts = "".join(f"<li>{html.escape(k)}: {html.escape(v)}</li>" for k, v in about.items())
    drawn = PLOTS if results.long else {}
    plots = "".join(_svg(title, draw, results) for title, draw in drawn.items())
    body = "".join(_table(table) for table in tables(results))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Order Ledger: benchmark'
        f"</title><style>{STYLE}</style><h1>Order Ledger: benchmark</h1><ul>{facts}</ul>"
        f"{body}{plots}</html>\n"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    return f"<h2>{html.escape(table.title)}</h2><table><tr>{head}</tr>{rows}</table>"


def _svg(title: str, draw: Callable[[Axes, Results], None], results: Results) -> str:
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    draw(axes, results)
    axes.spines[["top", "right"]].set_visible(False)
    written = io.StringIO()
    figure.savefig(written, format="svg")
    plt.close(figure)
    svg = written.getvalue()
    return f"<h2>{html.escape(title)}</h2>{svg[svg.index('<svg') :]}"


def _throughput(axes: Axes, results: Results) -> None:
    assert results.long
    axes.plot(*zip(*results.long.rates, strict=True))
    axes.set(xlabel="s", ylabel="events/s", ylim=(0, None))


def _lag(axes: Axes, results: Results) -> None:
    assert results.long
    axes.plot([1e3 * lag for lag in results.long.lags_s])
    axes.set(xlabel="look, every 0.25 s", ylabel="ms", ylim=(0, None))


def _decided(axes: Axes, results: Results) -> None:
    values = sorted(ms for load in results.steady for ms in load.decided_ms) or [0.0]
    shares = [100 * (n + 1) / len(values) for n in range(len(values))]
    axes.step(values, shares, where="post")
    axes.set(xlabel="ms", ylabel="% of orders", xlim=(0, None), ylim=(0, 100))


def _cpu(axes: Axes, results: Results) -> None:
    assert results.long
    names = list(results.long.use)
    axes.barh(names, [results.long.use[name].cpu_percent for name in names])
    axes.set(xlabel="CPU, % of one core")


def _memory(axes: Axes, results: Results) -> None:
    assert results.long
    names = list(results.long.use)
    axes.barh(names, [results.long.use[name].memory_bytes / 2**20 for name in names])
    axes.set(xlabel="MiB")


PLOTS: Final[dict[str, Callable[[Axes, Results], None]]] = {
    "Throughput over time, as fast as it goes": _throughput,
    "Lag of the views meanwhile": _lag,
    "From POST to COMPLETED, beside 1,000 orders/s": _decided,
    "CPU by component, as fast as it goes": _cpu,
    "Memory by component": _memory,
}
