"""What is told of each request to whoever runs the API: counts, times, a log line, a span."""

import logging
import time
from collections.abc import Awaitable
from typing import Final

from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics import REQUEST_S, REQUESTS
from api.response_headers import REQUEST_ID
from ledger.runtime import logs, tracing

access: Final = logging.getLogger(logs.ACCESS)

ELSEWHERE: Final = "elsewhere"
"""The route of requests for paths where nothing lives: labels must not be for clients to choose."""

_METHODS: Final = frozenset(
    ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
)
_TRACEPARENT: Final = "ledger.traceparent"
_STATUS: Final = "ledger.status"


def traceparent_of(scope: Scope) -> str | None:
    """The trace that an event of this request belongs to (W3C Trace Context)."""
    if _TRACEPARENT in scope:
        found: str | None = scope[_TRACEPARENT]
        return found
    given = [value for name, value in scope["headers"] if name == b"traceparent"]
    return tracing.valid_traceparent(given[0].decode("latin-1")) if len(given) == 1 else None


class Observed:
    """One route, every answer of which is counted, timed and, if wanted, logged and traced."""

    def __init__(self, app: ASGIApp, route: str) -> None:
        self._app = app
        self._route = route
        self._known: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request. Neither this nor `tell` is a coroutine: each costs every request."""
        began = time.perf_counter()
        logs.request_id.set(scope[REQUEST_ID])

        def tell(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                self._answered(scope, message["status"], time.perf_counter() - began)
            return send(message)

        serve = self._trace if tracing.enabled() else self._app
        return serve(scope, receive, tell)

    async def _trace(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = _method(scope)
        about = {"http.request.method": method, "http.route": self._route}
        about["ledger.request_id"] = scope[REQUEST_ID].decode("latin-1")
        name, above = f"{method} {self._route}", traceparent_of(scope)
        with tracing.request_span(name, above, about) as (span, traceparent):
            scope[_TRACEPARENT] = traceparent
            await self._app(scope, receive, send)
            span.set_attribute("http.response.status_code", scope.get(_STATUS, 0))

    def _answered(self, scope: Scope, status: int, seconds: float) -> None:
        scope[_STATUS] = status
        key = (scope["method"], status)
        requests, latency = self._known.get(key) or self._meet(_method(scope), key)
        requests.inc()
        latency.observe(seconds)
        if access.isEnabledFor(logging.INFO):
            about = {"method": key[0], "route": self._route, "path": scope["path"]}
            about |= {"status": status, "duration_ms": round(seconds * 1000, 3)}
            access.info("%s %s %s", key[0], scope["path"], status, extra=about)

    def _meet(self, method: str, key: tuple[str, int]) -> tuple[Counter, Histogram]:
        children = (
            REQUESTS.labels(self._route, method, key[1]),
            REQUEST_S.labels(self._route, method),
        )
        if method == key[0]:
            self._known[key] = children
        return children


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in _METHODS else "other"
