"""The API: every route, and what each exception becomes, on one screen."""

import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import cache, partial
from typing import Any, Final

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from api import openapi
from api.auth.guard import client_of
from api.auth.rate_limit import NoTurn, RequestShare
from api.context import Context
from api.http.middleware import CROWDED, middleware, refused_page
from api.http.parameters import IF_NONE_MATCH, Call
from api.http.problems import CLOSE, Problem
from api.http.requests import invalid_fields
from api.http.responses import JSON
from api.operation import PREFIX, Operation
from api.resources import customers, docs, events, health, orders, products, reports
from ledger.messaging.publisher import InboxFull, InboxUnavailable, NotConfirmed
from projections.queries import ViewsUnavailable

log = logging.getLogger(__name__)

RETRY_SPREAD_S: Final = 3

# What tells a preflight from another OPTIONS (Fetch, 3.3.2).
_PREFLIGHT: Final = frozenset((b"origin", b"access-control-request-method"))


@Operation(
    None,
    "The API as an OpenAPI 3.1 document",
    {200: JSON, 304: None},
    (IF_NONE_MATCH,),
    id="getOpenapiDocument",
)
async def describe(context: Context, call: Call[None]) -> Response:
    """Describe the API as an OpenAPI 3.1 document."""
    return document(guarded=context.guard is not None).response(call)


# The path comes without a trailing slash; the API takes it with one too. GET answers HEAD.
ROUTES: Final[Mapping[str, Mapping[str, Operation]]] = {
    # The first that fits is taken, so those that are asked for most come first.
    f"{PREFIX}/products/{{product_id}}": {"GET": products.show, "PATCH": products.change},
    f"{PREFIX}/orders": {"POST": orders.place, "GET": orders.browse},
    f"{PREFIX}/orders/batch": {"POST": orders.place_batch},
    f"{PREFIX}/orders/{{order_id}}": {"GET": orders.show},
    f"{PREFIX}/orders/{{order_id}}/events": {"GET": events.browse_order},
    f"{PREFIX}/orders/{{order_id}}/cancel": {"POST": orders.cancel},
    f"{PREFIX}/products/{{product_id}}/receipts": {"POST": products.receive},
    f"{PREFIX}/products": {"POST": products.create, "GET": products.browse},
    f"{PREFIX}/customers": {"POST": customers.register},
    f"{PREFIX}/customers/{{customer_id}}": {"GET": customers.show},
    f"{PREFIX}/customers/{{customer_id}}/deposits": {"POST": customers.deposit},
    f"{PREFIX}/customers/{{customer_id}}/orders": {"GET": customers.browse_orders},
    f"{PREFIX}/events": {"GET": events.browse},
    f"{PREFIX}/reports/trial-balance": {"GET": reports.show_trial_balance},
    "/health/live": {"GET": health.live},
    "/health/ready": {"GET": health.ready},
    "/metrics": {"GET": health.show_metrics},
    "/openapi.json": {"GET": describe},
    "/docs": {"GET": docs.show_page},
    "/docs/{asset}": {"GET": docs.show_asset},
    "/problems/{kind}": {"GET": docs.explain},
}


def inbox_problem(kind: str, error: InboxUnavailable) -> Problem:
    """The problem of events that were not confirmed, with a time to come back."""
    # Clients who were refused at one moment must not all come back at one moment.
    retry_after_s = error.retry_after_s + random.randint(0, RETRY_SPREAD_S)  # noqa: S311
    return Problem(kind, str(error), headers={"Retry-After": str(retry_after_s)})


# Anything else is logged and becomes an internal-error.
ERRORS: Final[Mapping[type[Exception], Callable[[Any], Problem]]] = {
    Problem: lambda problem: problem,
    ValidationError: invalid_fields,
    InboxFull: lambda error: inbox_problem("inbox-full", error),
    NotConfirmed: lambda error: inbox_problem("inbox-unconfirmed", error),
    InboxUnavailable: lambda error: inbox_problem("inbox-unavailable", error),
    ViewsUnavailable: lambda _: Problem("views-unavailable", "the database did not answer in time"),
    NoTurn: lambda error: Problem("busy", str(error)),
    ClientDisconnect: lambda _: Problem("bad-json", "the body ended early", headers=CLOSE),
}


@cache
def document(*, guarded: bool) -> docs.StaticDocument:
    """ROUTES as an OpenAPI document, as it is where keys are asked for or where they are not."""
    return docs.static_document(JSON, openapi.document(ROUTES, guarded=guarded))


def problem_of(error: BaseException) -> Problem:
    """The problem that an exception is answered with."""
    for kind in type(error).__mro__:
        if kind in ERRORS:
            return ERRORS[kind](error)
    log.error("a request failed unexpectedly", exc_info=error)
    return Problem("internal-error", "the request failed, and why has been logged")


class App(Router):
    """The ASGI application of one API process."""

    def __init__(self, context: Context) -> None:
        self.context = context
        routes = [
            Route(path, Endpoint(context, path, operations)) for path, operations in ROUTES.items()
        ]
        super().__init__(
            routes,
            redirect_slashes=False,
            default=no_such_path,
            middleware=middleware(context.cors_origins, problem_of),
        )

    def background_tasks(self) -> Sequence[Coroutine[Any, Any, None]]:
        """Coroutines that must run for as long as the server does."""
        context = self.context
        return (
            context.publisher.run(),
            context.announcements.run(),
            context.pending.run(context.views.existing_orders),
            context.streams.run(),
            *(context.peers.works() if context.peers else ()),
            *((context.guard.run(),) if context.guard else ()),
            *((context.depths.run(),) if context.depths else ()),
            *((context.watch.run(),) if context.watch else ()),
        )

    def stop_waiting(self) -> None:
        """Answer all requests that wait for the ledger: the process is about to stop."""
        self.context.waiters.stop()
        self.context.publisher.stop()
        self.context.streams.stopped.set()


class Endpoint:
    """One path: admits the sender, parses the request and calls the handler of the method."""

    def __init__(self, context: Context, path: str, operations: Mapping[str, Operation]) -> None:
        self.path = path
        self._context = context
        self._operations = dict(operations)
        if "GET" in operations:
            self._operations["HEAD"] = operations["GET"]
        self._allowed = {"Allow": ", ".join(sorted((*self._operations, "OPTIONS")))}
        if "PATCH" in operations:
            self._allowed["Accept-Patch"] = JSON  # RFC 5789, 3.1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; raises what becomes a problem."""
        method, context = scope["method"], self._context
        operation = self._operations.get(method)
        if operation is None:
            if method != "OPTIONS":
                detail = f"{self.path} takes {self._allowed['Allow']}, not {method}"
                raise Problem("method-not-allowed", detail, headers=self._allowed)
            if dict(scope["headers"]).keys() >= _PREFLIGHT:
                raise refused_page()  # else Cors would have answered it
            await Response(None, 204, self._allowed)(scope, receive, send)
            return
        if operation.submits:
            # Before anything that costs more than this look: there may be ten such requests for
            # each one that can be accepted.
            context.publisher.refuse_overload(crowded=CROWDED in scope)
        admitted = (
            await context.guard.admit(scope, operation.scope, own=operation.own)
            if context.guard and operation.scope
            else nullcontext()
        )
        # The request counts against its key's limit for as long as its answer takes.
        with admitted as share:
            request = Request(scope, receive)
            if operation.orders is None:
                call = await operation.read_call(request, context.cors_origins)
            else:
                turn = partial(self._parse_turn, scope, share)
                call = await operation.read_call(request, context.cors_origins, turn)
                if share:
                    share.weigh(operation.orders(call.body))
            response = await operation.handler(context, call)
            await response(scope, receive, send)

    @asynccontextmanager
    async def _parse_turn(self, scope: Scope, share: RequestShare | None) -> AsyncIterator[None]:
        async with self._context.batch_turns.turn(client_of(self._context.guard, scope)):
            if share:
                share.refuse_in_debt()
            yield


async def no_such_path(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a request for a path that is not in ROUTES; `OPTIONS *` asks about all of them."""
    if scope["path"] == "/redoc":
        # Where the API that this one replaces had its other page of documentation.
        await Response(None, 308, {"Location": "/docs"})(scope, receive, send)
        return
    if scope["method"] == "OPTIONS" and scope["path"] == "*":
        allowed = {method for methods in ROUTES.values() for method in methods}
        headers = {"Allow": ", ".join(sorted({*allowed, "HEAD", "OPTIONS"}))}
        await Response(None, 204, headers)(scope, receive, send)
        return
    raise Problem("no-such-path", f"there is no path {scope['path'][:200]}")
