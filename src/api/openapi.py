"""The OpenAPI 3.1 document, made of the route table and the declarations that serve.

The schemas are those of pydantic for bodies and of msgspec for answers, as both are on the wire.
"""

from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from importlib.metadata import version
from inspect import cleandoc
from typing import Any, Final
from uuid import UUID

from msgspec import Raw, Struct
from msgspec.json import decode, schema_components
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api import schemas as s
from api.http.parameters import HEADERS, TEXT_SCHEMA, X_REQUEST_ID, Json, Parameter
from api.http.problems import KINDS, ProblemDetails
from api.http.requests import is_required
from api.http.responses import ANSWER_HEADERS, JSON, PROBLEM_JSON, encode
from api.operation import PREFIX, Operation
from ledger.eventlog.codec import BATCH_CONTENT_TYPE, CloudEvent
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
KEY: Final[Json] = {
    "type": "http",
    "scheme": "bearer",
    "description": "an API key of `ledger keys create`, or a JWT of the configured issuer",
}
SCHEMAS: Final = "#/components/schemas/"
# What answers of a media type hold that come as bytes already.
MEDIA: Final[Mapping[str, Json]] = {
    JSON: {"type": "object"},
    BATCH_CONTENT_TYPE: {"type": "array", "items": {"$ref": f"{SCHEMAS}CloudEvent"}},
}

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
    s.ListProduct: {
        "name": "Pocket Telescope",
        "description": "Sees as far as lunch.",
        "base_price": 40.0,
        "stock": 10,
    },
    s.ReceiveStock: {"quantity": 25},
    s.ChangePrice: {"base_price": 44.99},
    s.Nothing: {},
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
        s.Products([_PRODUCT_NOW], None),
        s.Orders([_ORDER_NOW], 8),
        s.trial_balance(_TRIAL_BALANCE),
        s.Live(),
        s.Explained("/problems/out-of-stock", "Not enough in stock", 409, "Order fewer units"),
        s.Ready("ready", True, True, True, 9, 0, True),
    )
}


def document(routes: Mapping[str, Mapping[str, Operation]], *, guarded: bool) -> bytes:
    """The document as JSON; `guarded`: API keys are asked for."""
    operations = [operation for methods in routes.values() for operation in methods.values()]
    answers = [answer for operation in operations for answer in operation.answers.values()]
    structs = [answer for answer in answers if isinstance(answer, type)]
    bodies = [operation.body for operation in operations if operation.body]
    paths: Json = {}
    for path, methods in routes.items():
        item = paths[path] = {}
        for method, operation in methods.items():
            if operation.path:
                item["parameters"] = [_parameter(parameter) for parameter in operation.path]
            item[method.lower()] = _operation(path, operation, guarded)
    return encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Order Ledger",
                "version": version("order-ledger"),
                "description": ABOUT,
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "servers": [{"url": "/"}],
            "tags": [{"name": name, "description": words} for name, words in TAGS.items()],
            "paths": paths,
            "components": {
                "schemas": {
                    **answer_schemas([*structs, ProblemDetails, CloudEvent]),
                    **body_schemas(bodies),
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
                        },
                    }
                    for name, kind in KINDS.items()
                },
                **({"securitySchemes": {"key": KEY}} if guarded else {}),
            },
        }
    )


def _parameter(parameter: Parameter[Any]) -> Json:
    required = {"required": True} if parameter.place == "path" else {}
    return {
        "name": parameter.name,
        "in": parameter.place,
        **required,
        "description": parameter.description,
        "schema": parameter.form.schema,
        # A list is one parameter, with commas between.
        **({"explode": False} if parameter.form.schema.get("type") == "array" else {}),
    }


def _operation(path: str, operation: Operation, guarded: bool) -> Json:
    tag = path.removeprefix(PREFIX).split("/")[1]
    described: Json = {
        "operationId": operation.operation_id,
        "tags": [tag if tag in TAGS else "docs"],
        "summary": operation.summary,
        "description": cleandoc(operation.handler.__doc__ or ""),
        "parameters": [
            *(_parameter(parameter) for parameter in operation.query.values()),
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
        for status, kinds in operation.statuses(guarded=guarded).items()
    }
    if guarded and operation.scope:
        described["security"] = [{"key": [operation.scope.value]}]
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
        yield from ("Location", "Preference-Applied", "Idempotency-Replayed")
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
    # msgspec says that Decimals are strings; `encode` writes numbers.
    text = encode(components).replace(b'"type":"string","format":"decimal"', b'"type":"number"')
    schemas: Json = decode(text)
    for struct in listed:
        schema = schemas[struct.__name__]
        schema["description"] = cleandoc(schema["description"])
        if not struct.__struct_config__.omit_defaults:
            # A field with a default is sent as well.
            schema["required"] = list(schema["properties"])
    return schemas
