"""The API: every route, and what each exception becomes, on one screen."""

import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from api import customers, health, orders, products
from api.context import Context, Deps, make_context
from api.fields import invalid_fields
from api.problems import CLOSE, Problem
from api.replies import PREFIX
from ledger.publisher import InboxFull, InboxUnavailable
from projections.queries import ViewsUnavailable

log = logging.getLogger(__name__)

Handler = Callable[[Context, Request], Awaitable[Response]]

ROUTES: Final[dict[str, dict[str, Handler]]] = {
    f"{PREFIX}/orders": {"POST": orders.place, "GET": orders.browse},
    f"{PREFIX}/orders/{{order_id}}": {"GET": orders.show},
    f"{PREFIX}/orders/{{order_id}}/cancel": {"POST": orders.cancel},
    f"{PREFIX}/products/{{product_id}}": {"GET": products.show, "PATCH": products.change},
    f"{PREFIX}/products/{{product_id}}/receipts": {"POST": products.receive},
    f"{PREFIX}/products": {"POST": products.create, "GET": products.browse},
    f"{PREFIX}/customers": {"POST": customers.register},
    f"{PREFIX}/customers/{{customer_id}}": {"GET": customers.show},
    f"{PREFIX}/customers/{{customer_id}}/deposits": {"POST": customers.deposit},
    f"{PREFIX}/customers/{{customer_id}}/orders": {"GET": customers.browse_orders},
    "/health/live": {"GET": health.live},
    "/health/ready": {"GET": health.ready},
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


class App:
    """The ASGI application of one API process."""

    def __init__(self, deps: Deps) -> None:
        self.context = make_context(deps)
        routes = [Route(path, Resource(self.context, path, h)) for path, h in ROUTES.items()]
        self._router = Router(routes, redirect_slashes=False, default=no_such_path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve; a trailing slash makes no difference."""
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
        )

    def stop_waiting(self) -> None:
        """Answer everybody who waits for the views, because the process is about to stop."""
        self.context.waiting.stop()


def build_app(deps: Deps) -> App:
    """The API on these dependencies."""
    return App(deps)


class Resource:
    """One path: picks the handler of the method, and turns what it raises into a problem."""

    def __init__(self, context: Context, path: str, handlers: dict[str, Handler]) -> None:
        self._context = context
        self._path = path
        self._handlers = dict(handlers)
        if "GET" in handlers:
            self._handlers["HEAD"] = handlers["GET"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            handler = self._handlers.get(scope["method"]) or self._refuse(scope["method"])
            response = await handler(self._context, Request(scope, receive))
        except Exception as error:  # noqa: BLE001  # it is answered, and logged if unexpected
            response = problem_of(error).response(scope["path"])
        await response(scope, receive, send)

    def _refuse(self, method: str) -> Handler:
        allowed = ", ".join(sorted(self._handlers))
        detail = f"{self._path} takes {allowed}, not {method}"
        raise Problem("method-not-allowed", detail, headers={"Allow": allowed})


def problem_of(error: Exception) -> Problem:
    """What a client is told about an exception."""
    for kind in type(error).__mro__:
        if kind in ERRORS:
            return ERRORS[kind](error)
    log.error("a request failed unexpectedly", exc_info=error)
    return Problem("internal-error", "the request failed, and why has been logged")


async def no_such_path(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request for a path that is not in ROUTES."""
    problem = Problem("no-such-path", f"nothing lives at {scope['path'][:200]}")
    await problem.response(scope["path"][:200])(scope, receive, send)
