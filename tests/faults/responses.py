"""What an answer of the API tells a client."""

import itertools
from typing import Final
from uuid import UUID
from weakref import WeakKeyDictionary

import httpx

from tests.faults.history import Body, Outcome

SHOWN: Final = {
    "order": ("orders", "order_id"),
    "cancel": ("orders", "order_id"),
    "deposit": ("customers", "customer_id"),
    "receipt": ("products", "product_id"),
    "price": ("products", "product_id"),
}
"""What the answer to an operation shows once it is decided, and what names it there."""

_connections: WeakKeyDictionary[object, int] = WeakKeyDictionary()
_numbers = itertools.count(1)


def connection_of(response: httpx.Response) -> int:
    """The number of the connection that an answer came over."""
    return _connections.setdefault(response.extensions["network_stream"], next(_numbers))


def judged(response: httpx.Response) -> tuple[Outcome, str]:
    """What an answer claims: only what the reference of problems promises counts as failed."""
    if response.is_success:
        return Outcome.OK, ""
    problem = response.json()
    kind, detail = problem["type"].removeprefix("/problems/"), problem["detail"]
    if "at position" in detail and problem.get("reason"):
        return Outcome.OK, f"{kind}: {detail}"
    refused = response.is_client_error or problem.get("accepted") == "no"
    return Outcome.FAILED if refused else Outcome.UNKNOWN, f"{kind}: {detail}"


def named(body: Body) -> list[str]:
    """The ids of new things that an answer names."""
    body = body.get("order", body)
    orders = body.get("orders")
    if orders is not None:
        return [order["order_id"] for order in orders]
    for name in ("order_id", "customer_id", "product_id"):
        if name in body:
            return [str(UUID(body[name]))]
    return []


def position_of(response: httpx.Response) -> int | None:
    """The position that an answer holds at."""
    position = response.headers.get("ledger-position")
    return None if position is None else int(position)


def shown_by(kind: str, response: httpx.Response) -> tuple[str, str] | None:
    """What the answer to an operation shows at its position, and the id of it."""
    if not response.is_success or kind not in SHOWN or position_of(response) is None:
        return None
    what, named_ = SHOWN[kind]
    return what, response.json()[named_]
