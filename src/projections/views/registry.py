"""Every view of the ledger. A new one is one file and one line here."""

from typing import Any, Final

from projections.views.journal import JOURNAL
from projections.views.orders import ORDERS
from projections.views.projection import Projection
from projections.views.stock import STOCK
from projections.views.wallets import WALLETS

PROJECTIONS: Final[tuple[Projection[Any], ...]] = (STOCK, WALLETS, ORDERS, JOURNAL)
