"""Plots an export of the events: revenue by day, and price and stock of one product over time.

    ledger export events --out exported
    python plot_export.py exported

It needs `pip install duckdb matplotlib`, and nothing of the ledger: not even a connection to it.
"""

import json
from argparse import ArgumentParser
from pathlib import Path

import duckdb
import matplotlib as mpl
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

# A submission that was refused is recorded, but took no effect.
EFFECTIVE = """
CREATE VIEW effective AS
SELECT *, coalesce(data->>'$.product_id', stream_id::VARCHAR)::UUID AS product_id
FROM events ANTI JOIN (
    SELECT cause_position AS position FROM events WHERE type = 'submission.refused'
) USING (position)
"""
REVENUE = """
SELECT date_trunc('day', recorded_at AT TIME ZONE 'UTC') AS day,
       sum(coalesce((data->>'$.total_minor')::BIGINT, -(data->>'$.refund_minor')::BIGINT)) / 100
           AS revenue
FROM effective
WHERE type IN ('order.completed', 'order.cancelled')
GROUP BY day ORDER BY day
"""
BEST_SELLER = """
SELECT product_id FROM effective WHERE type = 'order.completed'
GROUP BY product_id ORDER BY sum((data->>'$.quantity')::BIGINT) DESC, product_id LIMIT 1
"""
PRODUCT = """
SELECT recorded_at AT TIME ZONE 'UTC' AS time,
       sum(CASE WHEN type IN ('product.listed', 'stock.received', 'order.cancelled') THEN units
                WHEN type = 'order.completed' THEN -units ELSE 0 END) OVER past AS stock,
       last_value(base_price IGNORE NULLS) OVER past AS base_price,
       unit_price AS paid
FROM (
    SELECT *, coalesce(data->>'$.quantity', data->>'$.stock', data->>'$.initial_stock')::BIGINT
                  AS units,
           (data->>'$.base_price_minor')::BIGINT / 100 AS base_price,
           (data->>'$.unit_price_minor')::BIGINT / 100 AS unit_price
    FROM effective
    WHERE product_id = ? AND type IN ('product.listed', 'stock.received', 'price.changed',
                                      'order.completed', 'order.cancelled')
)
WINDOW past AS (ORDER BY position)
ORDER BY position
"""
NAME = "SELECT data->>'$.name' FROM effective WHERE product_id = ? AND type = 'product.listed'"


def plot(directory: Path, product_id: str | None, to: Path) -> None:
    """Draw three diagrams, one below the other, and print what is in them."""
    position = json.loads((directory / "manifest.json").read_text())["position"]
    connection = duckdb.connect()
    connection.read_parquet(str(directory / "events.parquet")).create_view("events")
    connection.execute(EFFECTIVE)
    best = connection.execute(BEST_SELLER).fetchone()
    if best is None:
        raise SystemExit("no order was completed yet: there is nothing to draw")
    product_id = product_id or str(best[0])
    (name,) = connection.execute(NAME, [product_id]).fetchone()
    revenue = connection.execute(REVENUE).fetchnumpy()
    product = connection.execute(PRODUCT, [product_id]).fetchnumpy()
    figure = draw(revenue, product, f"{name}, as of position {position}")
    with mpl.rc_context({"svg.hashsalt": "ledger", "svg.fonttype": "none"}):
        figure.savefig(to, metadata={"Date": None} if to.suffix == ".svg" else None)
    print(f"revenue: {revenue['revenue'].sum():.2f} on {len(revenue['day'])} days")
    paid = product["paid"].compressed()
    print(f"{name}: {len(paid)} sales, the last for {paid[-1]:.2f} a unit")
    print(f"{name}: {product['stock'][-1]:.0f} units left")


def draw(revenue: dict, product: dict, title: str) -> Figure:
    """Revenue by day; below it price and stock of a product, over the same time."""
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    days, prices, stock = figure.subplots(3, sharex=True)
    days.bar(revenue["day"], revenue["revenue"], width=0.9, align="edge", color="tab:green")
    days.set_title("Revenue of each day, refunds taken off")
    prices.step(product["time"], product["base_price"], where="post", label="base price")
    sold = ~product["paid"].mask
    prices.step(
        product["time"][sold], product["paid"][sold], where="post", lw=0.8, label="paid for a unit"
    )
    prices.set_title(f"Price of {title}")
    prices.legend(loc="upper right")
    stock.step(product["time"], product["stock"], where="post", color="tab:purple")
    stock.set_title(f"Stock of {title}")
    for axes in (days, prices, stock):
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    stock.xaxis.set_major_formatter(ConciseDateFormatter(AutoDateLocator()))
    return figure


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="an export with events, in Parquet")
    parser.add_argument("--product", help="id of a product; else the one that was sold most")
    parser.add_argument("--to", type=Path, default=Path("plot.svg"), help="SVG, PNG or PDF")
    given = parser.parse_args()
    plot(given.directory, given.product, given.to)
