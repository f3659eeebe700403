"""The OpenAPI 3.1 document, made of the route table and the declarations that serve."""

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from importlib.metadata import version
from inspect import cleandoc
from typing import Any, Final

from msgspec import Raw

from api.openapi.examples import ANSWERS, BODIES
from api.openapi.schemas import MEDIA, SCHEMAS, CloudEvent, answer_schemas, body_schemas
from api.operation import PREFIX, Operation
from api.parameters import HEADERS, TEXT_SCHEMA, X_REQUEST_ID, Json, Parameter
from api.problems import KINDS, ProblemDetails
from api.requests import is_required
from api.responses import ANSWER_HEADERS, JSON, PROBLEM_JSON, encode

Routes = Mapping[str, Mapping[str, Operation]]
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


def document(routes: Routes, *, guarded: bool) -> bytes:
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
                    **answer_schemas(dict.fromkeys([*structs, ProblemDetails, CloudEvent])),
                    **body_schemas(dict.fromkeys(bodies)),
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
    }


def _operation(path: str, operation: Operation, guarded: bool) -> Json:
    tag = path.removeprefix(PREFIX).split("/")[1]
    described: Json = {
        "operationId": operation.operation_id,
        "tags": [tag if tag in TAGS else "docs"],
        "summary": operation.summary,
        "parameters": [
            *(_parameter(parameter) for parameter in operation.query.values()),
            *(
                {"$ref": f"#/components/parameters/{header.name}"}
                for header in (X_REQUEST_ID, *operation.headers)
            ),
        ],
    }
    if operation.handler.__doc__:
        described["description"] = cleandoc(operation.handler.__doc__)
    if operation.body:
        content: Json = {"schema": {"$ref": f"{SCHEMAS}{operation.body.__name__}"}}
        if operation.body in BODIES:
            content["example"] = BODIES[operation.body]
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
        content[JSON] = {"schema": {"$ref": f"{SCHEMAS}{answer.__name__}"}}
        if answer in ANSWERS:
            content[JSON]["example"] = Raw(encode(ANSWERS[answer]))
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
