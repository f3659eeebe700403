"""The metrics of the API, besides those of its publisher."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

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
PENDING_ORDERS: Final = Gauge(
    "ledger_pending_orders", "Accepted orders that no view shows yet", registry=None
)
CACHE_READS: Final = Counter(
    "ledger_product_cache_reads",
    "Reads of one product, by result: hit if the cache had the page, else miss",
    ["result"],
    registry=None,
)
HITS: Final = CACHE_READS.labels("hit")
MISSES: Final = CACHE_READS.labels("miss")
ANNOUNCED_POSITION: Final = Gauge(
    "ledger_announced_position", "The position of the views that was announced last", registry=None
)
ANNOUNCEMENTS_CONNECTED: Final = Gauge(
    "ledger_announcements_connected", "Whether this process hears the projector", registry=None
)
FEED_STREAMS: Final = Gauge(
    "ledger_feed_streams", "Clients that follow the ledger as server-sent events", registry=None
)
COLLECTORS: Final = (
    REQUESTS,
    REQUEST_S,
    PROBLEMS,
    PENDING_ORDERS,
    CACHE_READS,
    ANNOUNCED_POSITION,
    ANNOUNCEMENTS_CONNECTED,
    FEED_STREAMS,
)
