"""What the API says of each of its operations: who may do it, what it takes, what it answers."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from msgspec import Struct
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from api.auth.principal import Scope
from api.context import Context

Handler = Callable[[Context, Request], Awaitable[Response]]
Answer = type[Struct] | tuple[str, ...] | str | None
"""A JSON body by its shape, the kinds of problem, media types with commas between, or no body."""
Answers = Mapping[int, Answer]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path; `scope` is None where everybody may.

    `own`: a key bound to one customer may, too, because path or handler keep it to that customer.
    """

    handler: Handler
    scope: Scope | None
    summary: str
    body: type[BaseModel] | None = None
    answers: Answers = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    own: bool = False


Own: Final = partial(Operation, own=True)
"""An operation that is open to a key bound to one customer."""
