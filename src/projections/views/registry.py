"""Every view of the ledger. A new one is one file and one line here."""

from collections.abc import Collection, Sequence
from typing import Any, Final

from projections.views.journal import JOURNAL
from projections.views.orders import ORDERS
from projections.views.projection import Projection
from projections.views.stock import STOCK
from projections.views.wallets import WALLETS

PROJECTIONS: Final[tuple[Projection[Any], ...]] = (STOCK, WALLETS, ORDERS, JOURNAL)


class UnknownView(Exception):
    """There is no view of this name."""


def views_named(names: Collection[str]) -> Sequence[Projection[Any]]:
    """The views with these names; raises UnknownView, which names those that there are."""
    known = [view.name for view in PROJECTIONS]
    if unknown := sorted(set(names) - set(known)):
        raise UnknownView(f"there is no view {unknown[0]}: choose of {', '.join(known)}")
    return [view for view in PROJECTIONS if view.name in names]
