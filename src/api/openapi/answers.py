"""What operations answer with by status, less the problems that all of their sort have."""

from typing import Final

from api import schemas as s
from api.event_stream import EVENT_STREAM
from api.openapi.operation import Answers
from api.resources import docs, dry_run, health, reports
from api.responses import JSON
from ledger.eventlog.codec import BATCH_CONTENT_TYPE

NO_ORDER: Final[Answers] = {404: ("unknown-order",)}
NO_CUSTOMER: Final[Answers] = {404: ("unknown-customer",)}
NO_PRODUCT: Final[Answers] = {404: ("unknown-product",)}
DRY: Final[Answers] = {200: dry_run.DryRun, 503: ("views-unavailable",)}
PLACED: Final[Answers] = {**DRY, 201: s.Order, 202: s.AcceptedOrder, **NO_CUSTOMER}
BATCH: Final[Answers] = {201: s.PlacedOrders, 202: s.PlacedOrders, **NO_CUSTOMER}
FEED: Final[Answers] = {200: f"{BATCH_CONTENT_TYPE}, {EVENT_STREAM}", 503: ("too-many-streams",)}
HISTORY: Final[Answers] = {200: BATCH_CONTENT_TYPE, **NO_ORDER}
FOUND: Final[Answers] = {200: s.Order, **NO_ORDER}
KEPT: Final[Answers] = {409: ("not-cancellable",), 503: ("views-unavailable",)}
CANCELLED: Final[Answers] = {200: s.Order, 202: s.AcceptedCancel, **NO_ORDER, **KEPT}
THEIRS: Final[Answers] = {200: s.Orders, **NO_CUSTOMER}
WALLET: Final[Answers] = {200: s.Customer, **NO_CUSTOMER}
REGISTERED: Final[Answers] = {201: s.Customer, 202: s.AcceptedCustomer}
PAID: Final[Answers] = {**WALLET, 202: s.AcceptedCustomer, 409: ("balance-limit",)}
LISTED: Final[Answers] = {201: s.Product, 202: s.AcceptedProduct}
SHOWN: Final[Answers] = {200: s.Product, 304: None, **NO_PRODUCT}
CHANGED: Final[Answers] = {200: s.Product, 202: s.AcceptedProduct, **NO_PRODUCT}
RECEIVED: Final[Answers] = {**CHANGED, 409: ("stock-limit",)}
READY: Final[Answers] = {200: health.Ready, 503: health.Ready}
PAGE_200: Final[Answers] = {200: docs.HTML, 304: None}
ASSET: Final[Answers] = {200: "*/*", 304: None, 404: ("no-such-path",)}
EXPLAINED: Final[Answers] = {200: docs.Explained, 404: ("no-such-path",)}
DOCUMENT: Final[Answers] = {200: JSON, 304: None}
BALANCE: Final[Answers] = {200: reports.TrialBalance}
CATALOGUE: Final[Answers] = {200: s.Products}
METRICS: Final[Answers] = {200: "text/plain"}
LIVE: Final[Answers] = {200: health.Live}
