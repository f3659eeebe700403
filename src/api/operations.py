"""What the API says of each of its operations: who may do it, what it takes, what it answers."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from msgspec import Struct
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from api.context import Context

Handler = Callable[[Context, Request], Awaitable[Response]]
Answer = type[Struct] | tuple[str, ...] | None
"""A body by its shape; the kinds of problem; or the handler's own media type, or no body."""
Answers = Mapping[int, Answer]


class Scope(StrEnum):
    """What a key may be allowed to do."""

    ORDERS_WRITE = "orders:write"
    ORDERS_READ = "orders:read"
    CATALOGUE_WRITE = "catalogue:write"
    WALLETS_WRITE = "wallets:write"
    LEDGER_READ = "ledger:read"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path; `scope` is None where everybody may."""

    handler: Handler
    scope: Scope | None
    summary: str
    body: type[BaseModel] | None = None
    answers: Answers = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
