"""The OpenAPI 3.1 document, made of the route table and the models that serve."""

import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from importlib.metadata import version
from inspect import cleandoc
from typing import Final

from msgspec import Raw, Struct
from pydantic import BaseModel

from api.event_stream import EVENT_STREAM
from api.openapi import parameters as p
from api.openapi.examples import ANSWERS, BODIES
from api.openapi.operation import Operation
from api.openapi.parameters import Json
from api.openapi.schemas import MEDIA, SCHEMAS, CloudEvent, answer_schemas, body_schemas
from api.openapi.statuses import reads, statuses, submits
from api.problems import KINDS, PROBLEM_JSON, ProblemDetails
from api.responses import JSON, encode

Routes = Mapping[str, Mapping[str, Operation]]
ABOUT: Final = """\
Orders go into a durable inbox and are decided by one writer in one order. A 202 means: it can't be
lost any more, and will be decided. Money is a number with two decimals, times are RFC 3339 in UTC.
Every path may end with a slash, GET answers HEAD, and every error is a problem (RFC 9457) whose
`type` leads to its remedy. An answer of more than 2 KiB comes in gzip to who takes it.\
"""
TAGS: Final = {
    "orders": "Place, follow, list and cancel orders",
    "products": "The catalogue: list, restock, price",
    "customers": "Customers, their wallets and their orders",
    "events": "The ledger as a feed",
    "reports": "What the whole ledger comes to",
    "metrics": "What is measured",
    "health": "Whether the process lives and can work",
    "docs": "This document, and what is behind a problem",
}


def document(routes: Routes, *, guarded: bool) -> bytes:
    """The document as JSON; `guarded`: keys are asked for."""
    structs, bodies = _structs(routes), _bodies(routes)
    operations = {
        path: dict(_path_item(path, methods, guarded)) for path, methods in routes.items()
    }
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
            "paths": operations,
            "components": {
                "schemas": {**answer_schemas(structs), **body_schemas(bodies)},
                "headers": dict(p.ANSWER_HEADERS),
                "parameters": dict(p.HEADER_PARAMETERS),
                "examples": dict(_problem_examples()),
                **({"securitySchemes": {"key": _KEY}} if guarded else {}),
            },
        }
    )


_TEXT: Final[Json] = {"type": "string"}
_KEY: Final[Json] = {
    "type": "http",
    "scheme": "bearer",
    "description": "a key of `ledger keys create`, or a JWT of the configured issuer",
}


def _operations(routes: Routes) -> Iterator[Operation]:
    for methods in routes.values():
        yield from methods.values()


def _structs(routes: Routes) -> list[type[Struct]]:
    answers = (a for o in _operations(routes) for a in o.answers.values())
    found = [a for a in answers if isinstance(a, type)]
    return list(dict.fromkeys([*found, ProblemDetails, CloudEvent]))


def _bodies(routes: Routes) -> list[type[BaseModel]]:
    return list(dict.fromkeys(o.body for o in _operations(routes) if o.body))


def _path_item(
    path: str, methods: Mapping[str, Operation], guarded: bool
) -> Iterator[tuple[str, object]]:
    names = re.findall(r"\{(\w+)\}", path)
    if names:
        yield "parameters", [p.PATH_PARAMETERS[name] for name in names]
    for method, operation in methods.items():
        yield method.lower(), _operation(path, operation, guarded)


def tag_of(path: str) -> str:
    """The group of a path: its first part below the prefix."""
    first = path.removeprefix("/api/v1").split("/")[1]
    return first if first in TAGS else "docs"


def operation_id(operation: Operation) -> str:
    """A name that stays as long as the operation does."""
    handler = operation.handler
    return f"{handler.__module__.rpartition('.')[2]}_{handler.__name__}"


def _operation(path: str, operation: Operation, guarded: bool) -> Json:
    about: Json = {
        "operationId": operation_id(operation),
        "tags": [tag_of(path)],
        "summary": operation.summary,
        "parameters": list(_parameters(path, operation)),
    }
    if operation.handler.__doc__:
        about["description"] = cleandoc(operation.handler.__doc__)
    if operation.body:
        about["requestBody"] = _request_body(operation.body)
    about["responses"] = {
        str(status): _response(operation, status, kinds)
        for status, kinds in statuses(operation, guarded=guarded).items()
    }
    if guarded and operation.scope:
        about["security"] = [{"key": [operation.scope.value]}]
    return about


def _parameters(path: str, operation: Operation) -> Iterator[Json]:
    for name in operation.parameters:
        yield p.PARAMETERS.get(f"{path.rpartition('/')[2]}.{name}") or p.PARAMETERS[name]
    for name in ("X-Request-Id", *header_parameters(operation)):
        yield {"$ref": f"#/components/parameters/{name}"}


def header_parameters(operation: Operation) -> list[str]:
    """The request headers that change what the operation does."""
    headers: list[str] = []
    if submits(operation):
        headers += ["Prefer", "Idempotency-Key"]
    if HTTPStatus.NOT_MODIFIED in operation.answers:
        headers.append("If-None-Match")
    if EVENT_STREAM in str(operation.answers.get(HTTPStatus.OK)):
        headers.append("Last-Event-ID")
    return headers


def _request_body(model: type[BaseModel]) -> Json:
    required = any(field.is_required() for field in model.model_fields.values())
    content: Json = {"schema": {"$ref": f"{SCHEMAS}{model.__name__}"}}
    if model in BODIES:
        content["example"] = BODIES[model]
    return {"required": required, "content": {JSON: content}}


def _response(operation: Operation, status: int, kinds: list[str]) -> Json:
    response: Json = {
        "description": HTTPStatus(status).phrase,
        "headers": {
            name: {"$ref": f"#/components/headers/{name}"}
            for name in _headers(operation, status, bool(kinds))
        },
    }
    answer = operation.answers.get(status)
    content: Json = {}
    if isinstance(answer, type):
        content[JSON] = {"schema": {"$ref": f"{SCHEMAS}{answer.__name__}"}}
        if answer in ANSWERS:
            content[JSON]["example"] = Raw(encode(ANSWERS[answer]))
    elif isinstance(answer, str):
        content |= {media: {"schema": MEDIA.get(media, _TEXT)} for media in answer.split(", ")}
    if kinds:
        response["description"] = "; ".join(KINDS[kind].title for kind in kinds)
        content[PROBLEM_JSON] = _problem(status, kinds)
    return {**response, "content": content} if content else response


def _headers(operation: Operation, status: int, problem: bool) -> Iterator[str]:
    yield "X-Request-Id"
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        yield "Retry-After"
    if status == HTTPStatus.UNAUTHORIZED:
        yield "WWW-Authenticate"
    if problem:
        return
    if submits(operation):
        yield from ("Location", "Preference-Applied", "Idempotency-Replayed")
    elif reads(operation):
        yield "Ledger-Position"
    if "after" in operation.parameters:
        yield "Link"
    if HTTPStatus.NOT_MODIFIED in operation.answers:
        yield "ETag"


def _problem(status: int, kinds: list[str]) -> Json:
    members = {
        "type": {"enum": [f"/problems/{kind}" for kind in kinds]},
        "status": {"const": status},
    }
    return {
        "schema": {"allOf": [{"$ref": f"{SCHEMAS}ProblemDetails"}], "properties": members},
        "examples": {kind: {"$ref": f"#/components/examples/{kind}"} for kind in kinds},
    }


def _problem_examples() -> Iterator[tuple[str, Json]]:
    for name, kind in KINDS.items():
        value = {
            "type": f"/problems/{name}",
            "title": kind.title,
            "status": kind.status,
            "detail": f"in words: {kind.title.lower()}",
            "instance": "/api/v1/orders",
        }
        yield name, {"summary": kind.title, "description": kind.remedy, "value": value}
