"""The ledgers that the pages show: the same to the hash each time."""

from bench.fill import fill
from bench.history import Shop
from cli.settings import Settings
from tests.ledger.pipeline import running_ledger
from tests.projections.view_rows import advance_to_the_end

EVENTS = 120
SPAN_US = 3 * 3_600_000_000
MONTH_EVENTS = 6_000
MONTH_SPAN_US = int(30 * 86_400e6 * 1.85 / MONTH_EVENTS)


async def fill_example(settings: Settings) -> None:
    """Three customers, three products, and some ten days of orders, shown in the views.

    It is small: the reference pages of the commands show it.
    """
    shop = Shop(seed=7, customers=3, products=3, span_us=SPAN_US)
    await _fill(settings, shop, EVENTS, snapshot_every=50, batch_events=1)


async def fill_month(settings: Settings) -> None:
    """A month of a shop with eight products and 300 customers, shown in the views."""
    shop = Shop(seed=5, customers=300, products=8, span_us=MONTH_SPAN_US)
    await _fill(settings, shop, MONTH_EVENTS, snapshot_every=10**9, batch_events=8)


async def _fill(
    settings: Settings, shop: Shop, events: int, *, snapshot_every: int, batch_events: int
) -> None:
    async with running_ledger(settings) as ledger:
        await fill(ledger.engine("writer"), shop.events(), events, snapshot_every, batch_events)
        async with ledger.connection("projector") as connection:
            await advance_to_the_end(connection)
