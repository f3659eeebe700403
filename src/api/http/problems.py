"""Errors as clients see them: RFC 9457 problem details with stable types.

KINDS has the status, title and remedy of each kind; REFUSALS the kind of each reason of the fold.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple
from uuid import UUID

from msgspec import Struct

from api.schemas import Order, ProblemTypeName, ReasonName
from ledger.core.events import Reason

CLOSE: Final = {"Connection": "close"}


class Kind(NamedTuple):
    """What all problems of one type have in common.

    `accepted`: whether the inbox may have what a request was to append: "no", or "unknown" where
    the same request once more would append it twice, unless it has an `Idempotency-Key`.
    """

    status: int
    title: str
    remedy: str
    accepted: Literal["no", "unknown"] | None = None


KINDS: Final[dict[str, Kind]] = {
    "bad-request": Kind(400, "The request can't be read", "Send a well-formed HTTP/1.1 request"),
    "bad-json": Kind(
        400,
        "The body is not JSON",
        "Send one JSON value in UTF-8 (RFC 8259), each name once in its object",
    ),
    "invalid-fields": Kind(
        422,
        "Some fields are not valid",
        "Change what `errors` names; `limit` is the nearest value that is allowed",
    ),
    "beyond-head": Kind(
        409,
        "The ledger has not come to this position",
        "Compare `ledger` and `head` with what you know: a position of another ledger, or of before"
        " this one was restored, is worth nothing here; read anew from its beginning",
    ),
    "key-reused": Kind(
        422,
        "Idempotency-Key used with another body",
        "Use a new Idempotency-Key for a new request, or send the first body again",
    ),
    "no-key": Kind(
        401,
        "An API key is needed",
        "Send `Authorization: Bearer` with an API key of `ledger keys create`, or a token",
    ),
    "bad-key": Kind(
        401,
        "The API key or token is not valid",
        "Ask for a new API key, or get a new token from the issuer",
    ),
    "missing-scope": Kind(
        403, "The API key or token lacks a scope", "Use one with the scope that `detail` names"
    ),
    "bound-key": Kind(
        403,
        "The API key or token is for one customer only",
        "Use one that is not bound to a customer",
    ),
    "cors-refused": Kind(
        403,
        "Pages of this origin may not make this request",
        "Call from the API's own origin or one of `LEDGER_CORS_ORIGINS`, with the methods and"
        " headers of this API",
    ),
    "no-such-path": Kind(404, "No such path", "Look the path up in `/openapi.json`"),
    "unknown-order": Kind(
        404, "No such order", "Check the id; an order that was accepted is never unknown"
    ),
    "unknown-product": Kind(404, "No such product", "Check the id, or list the product first"),
    "unknown-customer": Kind(
        404, "No such customer", "Check the id, or register the customer first"
    ),
    "method-not-allowed": Kind(
        405, "The path has no such method", "Use one of the methods that `Allow` names"
    ),
    "unknown-method": Kind(
        501,
        "No path has such a method",
        "Use GET, HEAD, POST, PATCH or OPTIONS, in capital letters",
    ),
    "misdirected-host": Kind(
        421,
        "The request is for another host",
        "Without keys the API answers to IP addresses, to `localhost` and to names without a dot:"
        " call it by one of them",
    ),
    "head-too-slow": Kind(
        408, "The request took too long to arrive", "Send path and headers in one go"
    ),
    "body-too-slow": Kind(
        408, "The body took too long to arrive", "Send the body in one go; nothing was appended"
    ),
    "duplicate": Kind(409, "It exists already", "Nothing needs to be done: the first one stands"),
    "balance-limit": Kind(409, "The wallet's balance would exceed its limit", "Deposit less"),
    "stock-limit": Kind(409, "The stock would exceed its limit", "Receive fewer units"),
    "out-of-stock": Kind(409, "Not enough in stock", "Order fewer units, or wait for a receipt"),
    "out-of-money": Kind(
        409, "Not enough in the wallet", "Order fewer units, or deposit money first"
    ),
    "batch-failed": Kind(
        409,
        "No order of the batch was completed",
        "Read `orders`: each says why; what you change is a new request, with a new"
        " `Idempotency-Key`",
    ),
    "not-cancellable": Kind(
        409, "The order can't be cancelled", "Read the order: `reason` says why it stays as it is"
    ),
    "precondition-failed": Kind(
        412,
        "It is not as `If-Match` says",
        "Read it again, and send the ETag that it has now",
    ),
    "target-too-long": Kind(
        414, "Path and query are too long", "Send fewer and shorter parameters"
    ),
    "unknown-coding": Kind(
        501, "The transfer coding is not known", "Send the body as it is, or chunked"
    ),
    "body-too-large": Kind(
        413, "The body is too large", "Send less, or split it into several requests"
    ),
    "not-json": Kind(
        415,
        "Only JSON bodies are read",
        "Send `Content-Type: application/json`, in UTF-8 and not compressed",
    ),
    "head-too-large": Kind(
        431, "Path and headers are too large", "Send fewer and shorter headers and parameters"
    ),
    "too-many-requests": Kind(
        429, "Too many requests", "Retry after `Retry-After`, and send fewer"
    ),
    "internal-error": Kind(
        500,
        "Something went wrong here",
        "Report the `X-Request-Id`; retry with the same `Idempotency-Key`",
        "unknown",
    ),
    "inbox-unavailable": Kind(
        503,
        "The inbox can't be reached",
        "Nothing of this request was accepted: retry after `Retry-After`, with the same"
        " `Idempotency-Key` if there was one",
        "no",
    ),
    "inbox-full": Kind(
        503,
        "Too much is waiting",
        "Nothing of this request was accepted: send fewer, and retry after `Retry-After`, with the"
        " same `Idempotency-Key` if there was one",
        "no",
    ),
    "inbox-unconfirmed": Kind(
        503,
        "It is not known whether the inbox has it",
        "Retry with the same `Idempotency-Key`; without one, look first whether it was done",
        "unknown",
    ),
    "keys-unavailable": Kind(503, "API keys can't be checked", "Retry after `Retry-After`", "no"),
    "views-unavailable": Kind(503, "The views can't be read", "Retry after `Retry-After`", "no"),
    "too-many-streams": Kind(
        503, "Too many streams are open", "Retry after `Retry-After`, or read the feed in pages"
    ),
    "busy": Kind(
        503,
        "Too many such requests at once",
        "Retry after `Retry-After`; nothing was appended",
        "no",
    ),
    "past-busy": Kind(503, "Too many as-of reads at once", "Retry after `Retry-After`"),
    "views-behind": Kind(
        503,
        "The views are behind",
        "Retry after `Retry-After`, or ask for a lower `min_position`",
    ),
}

# A limit is a conflict with what the ledger holds now (409), not a fault of the body (422).
REFUSALS: Final[dict[Reason, str]] = {
    Reason.UNKNOWN_PRODUCT: "unknown-product",
    Reason.UNKNOWN_CUSTOMER: "unknown-customer",
    Reason.UNKNOWN_ORDER: "unknown-order",
    Reason.INSUFFICIENT_STOCK: "out-of-stock",
    Reason.INSUFFICIENT_BALANCE: "out-of-money",
    Reason.BATCH_FAILED: "batch-failed",
    Reason.DUPLICATE_CUSTOMER: "duplicate",
    Reason.DUPLICATE_PRODUCT: "duplicate",
    Reason.DUPLICATE_ORDER: "duplicate",
    Reason.BALANCE_LIMIT: "balance-limit",
    Reason.STOCK_LIMIT: "stock-limit",
    Reason.NOT_COMPLETED: "not-cancellable",
    Reason.ALREADY_CANCELLED: "not-cancellable",
    Reason.IMPORTED: "not-cancellable",
    Reason.PRECONDITION_FAILED: "precondition-failed",
}


class FieldError(Struct, frozen=True, omit_defaults=True):
    """What is wrong with one field, parameter or header, and what would be right."""

    field: str
    detail: str
    limit: int | str | None = None


class ProblemDetails(Struct, frozen=True, omit_defaults=True):
    """The body of every error."""

    type: ProblemTypeName
    title: str
    status: int
    detail: str
    instance: str
    errors: list[FieldError] = []
    reason: ReasonName | None = None
    position: int | None = None
    min_position: int | None = None
    head: int | None = None
    ledger: str | None = None
    accepted: Literal["no", "unknown"] | None = None
    order: Order | None = None
    orders: list[Order] = []


class Problem(Exception):
    """An error answer. `kind` is a name of KINDS; `members` are further ones of the body."""

    def __init__(
        self,
        kind: str,
        detail: str,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        **members: object,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.errors = list(errors)
        self.headers = headers or {}
        self.members = members


def invalid(field: str, detail: str, limit: int | str | None = None, **members: object) -> Problem:
    """A problem with one field, parameter or header."""
    errors = [FieldError(field, detail, limit)]
    return Problem("invalid-fields", f"{field} {detail}", errors, None, **members)


def beyond_head(field: str, head: int, ledger_id: UUID) -> Problem:
    """A problem with a position that this ledger has not come to."""
    detail = f"must be at most {head}, where the ledger {ledger_id} ends now"
    errors = [FieldError(field, detail, head)]
    headers = {"Ledger-Position": str(head)}
    ledger = str(ledger_id)
    return Problem("beyond-head", f"{field} {detail}", errors, headers, head=head, ledger=ledger)


def refused(reason: str, what: str, order: Order | None = None) -> Problem:
    """The problem for a submission that the fold refused, or for an order that failed."""
    return Problem(REFUSALS[Reason(reason)], f"{what}: {reason}", reason=reason, order=order)
