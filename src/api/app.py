"""The API: every route, and what each exception becomes, on one screen."""

import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any, Final

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Receive, Send
from starlette.types import Scope as HttpScope

from api import schemas as s
from api.as_of import WHEN
from api.auth.principal import Scope
from api.context import Context, Deps, make_context
from api.cors import allow_origins
from api.field_errors import invalid_fields
from api.openapi import answers as a
from api.openapi import document as openapi
from api.openapi.operation import Operation as Op
from api.openapi.operation import Own
from api.problems import CLOSE, Problem
from api.request_log import ELSEWHERE, Observed
from api.resources import (
    customers,
    docs,
    events,
    health,
    order_batches,
    orders,
    products,
    reports,
    scrape,
)
from api.response_headers import finish, identify
from api.responses import JSON, PREFIX
from ledger.messaging.publisher import InboxFull, InboxUnavailable
from projections.queries import ViewsUnavailable

log = logging.getLogger(__name__)

WRITE, READ = Scope.ORDERS_WRITE, Scope.ORDERS_READ
CATALOGUE, WALLETS = Scope.CATALOGUE_WRITE, Scope.WALLETS_WRITE
PAGE: Final = ("after", "limit", "min_position")
FILTERS: Final = ("customer_id", "product_id", "status", *PAGE)
THEIRS: Final = FILTERS[1:]
DRY: Final = ("dry_run",)
LEDGER: Final = Scope.LEDGER_READ


async def describe(context: Context, request: Request) -> Response:
    """This document."""
    return document(guarded=context.guard is not None).response(request)


ROUTES: Final[dict[str, dict[str, Op]]] = {
    f"{PREFIX}/orders": {
        "POST": Own(orders.place, WRITE, "Place an order", s.PlaceOrder, a.PLACED, DRY),
        "GET": Own(orders.browse, READ, "List orders", None, a.THEIRS, FILTERS),
    },
    f"{PREFIX}/orders/batch": {
        "POST": Own(order_batches.place, WRITE, "Place many orders", s.PlaceOrders, a.BATCH),
    },
    f"{PREFIX}/orders/{{order_id}}": {
        "GET": Own(orders.show, READ, "Follow an order", None, a.FOUND, WHEN),
    },
    f"{PREFIX}/orders/{{order_id}}/events": {
        "GET": Own(events.browse_order, READ, "Its own history", None, a.HISTORY, PAGE),
    },
    f"{PREFIX}/orders/{{order_id}}/cancel": {
        "POST": Own(orders.cancel, WRITE, "Cancel an order", s.Nothing, a.CANCELLED),
    },
    f"{PREFIX}/products/{{product_id}}": {
        "GET": Op(products.show, None, "Show a product", None, a.SHOWN, WHEN),
        "PATCH": Op(products.change, CATALOGUE, "Change a price", s.ChangePrice, a.CHANGED),
    },
    f"{PREFIX}/products/{{product_id}}/receipts": {
        "POST": Op(products.receive, CATALOGUE, "Take units in", s.ReceiveStock, a.RECEIVED),
    },
    f"{PREFIX}/products": {
        "POST": Op(products.create, CATALOGUE, "List a product", s.ListProduct, a.LISTED),
        "GET": Op(products.browse, None, "Show the catalogue", None, a.CATALOGUE, PAGE),
    },
    f"{PREFIX}/customers": {
        "POST": Op(customers.register, WALLETS, "Register", s.RegisterCustomer, a.REGISTERED),
    },
    f"{PREFIX}/customers/{{customer_id}}": {
        "GET": Own(customers.show, READ, "Show a wallet", None, a.WALLET, WHEN),
    },
    f"{PREFIX}/customers/{{customer_id}}/deposits": {
        "POST": Own(customers.deposit, WALLETS, "Pay in", s.Deposit, a.PAID),
    },
    f"{PREFIX}/customers/{{customer_id}}/orders": {
        "GET": Own(customers.browse_orders, READ, "List their orders", None, a.THEIRS, THEIRS),
    },
    f"{PREFIX}/events": {
        "GET": Op(events.browse, LEDGER, "The ledger", None, a.FEED, ("type", *PAGE)),
    },
    f"{PREFIX}/reports/trial-balance": {
        "GET": Op(reports.show_trial_balance, LEDGER, "The trial balance", None, a.BALANCE, WHEN),
    },
    "/health/live": {"GET": Op(health.live, None, "Whether it lives", None, a.LIVE)},
    "/health/ready": {"GET": Op(health.ready, None, "Whether it can work", None, a.READY)},
    "/metrics": {
        "GET": Op(scrape.show, Scope.LEDGER_READ, "Metrics for Prometheus", None, a.METRICS)
    },
    "/openapi.json": {"GET": Op(describe, None, "The API as OpenAPI 3.1", None, a.DOCUMENT)},
    "/docs": {"GET": Op(docs.show_page, None, "The API to try out", None, a.PAGE_200)},
    "/docs/{asset}": {"GET": Op(docs.show_asset, None, "What the page is made of", None, a.ASSET)},
    "/problems/{kind}": {"GET": Op(docs.explain, None, "Explain a problem", None, a.EXPLAINED)},
}
"""The path comes without a trailing slash; the API takes it with one too. GET answers HEAD."""

ERRORS: Final[dict[type[Exception], Callable[[Any], Problem]]] = {
    Problem: lambda problem: problem,
    ValidationError: invalid_fields,
    InboxFull: lambda error: Problem("inbox-full", str(error)),
    InboxUnavailable: lambda error: Problem("inbox-unavailable", str(error)),
    ViewsUnavailable: lambda _: Problem("views-unavailable", "the database did not answer in time"),
    ClientDisconnect: lambda _: Problem("bad-json", "the body ended early", headers=CLOSE),
}
"""Anything else is logged and becomes an internal-error."""


@cache
def document(*, guarded: bool) -> docs.Fixed:
    """ROUTES as an OpenAPI document, as it is where keys are asked for or where they are not."""
    return docs.fixed(JSON, openapi.document(ROUTES, guarded=guarded))


class App:
    """The ASGI application of one API process."""

    def __init__(self, deps: Deps) -> None:
        self.context = make_context(deps)
        routes = [
            Route(path, Observed(Resource(self.context, path, operations), path))
            for path, operations in ROUTES.items()
        ]
        elsewhere = Observed(no_such_path, ELSEWHERE)
        router = Router(routes, redirect_slashes=False, default=elsewhere)
        self._router = allow_origins(router, deps.cors_origins)

    async def __call__(self, scope: HttpScope, receive: Receive, send: Send) -> None:
        """Serve; a trailing slash makes no difference."""
        identify(scope)
        path = scope.get("path", "")
        if path.endswith("/") and len(path) > 1:
            scope = {**scope, "path": path[:-1]}
        await self._router(scope, receive, send)

    def works(self) -> Sequence[Coroutine[Any, Any, None]]:
        """What must run beside the server, for as long as it serves."""
        context = self.context
        return (
            context.publisher.run(),
            context.announcements.run(),
            context.pending.run(context.views.shown),
            context.streams.run(),
            *(context.peers.works() if context.peers else ()),
            *((context.depths.run(),) if context.depths else ()),
        )

    def stop_waiting(self) -> None:
        """Answer everybody who waits for the ledger, because the process is about to stop."""
        self.context.waiters.stop()
        self.context.streams.stop()


def build_app(deps: Deps) -> App:
    """The API on these dependencies."""
    return App(deps)


class Resource:
    """One path: picks the handler of the method, and turns what it raises into a problem."""

    def __init__(self, context: Context, path: str, operations: dict[str, Op]) -> None:
        self._context = context
        self._path = path
        self._operations = dict(operations)
        if "GET" in operations:
            self._operations["HEAD"] = operations["GET"]
        self._operations["OPTIONS"] = Op(self._tell_methods, None, "What the path takes")
        self._allowed = {"Allow": ", ".join(sorted(self._operations))}

    async def __call__(self, scope: HttpScope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        with ExitStack() as held:
            try:
                operation = self._operations.get(scope["method"]) or self._refuse(scope["method"])
                if self._context.guard and operation.scope:
                    admit = self._context.guard.admit
                    held.enter_context(await admit(scope, operation.scope, own=operation.own))
                response = await operation.handler(self._context, Request(scope, receive))
            except Exception as error:  # noqa: BLE001  # it is answered, and logged if unexpected
                response = problem_of(error).response(scope["path"])
            await finish(response, scope)
            await response(scope, receive, send)

    def _refuse(self, method: str) -> Op:
        detail = f"{self._path} takes {self._allowed['Allow']}, not {method}"
        raise Problem("method-not-allowed", detail, headers=self._allowed)

    async def _tell_methods(self, context: Context, request: Request) -> Response:
        return Response(None, 204, self._allowed)


def problem_of(error: Exception) -> Problem:
    """What a client is told about an exception."""
    for kind in type(error).__mro__:
        if kind in ERRORS:
            return ERRORS[kind](error)
    log.error("a request failed unexpectedly", exc_info=error)
    return Problem("internal-error", "the request failed, and why has been logged")


async def no_such_path(scope: HttpScope, receive: Receive, send: Send) -> None:
    """Answer a request for a path that is not in ROUTES."""
    problem = Problem("no-such-path", f"nothing lives at {scope['path'][:200]}")
    response = problem.response(scope["path"][:200])
    await finish(response, scope)
    await response(scope, receive, send)
