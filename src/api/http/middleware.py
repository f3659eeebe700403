"""Middleware: every request passes it on its way in, every answer on its way out.

Each takes an ASGI app and returns one. Most of those are plain functions rather than coroutines, as
each `await` costs every request.
"""

import asyncio
import gzip
import logging
import re
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from http import HTTPStatus
from typing import Final

from prometheus_client import Counter, Histogram
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.parameters import GZIP_SUFFIX, HEADERS, IF_NONE_MATCH, list_elements, parse_etags
from api.http.problems import KINDS, FieldError, Problem
from api.http.responses import ANSWER_HEADERS, path_reference, problem_response
from ledger.runtime import logs, tracing
from ledger.runtime.metrics import LATENCY_S

REQUESTS: Final = Counter(
    "ledger_http_requests",
    "Answered requests by route, as it stands in the route table",
    ["route", "method", "status"],
    registry=None,
)
REQUEST_S: Final = Histogram(
    "ledger_http_request_seconds",
    "From the end of a request's head to the beginning of its answer",
    ["route", "method"],
    buckets=LATENCY_S,
    registry=None,
)
PROBLEMS: Final = Counter(
    "ledger_http_problems", "Refused requests by the type of the problem", ["type"], registry=None
)

log = logging.getLogger(__name__)
access: Final = logging.getLogger(logs.ACCESS)

# Key of a request's ASGI scope: who sent it, if the API asked for that and knows it.
PRINCIPAL: Final = "ledger.principal"
# A refusal of load is logged once in this time for each type of problem, with the others counted.
REFUSAL_LOG_S: Final = 10.0
_REFUSALS: Final = frozenset((429, 503))

REQUEST_ID: Final = "request_id"
# The route label of unknown paths: clients must not be able to make labels.
ELSEWHERE: Final = "elsewhere"
# Smaller answers fit into two packets as they are. Products and orders one by one are smaller.
MIN_GZIP: Final = 2048
# At 250 µs each a turn then takes 16 ms.
TURN_REQUESTS: Final = 64
# Three thousand clients may order at one moment, however slow the machine is.
MAX_LINE: Final = 3_200
# The paths of the probes.
HEALTH: Final = "/health/"
# In the scope of a request that found so many in line.
CROWDED: Final = "ledger.crowded"
# Compressing this much takes long enough to be done beside the event loop.
MIN_GZIP_IN_THREAD: Final = 64 * 1024
MAX_LOGGED_PATH: Final = 1024

_GZIP_LEVEL: Final = 4
_WEIGHT: Final = re.compile(r"q=([01](?:\.\d{0,3})?)").fullmatch
_REQUEST_ID: Final = re.compile(rb"[!-~]{1,128}").fullmatch
_NO_SNIFFING: Final = (b"x-content-type-options", b"nosniff")
_NO_STORE: Final = (b"cache-control", b"no-store")
_GZIP: Final = (b"content-encoding", b"gzip")
_VARY: Final = (b"vary", b"accept-encoding")
# Those of RFC 9110 and RFC 5789 but CONNECT, which is for proxies, and QUERY, which OpenAPI knows:
# any other is unknown to this server, not to the path alone.
METHODS: Final = frozenset(
    ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY")
)
_CORS_HEADERS: Final = ("Authorization", "Content-Type", "traceparent")
_ASKED_HEADERS: Final = "access-control-request-headers"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_TRACEPARENT: Final = "ledger.traceparent"
_STATUS: Final = "ledger.status"


def middleware(
    cors_origins: Sequence[str], problem_of: Callable[[BaseException], Problem]
) -> list[Middleware]:
    """All of it, in order. `cors_origins`: which web origins' pages may call the API."""
    cors = Middleware(
        Cors,
        cors_origins,
        allow_methods=("GET", "HEAD", "POST", "PATCH"),
        allow_headers=(*_CORS_HEADERS, *(header.name for header in HEADERS)),
        # API keys stand in a header that a page sets itself, so cookies are never needed.
        allow_credentials=False,
        expose_headers=tuple(ANSWER_HEADERS),
    )
    return [
        Middleware(TurnLimit),
        Middleware(with_request_id),
        Middleware(RequestLog),
        Middleware(with_response_headers),
        *([cors] if cors_origins else ()),
        Middleware(with_problems, problem_of),
    ]


class TurnLimit:
    """Lets a turn of the event loop begin no more than TURN_REQUESTS; the others wait in line.

    Thousands of requests may arrive in one turn. If all began in it, whatever takes several turns,
    as a confirm of the broker does, would take seconds. Who finds MAX_LINE in line goes to a line
    of its own with CROWDED in its scope, and so comes sooner to the handler that may refuse it.
    So do probes of health, as who sends them restarts a process that answers late.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._left = TURN_REQUESTS
        self._is_due = False  # _begin_turn, in the next turn
        self._line: deque[asyncio.Future[None]] = deque()
        self._express: deque[asyncio.Future[None]] = deque()

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request, in this turn or in a later one."""
        if self._left == 0:
            line = self._line
            if scope["path"].startswith(HEALTH):
                line = self._express
            elif len(line) >= MAX_LINE:
                scope[CROWDED] = True
                line = self._express
            return self._serve_later(line, scope, receive, send)
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._begin_turn)
        self._left -= 1
        return self._app(scope, receive, send)

    async def _serve_later(
        self, line: deque[asyncio.Future[None]], scope: Scope, receive: Receive, send: Send
    ) -> None:
        turn = asyncio.get_running_loop().create_future()
        line.append(turn)
        await turn
        await self._app(scope, receive, send)

    def _begin_turn(self) -> None:
        begun = _begin(self._line)
        self._left = TURN_REQUESTS - begun
        self._is_due = begun + _begin(self._express) > 0
        if self._is_due:
            asyncio.get_running_loop().call_soon(self._begin_turn)


def _begin(line: deque[asyncio.Future[None]]) -> int:
    """Let the first ones begin, as many as a turn may; returns their number."""
    begun = 0
    while line and begun < TURN_REQUESTS:
        turn = line.popleft()
        if not turn.done():  # its client may have gone
            turn.set_result(None)
            begun += 1
    return begun


def with_request_id(app: ASGIApp) -> ASGIApp:
    """Put the request's id into the scope: the client's, if it is fit for a log, or a new one."""

    def serve(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        scope[REQUEST_ID] = request_id_of(scope["headers"])
        return app(scope, receive, send)

    return serve


def request_id_of(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The request id among the headers, or else one that nobody had yet."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID(value):
            return value
    return secrets.token_hex(16).encode()


class RequestLog:
    """Counts and times every answer and, if wanted, logs and traces it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        # The labelled metrics are kept: to look them up by their labels costs 5 µs a request.
        self._metrics: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request."""
        started_at = time.perf_counter()
        logs.request_id.set(scope[REQUEST_ID])

        def send_counted(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                scope[_STATUS] = message["status"]
                self._count(scope, time.perf_counter() - started_at)
            return send(message)

        serve = self._serve_traced if tracing.enabled() else self._app
        return serve(scope, receive, send_counted)

    async def _serve_traced(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, parent = _method_label(scope), traceparent_of(scope)
        attributes = {
            "http.request.method": method,
            "ledger.request_id": scope[REQUEST_ID].decode("latin-1"),
        }
        with tracing.request_span(method, parent, attributes) as (span, traceparent):
            scope[_TRACEPARENT] = traceparent
            await self._app(scope, receive, send)
            # The route is known only now, because the router is further in.
            route = _route_label(scope)
            span.update_name(f"{method} {route}")
            span.set_attribute("http.route", route)
            span.set_attribute("http.response.status_code", scope.get(_STATUS, 0))

    def _count(self, scope: Scope, seconds: float) -> None:
        method, status = scope["method"], scope[_STATUS]
        route = _route_label(scope)
        metrics = self._metrics.get((route, method, status))
        if metrics is None:
            label = _method_label(scope)
            metrics = REQUESTS.labels(route, label, status), REQUEST_S.labels(route, label)
            if label == method:
                self._metrics[route, method, status] = metrics
        metrics[0].inc()
        metrics[1].observe(seconds)
        if access.isEnabledFor(logging.INFO):
            # As it came: percent-encoded, so that no character of it does anything to the log.
            path = scope["raw_path"][:MAX_LOGGED_PATH].decode("ascii", "backslashreplace")
            fields = {"method": method[:20], "route": route, "path": path, "status": status}
            fields["duration_ms"] = round(seconds * 1000, 3)
            access.info("%s %s %s", method[:20], path, status, extra=fields)


def _route_label(scope: Scope) -> str:
    return getattr(scope.get("endpoint"), "path", ELSEWHERE)


def _method_label(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else "other"


def traceparent_of(scope: Scope) -> str | None:
    """The trace that an event of this request belongs to (W3C Trace Context)."""
    if _TRACEPARENT in scope:
        traceparent: str | None = scope[_TRACEPARENT]
        return traceparent
    given = [value for name, value in scope["headers"] if name == b"traceparent"]
    return tracing.valid_traceparent(given[0].decode("latin-1")) if len(given) == 1 else None


def refuse_page(headers: Mapping[bytes, bytes], origins: Collection[str]) -> None:
    """Raise Problem if a page sent the request that is neither of this API nor of these origins.

    A browser sends a POST of any page without asking, if body and headers are those of a form, and
    so from within a network that the page's author can't reach. It says whose page it was (Fetch,
    3.2; Fetch Metadata, 2.2), which no page can change; who is no browser says nothing. The scheme
    of the API's own origin is not known here, nor behind some proxies its port: there a browser
    says `same-origin`.
    """
    site = headers.get(b"sec-fetch-site")
    given = headers.get(b"origin")
    if given is None:
        if site in (None, b"same-origin", b"none"):
            return
    elif site == b"same-origin" or "*" in origins:
        return
    else:
        origin = given.decode("latin-1")
        scheme, _, host = origin.lower().partition("://")
        port, own = _DEFAULT_PORTS.get(scheme), headers.get(b"host", b"").decode("latin-1").lower()
        if origin in origins or (port and own and own in (host, f"{host}:{port}")):
            return
    raise refused_page()


def refused_page() -> Problem:
    """The problem of a page that may not make its request."""
    detail = "is not this API's own, and none of LEDGER_CORS_ORIGINS"
    return Problem("cors-refused", f"the page's origin {detail}", [FieldError("Origin", detail)])


class Cors(CORSMiddleware):
    """Lets pages of other origins call, and refuses others with a problem that says why."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer a preflight (Fetch, 3.3): 204, or the problem of what is not allowed."""
        given = dict(request_headers)
        # Empty elements of a list mean nothing (RFC 9110, 5.6.1.2), and all may be empty.
        names = given.pop(_ASKED_HEADERS, "").split(",")
        if asked := ",".join(filter(str.strip, names)):
            given[_ASKED_HEADERS] = asked
        answer = super().preflight_response(Headers(given))
        allowed = {n: v for n, v in answer.headers.items() if not n.startswith("content-")}
        if answer.status_code == HTTPStatus.OK:
            return Response(None, 204, allowed)
        errors = [
            FieldError(name, "is not allowed to pages of this origin")
            for name in (
                "Origin",
                "Access-Control-Request-Method",
                "Access-Control-Request-Headers",
            )
            if name.rpartition("-")[2].lower() in bytes(answer.body).decode()
        ]
        detail = "the page's origin, method or headers are not allowed here"
        problem = Problem("cors-refused", detail, errors, allowed)

        async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
            PROBLEMS.labels(problem.kind).inc()
            response = problem_response(problem, path_reference(scope["raw_path"]))
            await response(scope, receive, send)

        return refuse  # type: ignore[return-value]  # it is only called, as an ASGI application


def with_response_headers(app: ASGIApp) -> ASGIApp:
    """Add the headers that every answer has, and compress a body that is large and whole.

    An answer whose ETag the client has becomes a 304, which keeps the headers of its 200.
    """

    def serve(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        unsent: Message | None = None

        def send_finished(message: Message) -> Awaitable[None]:
            nonlocal unsent
            if message["type"] == "http.response.start":
                if not add_headers(message, scope):
                    return send(message)
                # Length and ETag depend on the compressed body, so the start waits for the body.
                unsent = message
                return _sent()
            if unsent is None:
                return send(message)
            start, unsent = unsent, None
            if start["status"] == HTTPStatus.NOT_MODIFIED:
                return _send_both(start, {**message, "body": b""}, send)
            return _send_compressed(start, message, send)

        return app(scope, receive, send_finished)

    return serve


async def _sent() -> None:
    pass


def add_headers(start: Message, scope: Scope) -> bool:
    """Add the headers that every answer has, and make it a 304 where the client has its ETag.

    Returns whether the body is not to be sent as it is: compressed, or not at all.
    """
    headers: list[tuple[bytes, bytes]] = start["headers"]
    named = dict(headers)
    headers += [(b"x-request-id", scope[REQUEST_ID]), _NO_SNIFFING]
    if b"cache-control" not in named:
        headers.append(_NO_STORE)
    # A stream has no length: compression would hold its events back.
    is_compressed = False
    if int(named.get(b"content-length", 0)) >= MIN_GZIP and b"content-encoding" not in named:
        if _VARY not in headers:
            headers.append(_VARY)
        is_compressed = accepts_gzip(scope)
    etag = named.get(b"etag")
    if etag and start["status"] == HTTPStatus.OK and _is_current(etag, scope):
        start["status"] = int(HTTPStatus.NOT_MODIFIED)
        start["headers"] = [
            _etag_of_gzip(*header) if is_compressed else header
            for header in headers
            if not header[0].startswith(b"content-")
        ]
        return True
    return is_compressed


def _is_current(etag: bytes, scope: Scope) -> bool:
    """Whether If-None-Match of a read names the ETag, compared weakly (RFC 9110, 13.1.2)."""
    if scope["method"] not in ("GET", "HEAD"):
        return False
    given = [value for name, value in scope["headers"] if name == IF_NONE_MATCH.wire_name]
    if not given:
        return False
    tags = parse_etags(IF_NONE_MATCH.name, b",".join(given).decode("latin-1"))
    return "*" in tags or etag.decode("latin-1").removeprefix("W/") in tags


async def _send_both(start: Message, message: Message, send: Send) -> None:
    await send(start)
    await send(message)


async def _send_compressed(start: Message, message: Message, send: Send) -> None:
    body = message["body"]
    if len(body) >= MIN_GZIP_IN_THREAD:
        body = await asyncio.to_thread(compress, body)
    else:
        body = compress(body)
    headers = [
        _etag_of_gzip(*header) for header in start["headers"] if header[0] != b"content-length"
    ]
    headers += [(b"content-length", b"%d" % len(body)), _GZIP]
    await _send_both({**start, "headers": headers}, {**message, "body": body}, send)


def _etag_of_gzip(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """A strong ETag promises the same bytes, so compressed ones have another (RFC 9110, 8.8.3.3).

    It stays strong: by a weak one nobody could send If-Match.
    """
    if name == b"etag" and not value.startswith(b"W/"):
        return name, b'%s%s"' % (value[:-1], GZIP_SUFFIX.encode())
    return name, value


def compress(body: bytes, level: int = _GZIP_LEVEL) -> bytes:
    """The body compressed with gzip; the same body always gives the same bytes."""
    return gzip.compress(body, level, mtime=0)


def accepts_gzip(scope: Scope) -> bool:
    """Whether Accept-Encoding allows gzip, and not only after the body as it is (RFC 9110, 12.5.3).

    The body as it is goes to those as well who refuse that: an answer is worth more than none.
    """
    weights = accepted_weights(scope, b"accept-encoding")
    weight = weights.get("gzip", weights.get("*", 0))
    return weight > 0 and weight >= weights.get("identity", 0)


def accepted_weights(scope: Scope, header: bytes) -> dict[str, float]:
    """What a header of the kind of `Accept` names, with its weights (RFC 9110, 12.4.2)."""
    given = b",".join(value for name, value in scope["headers"] if name == header)
    weights: dict[str, float] = {}
    for name, *parameters in list_elements(given.decode("latin-1").lower()):
        found = [_WEIGHT(parameter.strip()) for parameter in parameters]
        weights[name.strip()] = next((float(match[1]) for match in found if match), 1.0)
    return weights


class RefusalLog:
    """Logs refusals for want of capacity: of each type the first, and then a sample."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        # By type: when one was logged, and how many were not since then.
        self._logged: dict[str, tuple[float, int]] = {}

    def add(self, problem: Problem, scope: Scope) -> None:
        """Log the refusal of a request, or count it for the next line."""
        now_s = self._now_s()
        logged_at_s, more = self._logged.get(problem.kind, (now_s - REFUSAL_LOG_S, 0))
        if now_s < logged_at_s + REFUSAL_LOG_S:
            self._logged[problem.kind] = logged_at_s, more + 1
            return
        self._logged[problem.kind] = now_s, 0
        sender = getattr(scope.get(PRINCIPAL), "submitter", "") or "no known client"
        log.warning(
            "%s (%s): %s; %d more were not logged", problem.kind, sender, problem.detail, more
        )


def with_problems(app: ASGIApp, problem_of: Callable[[BaseException], Problem]) -> ASGIApp:
    """Answer what a handler raises with a problem, and count it by its type."""
    refusals = RefusalLog()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except (Exception, BaseExceptionGroup, asyncio.CancelledError) as error:
            # After the start of an answer there is nothing to say but the end of the connection.
            if _STATUS in scope or _is_cancelled(error):
                raise
            instance = path_reference(scope["raw_path"])
            try:
                problem = problem_of(error)
                response = problem_response(problem, instance)
            except Exception as second:  # noqa: BLE001  # whatever it is, there is an answer
                # Even what the client sent can't be said back: nothing of it is in this answer.
                problem = problem_of(second)
                response = problem_response(problem, "")
            PROBLEMS.labels(problem.kind).inc()
            if KINDS[problem.kind].status in _REFUSALS:
                refusals.add(problem, scope)
            if scope["method"] == "PATCH" and "accept" in response.headers:
                response.headers["Accept-Patch"] = response.headers["Accept"]  # RFC 5789, 2.2
            await response(scope, receive, send)

    return serve


def _is_cancelled(error: BaseException) -> bool:
    """Whether this very request is to end; else something that it waited for was cancelled."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and bool(task and task.cancelling())
