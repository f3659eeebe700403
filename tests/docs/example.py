"""The ledger that the reference pages of the commands show: small, and the same to the hash."""

from bench.fill import fill
from bench.history import Shop
from cli.settings import Settings
from projections.projector import advance
from projections.registry import PROJECTIONS
from tests.ledger.running import Ledger

EVENTS = 120
SPAN_US = 3 * 3_600_000_000


async def fill_example(settings: Settings) -> None:
    """Three customers, three products, and some ten days of orders, shown in the views."""
    ledger = Ledger(settings)
    history = Shop(seed=7, customers=3, products=3, span_us=SPAN_US).events()
    await fill(ledger.engine("writer"), history, EVENTS, snapshot_every=50, batch_events=1)
    async with ledger.connection("projector") as connection:
        while (moved := await advance(connection, PROJECTIONS)).position > moved.after:
            pass
    await ledger.close()
