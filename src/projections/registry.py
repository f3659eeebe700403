"""Every view of the ledger. A new one is one file and one line here."""

from typing import Any, Final

from projections.journal import JOURNAL
from projections.orders import ORDERS
from projections.projection import Projection
from projections.stock import STOCK
from projections.wallets import WALLETS

PROJECTIONS: Final[tuple[Projection[Any], ...]] = (STOCK, WALLETS, ORDERS, JOURNAL)
