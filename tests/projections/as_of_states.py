"""A ledger with snapshots all over it, and a fold in memory that says what was true when."""

import random
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from msgspec import structs

from ledger.core.decider import Fold
from ledger.core.events import TYPE_OF, Recorded, SubmissionRefused
from ledger.core.pricing import unit_price_minor
from ledger.eventlog.codec import NO_KEYS, decode_recorded
from ledger.eventlog.records import Record
from projections.views.orders import ORDERS, OrderRow
from projections.views.projection import KeyedProjection
from projections.views.stock import STOCK, ProductAsOf, StockRow
from projections.views.wallets import WALLETS, WalletAsOf, WalletRow
from tests.core.story import effective
from tests.ledger.pipeline import Ledger
from tests.submissions import history, opening

from .view_rows import Keys


async def write_history(ledger: Ledger, every: int = 40) -> list[Record]:
    """A random history with a snapshot after each so many events; the ledger afterwards."""
    events = [*opening(), *history(11, 200), *history(12, 200)]
    async with ledger.writing(snapshot_every=every):
        for start in range(0, len(events), 10):
            await ledger.put_events(events[start : start + 10])
            await ledger.until_recorded(events[start : start + 10])
    return await ledger.records()


def moments(records: list[Record], count: int) -> list[int]:
    """Positions to look at: the ends, those between a cause and its decision, and others."""
    chance = random.Random(count)
    refused = TYPE_OF[SubmissionRefused]
    causes = [r.cause_position for r in records if r.cause_position and r.type != refused]
    in_vain = [r.cause_position for r in records if r.type == refused]
    chosen = [*chance.sample(causes, 6), *chance.sample(in_vain, 6)]
    others = chance.sample(range(1, len(records)), count)
    return sorted({0, 1, 2, len(records) - 1, len(records), *chosen, *others})


class Then:
    """The whole state at a position, folded from the first event on."""

    def __init__(self, records: Sequence[Record], position: int, keys: Keys = NO_KEYS) -> None:
        everything = effective([decode_recorded(record, keys) for record in records])
        self.position = position
        self.events: list[Recorded] = [e for e in everything if e.position <= position]
        self.fold = Fold()
        for event in self.events:
            self.fold.apply(event)

    def _rows(self, view: KeyedProjection[Any]) -> dict[UUID, Any]:
        rows: dict[Any, Any] = {}
        for event in self.events:
            view.project(rows, event)
        return rows

    def wallets(self) -> dict[UUID, WalletAsOf]:
        """Every customer, by the fold and by the view, which must agree."""
        rows = self._rows(WALLETS)
        # The position that a row shows is the one that the fold compares with a precondition.
        assert {key: (row.balance_minor, row.position) for key, row in rows.items()} == {
            key: (customer.balance_minor, customer.position)
            for key, customer in self.fold.customers.items()
        }
        return {key: self._wallet(row) for key, row in rows.items()}

    def _wallet(self, row: WalletRow) -> WalletAsOf:
        then = (row.customer_id, row.username, row.balance_minor, row.created_at)
        return WalletAsOf(*then, self.position)

    def stock(self) -> dict[UUID, ProductAsOf]:
        """Every product, by the fold and by the view, which must agree."""
        rows = self._rows(STOCK)
        for key, product in self.fold.products.items():
            shelf = (product.base_price_minor, product.stock, product.initial_stock)
            assert rows[key].current_price_minor == unit_price_minor(*shelf)
            assert (rows[key].base_price_minor, rows[key].stock, rows[key].initial_stock) == shelf
            assert rows[key].position == product.position
        assert set(rows) == set(self.fold.products)
        return {key: self._product(row) for key, row in rows.items()}

    def _product(self, row: StockRow) -> ProductAsOf:
        columns = {name: getattr(row, name) for name in ProductAsOf.__struct_fields__}
        return ProductAsOf(**columns | {"position": self.position})

    def orders(self) -> dict[UUID, OrderRow]:
        """Every order, by the fold and by the view, which must agree."""
        rows = self._rows(ORDERS)
        assert {key: (row.status, row.position) for key, row in rows.items()} == {
            key: (order.status, order.position) for key, order in self.fold.orders.items()
        }
        return {key: structs.replace(row, position=self.position) for key, row in rows.items()}
