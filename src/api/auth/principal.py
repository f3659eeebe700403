"""Who asks, and what they may do."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

from msgspec import Struct
from starlette.requests import Request
from starlette.types import Scope as HttpScope

from api.auth.scopes import Scope
from api.problems import Problem

STATE: Final = "ledger.principal"
"""Where the principal of a request is kept in its ASGI scope; not there where auth is off."""
LAPSED: Final = "ledger.lapsed"


class Principal(Struct, frozen=True):
    """The holder of a key or of a token, by the name that the ledger records.

    With a `customer_id` it sees and touches that customer's wallet and orders, and no others.
    """

    submitter: str
    scopes: frozenset[str]
    customer_id: UUID | None = None

    def may(self, scope: Scope) -> bool:
        """Whether the scope is given; `admin` gives all."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


def principal_of(request: Request) -> Principal | None:
    """Who sent the request; None where nobody is asked."""
    found: Principal | None = request.scope.get(STATE)
    return found


def submitter_of(request: Request) -> str | None:
    """The name that is recorded with what the request submits."""
    principal = principal_of(request)
    return principal.submitter if principal else None


def owner_of(request: Request) -> str:
    """Whose Idempotency-Keys the sender's are; nobody's where nobody is asked who it is."""
    principal = principal_of(request)
    return f"{principal.submitter}\n{principal.customer_id or ''}\n" if principal else ""


def bound_to(request: Request) -> UUID | None:
    """The only customer whose wallet and orders the sender may see and touch; None: any."""
    principal = principal_of(request)
    return principal.customer_id if principal else None


def may_see(request: Request, customer_id: UUID) -> bool:
    """Whether the sender may see and touch what belongs to this customer."""
    bound = bound_to(request)
    return bound is None or bound == customer_id


def require_customer(request: Request, customer_id: UUID) -> None:
    """Raises the Problem of a customer who does not exist, if the sender may not see this one."""
    if not may_see(request, customer_id):
        raise unknown_customer(customer_id)


def unknown_customer(customer_id: UUID | str) -> Problem:
    """There is no such customer, as far as the client may know."""
    return Problem("unknown-customer", f"there is no customer {customer_id}")


def keep(scope: HttpScope, principal: Principal, lapsed: Callable[[], Awaitable[None]]) -> None:
    """Let the handler of the request know who sent it, and a long answer when that is over."""
    scope[STATE] = principal
    scope[LAPSED] = lapsed


async def lapsed(scope: HttpScope) -> None:
    """Return soon after the sender's key or token counts no more; never where nobody is asked."""
    if LAPSED in scope:
        await scope[LAPSED]()
    else:
        await asyncio.Event().wait()
