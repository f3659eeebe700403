"""What a key may be allowed to do."""

from collections.abc import Iterable
from enum import StrEnum


class Scope(StrEnum):
    """What a route may ask for; a key has one or more of them."""

    ORDERS_WRITE = "orders:write"
    ORDERS_READ = "orders:read"
    CATALOGUE_WRITE = "catalogue:write"
    WALLETS_WRITE = "wallets:write"
    LEDGER_READ = "ledger:read"
    ADMIN = "admin"


def known_scopes(names: Iterable[str]) -> frozenset[str]:
    """Those names that are scopes of this API."""
    return frozenset(names) & frozenset(Scope)
