"""An operation: one method of one path, declared once.

The declaration names who may do it, what it takes and what it answers. By it the request is
parsed (`read_call`), the sender is admitted (`api.app`) and the OpenAPI document is written.
"""

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import Struct
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from api.auth.principal import Scope
from api.context import Context
from api.http.middleware import refuse_page
from api.http.parameters import (
    AS_OF_POSITION,
    CONDITIONS,
    IDEMPOTENCY_KEY,
    IF_MATCH,
    LIMIT,
    MIN_POSITION,
    Call,
    Parameter,
    read_headers,
)
from api.http.preconditions import refuse_conditions
from api.http.problems import KINDS
from api.http.requests import MAX_BODY, Turn, read_body, read_query

PREFIX: Final = "/api/v1"

# A JSON body by its shape, media types with commas between, or no body.
Answer = type[Struct] | str | None

Handler = Callable[[Context, Call[Any]], Awaitable[Response]]


@dataclass(eq=False)
class Operation:
    """The declaration, which decorates its handler; `scope` is None where everybody may.

    `answers` has every answer by status. `problems` are the kinds that not all operations of its
    sort can answer with. `orders`: how many are in the body, where there may be many. `own`: an API
    key bound to one customer may, too, because path or handler keep it to that customer. `id`
    names it in generated clients: it stays what it is.
    """

    scope: Scope | None
    summary: str
    answers: Mapping[int, Answer]
    parameters: tuple[Parameter[Any], ...] = ()
    problems: tuple[str, ...] = ()
    body: type[BaseModel] | None = None
    max_body: int = MAX_BODY
    own: bool = False
    orders: Callable[[Any], int] | None = None
    id: str = field(kw_only=True)
    handler: Handler = field(init=False)

    def __post_init__(self) -> None:
        self.path = [p for p in self.parameters if p.place == "path"]
        self.query = {p.name: p for p in self.parameters if p.place == "query"}
        self.headers = [p for p in self.parameters if p.place == "header"]
        # It appends to the inbox.
        self.submits = IDEMPOTENCY_KEY in self.parameters

    def __call__(self, handler: Handler) -> "Operation":
        """Set the handler: an operation is the decorator of its handler."""
        self.handler = handler
        return self

    async def read_call(
        self, request: Request, origins: Collection[str], parse_turn: Turn | None = None
    ) -> Call[Any]:
        """The request as the declaration says; raises Problem or pydantic's ValidationError.

        `origins`: whose pages may submit. The body is parsed inside `parse_turn`.
        """
        headers = read_headers(request.scope["headers"])
        if self.submits:
            refuse_page(headers, origins)
        if not CONDITIONS.keys().isdisjoint(headers):
            versioned = IF_MATCH in self.headers
            refuse_conditions(headers, submits=self.submits, versioned=versioned)
        values: dict[str, Any] = {}
        for parameter in self.path:
            text = request.path_params[parameter.name]
            values[parameter.name] = parameter.form.parse(parameter.name, text)
        query = read_query(request.scope["query_string"], self.query)
        for name, text in query.items():
            values[name] = self.query[name].form.parse(name, text)
        body = None
        if self.body:
            body = await read_body(request.receive, headers, self.body, self.max_body, parse_turn)
        return Call(request, headers, query, values, body)

    @property
    def reads_views(self) -> bool:
        """It answers from a view, at a position that the client can ask for."""
        return MIN_POSITION in self.parameters

    def statuses(self) -> dict[int, list[str]]:
        """Every status it can answer with, in ascending order, and its kinds of problem, if any."""
        statuses: dict[int, list[str]] = {status: [] for status in self.answers}
        kinds = set(self._problem_kinds())
        for kind in KINDS:
            if kind in kinds:
                statuses.setdefault(int(KINDS[kind].status), []).append(kind)
        return dict(sorted(statuses.items()))

    def _problem_kinds(self) -> Iterator[str]:
        # Any request can be no HTTP, too slow, too large, for another host, or have a parameter
        # that is not known.
        yield from ("bad-request", "head-too-slow", "target-too-long", "head-too-large")
        yield "misdirected-host"
        yield from ("invalid-fields", "internal-error")
        if self.body:
            yield from ("bad-json", "body-too-large", "not-json", "body-too-slow")
        if IF_MATCH in self.parameters or not self.submits:
            yield "precondition-failed"
        if self.submits:
            yield from ("key-reused", "inbox-unavailable", "inbox-full", "inbox-unconfirmed")
            yield "cors-refused"
        if self.reads_views:
            yield from ("views-unavailable", "views-behind", "beyond-head")
        if AS_OF_POSITION in self.parameters:
            yield "past-busy"
        if LIMIT in self.parameters or self.orders:
            yield "busy"
        if self.scope:
            yield from ("no-key", "bad-key", "missing-scope", "too-many-requests")
            yield "keys-unavailable"
            if not self.own:
                yield "bound-key"
        yield from self.problems
