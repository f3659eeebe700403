"""The projector's metrics, and the lag of its views behind the ledger."""

from typing import Any, Final

from prometheus_client import Gauge, Histogram
from sqlalchemy.ext.asyncio import AsyncEngine

from ledger.eventlog.reader import EventReader
from ledger.runtime.database import DATABASE_ERRORS
from ledger.runtime.metrics import LATENCY_S, SIZES
from ledger.runtime.timestamps import SECOND_US, now_us

BATCH_EVENTS: Final = Histogram(
    "ledger_projector_batch_events", "Events in a projected batch", buckets=SIZES, registry=None
)
BATCH_S: Final = Histogram(
    "ledger_projector_batch_seconds",
    "From reading a batch to the answer to its COMMIT",
    buckets=LATENCY_S,
    registry=None,
)
POSITION: Final = Gauge("ledger_view_position", "The checkpoint of a view", ["view"], registry=None)
LAG_POSITIONS: Final = Gauge(
    "ledger_view_lag_positions", "Positions from a view to the head", ["view"], registry=None
)
LAG_S: Final = Gauge(
    "ledger_view_lag_seconds",
    "How long ago the oldest event was recorded that a view does not show; 0: it shows all",
    ["view"],
    registry=None,
)
LAG_KNOWN: Final = Gauge(
    "ledger_view_lag_known", "Whether the database told the positions just now", registry=None
)
PROJECTOR: Final = (BATCH_EVENTS, BATCH_S, POSITION, LAG_POSITIONS, LAG_S, LAG_KNOWN)


async def measure_lag(engine: AsyncEngine) -> None:
    """Ask the database where head and views are. While it's away, the views have no samples."""
    try:
        async with engine.connect() as connection:
            found = await connection.exec_driver_sql(
                "SELECT c.name, c.position, h.position FROM checkpoints c"
                " JOIN ledger_head h ON h.id = 1"
            )
            positions: Any = found.all()
            oldest = {position + 1 for _, position, _ in positions}
            not_shown = await EventReader(connection).records_at(oldest)
    except DATABASE_ERRORS:
        for gauge in (POSITION, LAG_POSITIONS, LAG_S):
            gauge.clear()
        LAG_KNOWN.set(0)
        return
    LAG_KNOWN.set(1)
    now = now_us()
    for view, position, head in positions:
        record = not_shown.get(position + 1)
        # One that was recorded after the head was read is not behind it yet.
        behind_us = now - record.recorded_at_us if record and position < head else 0
        POSITION.labels(view).set(position)
        LAG_POSITIONS.labels(view).set(head - position)
        LAG_S.labels(view).set(max(behind_us, 0) / SECOND_US)
