"""The holder of an API key or of a token, and what that one may do."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final
from uuid import UUID

from msgspec import Struct


class Scope(StrEnum):
    """What an operation requires; an API key or a token has one or more of them."""

    ORDERS_WRITE = "orders:write"
    ORDERS_READ = "orders:read"
    CATALOGUE_WRITE = "catalogue:write"
    WALLETS_WRITE = "wallets:write"
    LEDGER_READ = "ledger:read"
    ADMIN = "admin"


def known_scopes(names: Iterable[str]) -> frozenset[str]:
    """The names that are scopes of this API; an issuer may give its tokens others besides."""
    return frozenset(names) & frozenset(Scope)


class Principal(Struct, frozen=True):
    """The holder of an API key or of a token, by the name that the ledger records.

    With a `customer_id` it sees and touches that customer's wallet and orders, and no others.
    """

    submitter: str
    scopes: frozenset[str]
    customer_id: UUID | None = None

    def may(self, scope: Scope) -> bool:
        """Whether it has the scope; `admin` includes all."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def may_see(self, customer_id: UUID) -> bool:
        """Whether it may see and touch the wallet and orders of this customer."""
        return self.customer_id is None or self.customer_id == customer_id


# Whoever sends a request where auth is off.
ANYBODY: Final = Principal("", frozenset((Scope.ADMIN,)))
