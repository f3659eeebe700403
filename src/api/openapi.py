"""The OpenAPI 3.1 document, made of the route table and the declarations that serve.

The schemas are those of pydantic for bodies and of msgspec for answers and events, as they are on
the wire. It is the same document whether API keys are asked for or not, but for `security`.
docs/how-to/lint-the-openapi-document.md says what it is checked with.
"""

from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from importlib.metadata import version
from inspect import cleandoc
from typing import Any, Final
from uuid import UUID

from msgspec import Raw, Struct
from msgspec.json import schema_components
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api import schemas as s
from api.http.parameters import HEADERS, TEXT_SCHEMA, X_REQUEST_ID, Json, Parameter
from api.http.problems import KINDS, ProblemDetails
from api.http.requests import is_required
from api.http.responses import ANSWER_HEADERS, JSON, PROBLEM_JSON, encode
from api.operation import PREFIX, Operation
from api.reads.event_stream import EVENT_STREAM
from ledger.core.decider import Status
from ledger.core.events import DECIDED, SUBMITTED, AnyPayload, CustomerRegistered, Reason
from ledger.eventlog.codec import BATCH_CONTENT_TYPE, CloudEvent
from ledger.eventlog.encryption import SealedRegistration
from projections.trial_balance import JournalBalance, Sums
from projections.views.journal import UNIT_OF

ABOUT: Final = """\
Orders go into a durable inbox and are decided by one writer in one order. A 202 means: it can't be
lost any more, and will be decided. Money is a number with two decimals, times are RFC 3339 in UTC.
Every path may end with a slash, GET answers HEAD, and every error is a problem (RFC 9457) whose
`type` leads to its remedy. Answers of more than 2 KiB are compressed with gzip where the client
accepts it.\
"""
TAGS: Final = {
    "orders": "Place, follow, list and cancel orders",
    "products": "The catalogue: list products, receive stock, change prices",
    "customers": "Customers, their wallets and their orders",
    "events": "The ledger as a feed",
    "reports": "Reports on the whole ledger",
    "metrics": "Metrics for Prometheus",
    "health": "Liveness and readiness of the process",
    "docs": "This document, and explanations of problems",
}
BEARER: Final[Json] = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "API key or JWT",
    "description": "an API key of `ledger keys create`, or a JWT of the configured issuer",
}
SCHEMAS: Final = "#/components/schemas/"
# What answers of a media type hold that come as bytes already.
MEDIA: Final[Mapping[str, Json]] = {
    JSON: {"type": "object"},
    BATCH_CONTENT_TYPE: {"type": "array", "items": {"$ref": f"{SCHEMAS}Event"}},
    EVENT_STREAM: {
        "type": "string",
        "description": "server-sent events; each `data` is an `Event`",
    },
}
MAX_INT32: Final = 2**31 - 1

EVENT_TYPES: Final[Mapping[str, type[AnyPayload]]] = {**SUBMITTED, **DECIDED}
ORDER_STATUSES: Final[Mapping[str, str]] = {
    Status.PENDING: "accepted, and not decided yet",
    Status.COMPLETED: "paid from the wallet and taken from stock",
    Status.FAILED: "refused, as `failure_reason` says; nothing moved",
    Status.CANCELLED: "undone: its total is back in the wallet, its units in stock",
}
REASONS: Final[Mapping[str, str]] = {
    Reason.UNKNOWN_PRODUCT: "an order, a receipt or a price for a product that was never listed",
    Reason.UNKNOWN_CUSTOMER: "an order, a deposit or an erasure for a customer who was never"
    " registered",
    Reason.UNKNOWN_ORDER: "a cancel of an order that was never placed",
    Reason.INSUFFICIENT_STOCK: "fewer units left than ordered",
    Reason.INSUFFICIENT_BALANCE: "the wallet holds less than the total",
    Reason.DUPLICATE_CUSTOMER: "the id stands for something already",
    Reason.DUPLICATE_PRODUCT: "the same for a listing",
    Reason.DUPLICATE_ORDER: "the same for an order",
    Reason.BALANCE_LIMIT: "the wallet would hold more than 10,000,000,000,000.00",
    Reason.STOCK_LIMIT: "the stock would be more than 1,000,000,000",
    Reason.NOT_COMPLETED: "a cancel of an order that failed",
    Reason.ALREADY_CANCELLED: "a second cancel",
    Reason.IMPORTED: "a cancel of an order that another system completed",
    Reason.PRECONDITION_FAILED: "what the client named with `If-Match` has changed since",
    Reason.BATCH_FAILED: "another order of the same atomic batch could not be completed",
}
FAILURES: Final = (
    Reason.UNKNOWN_PRODUCT,
    Reason.UNKNOWN_CUSTOMER,
    Reason.INSUFFICIENT_STOCK,
    Reason.INSUFFICIENT_BALANCE,
    Reason.BATCH_FAILED,
)

# Each body can be posted, each answer is a real shape.
_CUSTOMER: Final = UUID("43e8ff2f-5d48-498f-a569-ca2cf9f7fae3")
_PRODUCT: Final = UUID("a1b2c3d4-e5f6-7890-1234-567890abcdef")
_ORDER: Final = UUID("01a2031b-bc0e-73eb-8cd5-4c3d4062033a")
_PLACED: Final = "2026-11-22T11:54:38.990659Z"
_DECIDED: Final = "2026-11-22T11:54:38.994873Z"

BODIES: Final[Mapping[type[BaseModel], dict[str, Any]]] = {
    s.PlaceOrder: {"customer_id": str(_CUSTOMER), "product_id": str(_PRODUCT), "quantity": 2},
    s.PlaceOrders: {
        "orders": [
            {"customer_id": str(_CUSTOMER), "product_id": str(_PRODUCT)},
            {"customer_id": str(_CUSTOMER), "product_id": str(_PRODUCT), "quantity": 2},
        ],
        "atomic": True,
    },
    s.RegisterCustomer: {"username": "ada"},
    s.Deposit: {"amount": 12.5},
    s.CreateProduct: {
        "name": "Pocket Telescope",
        "description": "Sees as far as lunch.",
        "base_price": 40.0,
        "stock": 10,
    },
    s.ReceiveStock: {"quantity": 25},
    s.ChangePrice: {"base_price": 44.99},
    s.CancelOrder: {},
}

_CUSTOMER_NOW: Final = s.Customer(_CUSTOMER, "ada", s.money(492_000), 9)
_PRODUCT_NOW: Final = s.Product(
    _PRODUCT, "Pocket Telescope", "Sees as far as lunch.", s.money(4_000), s.money(4_800), 4, 9
)
_ORDER_NOW: Final = s.Order(
    _ORDER,
    _PRODUCT,
    _CUSTOMER,
    2,
    "COMPLETED",
    _PLACED,
    _DECIDED,
    s.money(4_000),
    s.money(8_000),
    None,
    9,
)

_SUMS: Final = {
    "deposits": Sums(500_000, 0),
    "wallet": Sums(8_000, 500_000),
    "revenue": Sums(0, 8_000),
    "stock": Sums(10, 2),
    "received": Sums(0, 10),
    "sold": Sums(2, 0),
}
_TRIAL_BALANCE: Final = JournalBalance(
    9, {(account, unit): _SUMS.get(account, Sums()) for account, unit in UNIT_OF.items()}
)

ANSWERS: Final[Mapping[type[Struct], Struct]] = {
    type(example): example
    for example in (
        _CUSTOMER_NOW,
        _PRODUCT_NOW,
        _ORDER_NOW,
        s.PlacedOrders([_ORDER_NOW]),
        s.DryRun(_PRODUCT, _CUSTOMER, 2, "COMPLETED", s.money(4_000), s.money(8_000), None, 9),
        s.AcceptedCancel(_ORDER, s.ACCEPTED),
        s.AcceptedCustomer(_CUSTOMER, s.ACCEPTED),
        s.AcceptedProduct(_PRODUCT, s.ACCEPTED),
        s.ProductList([_PRODUCT_NOW], None),
        s.OrderList([_ORDER_NOW], 8),
        s.trial_balance(_TRIAL_BALANCE),
        s.Liveness(),
        s.ProblemExplanation(
            "/problems/out-of-stock", "Not enough in stock", 409, "Order fewer units"
        ),
        s.Readiness("ready", True, True, True, 9, 0, True),
    )
}


# Where a path names something, /docs tries it out with what the demo has.
PATH_EXAMPLES: Final[Mapping[str, str]] = {
    "order_id": str(_ORDER),
    "product_id": str(_PRODUCT),
    "customer_id": str(_CUSTOMER),
    "asset": "start.js",
    "kind": "out-of-stock",
}


def document(routes: Mapping[str, Mapping[str, Operation]], *, guarded: bool) -> bytes:
    """The document as JSON; `guarded`: API keys are asked for, else they may be left out."""
    operations = [operation for methods in routes.values() for operation in methods.values()]
    answers = [answer for operation in operations for answer in operation.answers.values()]
    structs = [answer for answer in answers if isinstance(answer, type)]
    bodies = [operation.body for operation in operations if operation.body]
    paths = {
        path: {
            method.lower(): _operation(path, operation, guarded)
            for method, operation in methods.items()
        }
        for path, methods in routes.items()
    }
    met = {
        kind
        for operation in operations
        for kinds in operation.statuses().values()
        for kind in kinds
    }
    return encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Order Ledger",
                "version": version("order-ledger"),
                "description": ABOUT,
                "contact": {"name": "Whoever runs this ledger"},
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "servers": [{"url": "/"}],
            "tags": [{"name": name, "description": words} for name, words in TAGS.items()],
            "paths": paths,
            "components": {
                "schemas": {
                    **answer_schemas([*structs, ProblemDetails]),
                    **body_schemas(bodies),
                    **event_schemas(),
                    **value_schemas(),
                },
                "headers": ANSWER_HEADERS,
                "parameters": {header.name: _parameter(header) for header in HEADERS},
                "examples": {
                    name: {
                        "summary": kind.title,
                        "description": kind.remedy,
                        "value": {
                            "type": f"/problems/{name}",
                            "title": kind.title,
                            "status": kind.status,
                            "detail": kind.title,
                            "instance": f"{PREFIX}/orders",
                            **({"accepted": kind.accepted} if kind.accepted else {}),
                        },
                    }
                    for name, kind in KINDS.items()
                    if name in met
                },
                "securitySchemes": {"bearer": BEARER},
            },
        }
    )


def _parameter(parameter: Parameter[Any]) -> Json:
    is_path = parameter.place == "path"
    return {
        "name": parameter.name,
        "in": parameter.place,
        **({"required": True} if is_path else {}),
        "description": parameter.description,
        "schema": _portable(parameter.form.schema),
        # A list is one parameter, with commas between.
        **({"explode": False} if parameter.form.schema.get("type") == "array" else {}),
        **({"example": PATH_EXAMPLES[parameter.name]} if is_path else {}),
    }


def _operation(path: str, operation: Operation, guarded: bool) -> Json:
    tag = path.removeprefix(PREFIX).split("/")[1]
    described: Json = {
        "operationId": operation.id,
        "tags": [tag if tag in TAGS else "docs"],
        "summary": operation.summary,
        "description": cleandoc(operation.handler.__doc__ or ""),
        "parameters": [
            *(_parameter(parameter) for parameter in (*operation.path, *operation.query.values())),
            *(
                {"$ref": f"#/components/parameters/{header.name}"}
                for header in (X_REQUEST_ID, *operation.headers)
            ),
        ],
    }
    if operation.body:
        content = {
            "schema": {"$ref": f"{SCHEMAS}{operation.body.__name__}"},
            "example": BODIES[operation.body],
        }
        required = is_required(operation.body)
        described["requestBody"] = {"required": required, "content": {JSON: content}}
    described["responses"] = {
        str(status): _response(operation, status, kinds)
        for status, kinds in operation.statuses().items()
    }
    if operation.scope:
        # Scopes of `bearer` itself would need OAuth 2 (OpenAPI 3.1, 4.8.30; Spectral refuses them).
        described["x-required-scope"] = operation.scope.value
        described["description"] += f"\n\nNeeds the scope `{operation.scope}`."
        described["security"] = [{"bearer": []}] if guarded else [{}, {"bearer": []}]
    else:
        described["security"] = []
    return described


def _response(operation: Operation, status: int, kinds: list[str]) -> Json:
    response: Json = {
        "description": HTTPStatus(status).phrase,
        "headers": {
            name: {"$ref": f"#/components/headers/{name}"}
            for name in _answer_headers(operation, status, bool(kinds))
        },
    }
    answer = operation.answers.get(status)
    content: Json = {}
    if isinstance(answer, type):
        content[JSON] = {
            "schema": {"$ref": f"{SCHEMAS}{answer.__name__}"},
            "example": Raw(encode(ANSWERS[answer])),
        }
    elif isinstance(answer, str):
        content |= {
            media: {"schema": MEDIA.get(media, TEXT_SCHEMA)} for media in answer.split(", ")
        }
    if kinds:
        response["description"] = "; ".join(KINDS[kind].title for kind in kinds)
        members = {
            "type": {"enum": [f"/problems/{kind}" for kind in kinds]},
            "status": {"const": status},
        }
        content[PROBLEM_JSON] = {
            "schema": {"allOf": [{"$ref": f"{SCHEMAS}ProblemDetails"}], "properties": members},
            "examples": {kind: {"$ref": f"#/components/examples/{kind}"} for kind in kinds},
        }
    return {**response, "content": content} if content else response


def _answer_headers(operation: Operation, status: int, is_problem: bool) -> Iterator[str]:
    yield "X-Request-Id"
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        yield "Retry-After"
    if status == HTTPStatus.UNAUTHORIZED:
        yield "WWW-Authenticate"
    if is_problem:
        return
    if operation.submits:
        yield from ("Preference-Applied", "Idempotency-Replayed")
        if status != HTTPStatus.ACCEPTED:
            yield "Ledger-Position"
        # A batch has no path of its own.
        if operation.orders is None:
            yield "Location"
            if status != HTTPStatus.ACCEPTED:
                yield "ETag"
    elif operation.reads_views:
        yield "Ledger-Position"
    if "after" in operation.query:
        yield "Link"
    if HTTPStatus.NOT_MODIFIED in operation.answers:
        yield "ETag"


def body_schemas(models: Iterable[type[BaseModel]]) -> Json:
    """The schemas of the models and of the models in their fields, by name."""
    _, schemas = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(models)],
        ref_template=f"{SCHEMAS}{{model}}",
    )
    definitions: Json = schemas["$defs"]
    return definitions


def answer_schemas(structs: Iterable[type[Struct]]) -> Json:
    """The schemas of the structs and of the structs in their fields, by name."""
    listed = list(dict.fromkeys(structs))
    _, components = schema_components(listed, ref_template=f"{SCHEMAS}{{name}}")
    schemas: Json = _portable(components)
    for struct in listed:
        schema = schemas[struct.__name__]
        schema["description"] = cleandoc(schema["description"])
        if not struct.__struct_config__.omit_defaults:
            # A field with a default is sent as well.
            schema["required"] = list(schema["properties"])
    return schemas


def event_schemas() -> Json:
    """`Event`, which is one of the schemas for each type of event, and the schemas of their data.

    Each is whole, without `allOf`: generators of clients merge those in different ways.
    """
    shapes = (CloudEvent, SealedRegistration, *EVENT_TYPES.values())
    _, components = schema_components(shapes, ref_template=f"{SCHEMAS}{{name}}")
    schemas: Json = _portable(components)
    for schema in schemas.values():
        # Clients must be able to read data that has one field more.
        schema.pop("additionalProperties", None)
    envelope, mapping = schemas.pop("CloudEvent"), {}
    for name, payload in EVENT_TYPES.items():
        data: Json = {"$ref": f"{SCHEMAS}{payload.__name__}"}
        if payload is CustomerRegistered:
            # As it is recorded, with the name sealed; in the clear in old ledgers.
            data = {"anyOf": [{"$ref": f"{SCHEMAS}SealedRegistration"}, data]}
        title = f"{payload.__name__}Event"
        mapping[name] = f"{SCHEMAS}{title}"
        properties = {"type": {"type": "string", "const": name}, "data": data}
        schemas[title] = {
            **envelope,
            "title": title,
            "description": f"`{name}`: {cleandoc(payload.__doc__ or '')}",
            "properties": {**envelope["properties"], **properties},
        }
    schemas["Event"] = {
        "description": cleandoc(CloudEvent.__doc__ or ""),
        "oneOf": [{"$ref": reference} for reference in mapping.values()],
        "discriminator": {"propertyName": "type", "mapping": mapping},
    }
    return schemas


def value_schemas() -> Json:
    """The schemas that fields name by `schemas.component`: money, and closed sets of words."""
    return {
        "Money": {
            "type": "number",
            "description": "Money, with two decimals. Read it as a decimal, not as a binary float.",
        },
        "OrderStatus": _words("How far an order is.", ORDER_STATUSES),
        "Unit": _words(
            "What an account counts.", {"money": "money, with two decimals", "units": "whole units"}
        ),
        "OrderFailureReason": _words(
            "Why an order failed.", {reason: REASONS[reason] for reason in FAILURES}
        ),
        "Reason": _words("Why something was refused. The words never change.", REASONS),
        "EventType": _words(
            "What happened. *Submitted* events were asked for, *decided* ones followed.",
            {name: cleandoc(payload.__doc__ or "") for name, payload in EVENT_TYPES.items()},
        ),
        "ProblemType": _words(
            "What went wrong. GET it to learn what to do. The words never change.",
            {f"/problems/{name}": kind.title for name, kind in KINDS.items()},
        ),
    }


def _words(description: str, meanings: Mapping[str, str]) -> Json:
    """A closed set of words, each described, for people and for Redoc."""
    lines = (f"- `{word}`: {meaning}" for word, meaning in meanings.items())
    return {
        "type": "string",
        "description": "\n".join((description, "", *lines)),
        "enum": list(meanings),
        "x-enumDescriptions": dict(meanings),
    }


def _portable(schema: Any) -> Any:
    """The schema as tools of all languages understand it."""
    if isinstance(schema, list):
        return [_portable(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return {"$ref": schema["$ref"]}
    portable = {name: _portable(each) for name, each in schema.items()}
    match schema.get("enum"):
        case [only]:
            del portable["enum"]
            portable |= {"type": "string", "const": only}
    if schema.get("type") == "integer" and schema.get("maximum", MAX_INT32 + 1) > MAX_INT32:
        # Languages with integers of two sizes take the small one otherwise.
        portable["format"] = "int64"
    if schema.get("type") == "string" and schema.get("format") == "decimal":
        # msgspec says that Decimals are strings; `encode` writes numbers.
        return {"type": "number"}
    return portable
