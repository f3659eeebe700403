"""GET /openapi.json: a valid document, made of what serves, with examples that work."""

import gzip
import json
import re
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from api.app import ROUTES, document
from api.http import parameters
from api.http.parameters import X_REQUEST_ID, Parameter
from api.http.problems import KINDS
from api.openapi import ANSWERS, BODIES
from api.operation import Operation
from tests.harness import Stack

from .client import list_product, order, register

Document = dict[str, Any]
GUARDED: Document = json.loads(document(guarded=True).body)
OPEN: Document = json.loads(document(guarded=False).body)
CALLS = [
    pytest.param(path, method, operation, id=f"{method} {path}")
    for path, operations in ROUTES.items()
    for method, operation in operations.items()
]
every_operation = pytest.mark.parametrize(("path", "method", "operation"), CALLS)


def described(path: str, method: str) -> Document:
    """What the document says of an operation."""
    found: Document = GUARDED["paths"][path][method.lower()]
    return found


def errors(schema: Document, value: object) -> list[str]:
    """What is wrong with a value, by a schema of the document."""
    checker = Draft202012Validator({**schema, "components": GUARDED["components"]})
    return [error.message for error in checker.iter_errors(value)]


@pytest.mark.parametrize("found", [GUARDED, OPEN], ids=["guarded", "open"])
def test_the_document_is_valid(found: Document) -> None:
    validate(found)


def test_the_document_has_every_route_and_no_others() -> None:
    served = {path: {method.lower() for method in methods} for path, methods in ROUTES.items()}
    assert {p: set(item) - {"parameters"} for p, item in GUARDED["paths"].items()} == served


def test_operation_ids_are_unique() -> None:
    names = [call.values[2].operation_id for call in CALLS]
    assert len(set(names)) == len(names)


@every_operation
def test_the_document_names_the_scope_of_an_operation(
    path: str, method: str, operation: Operation
) -> None:
    found = described(path, method).get("security")
    assert found == ([{"key": [operation.scope.value]}] if operation.scope else None)


def test_without_authentication_no_security_is_described() -> None:
    text = json.dumps(OPEN["paths"])
    assert "securitySchemes" not in OPEN["components"]
    assert "security" not in text
    assert '"401"' not in text


@every_operation
def test_every_operation_declares_a_successful_answer(
    path: str, method: str, operation: Operation
) -> None:
    assert [status for status in operation.answers if status < 300]
    for status, answer in operation.answers.items():
        if isinstance(answer, tuple):
            assert {int(KINDS[kind].status) for kind in answer} == {status}


@every_operation
def test_the_example_of_a_body_fits_its_schema(
    path: str, method: str, operation: Operation
) -> None:
    if operation.body:
        content = described(path, method)["requestBody"]["content"]["application/json"]
        assert errors(content["schema"], content["example"]) == []


@every_operation
def test_the_examples_of_answers_fit_their_schemas(
    path: str, method: str, operation: Operation
) -> None:
    for answer in described(path, method)["responses"].values():
        for content in answer.get("content", {}).values():
            if "example" in content:
                assert errors(content["schema"], content["example"]) == []
            for name in content.get("examples", {}):
                example = GUARDED["components"]["examples"][name]["value"]
                assert errors(content["schema"], example) == []


@every_operation
def test_every_body_and_answer_has_an_example(path: str, method: str, operation: Operation) -> None:
    assert operation.body is None or operation.body in BODIES
    structs = [answer for answer in operation.answers.values() if isinstance(answer, type)]
    assert [struct.__name__ for struct in structs if struct not in ANSWERS] == []


def test_every_declared_parameter_is_used_by_an_operation() -> None:
    declared = {value for value in vars(parameters).values() if isinstance(value, Parameter)}
    used = {parameter for call in CALLS for parameter in call.values[2].parameters}
    assert declared - used == {X_REQUEST_ID}


@every_operation
def test_an_operation_declares_each_part_of_its_path(
    path: str, method: str, operation: Operation
) -> None:
    assert re.findall(r"\{(\w+)\}", path) == [parameter.name for parameter in operation.path]


@every_operation
async def test_the_example_of_a_body_is_accepted(
    http: httpx.AsyncClient, path: str, method: str, operation: Operation
) -> None:
    if operation.body is None:
        return
    customer_id, product_id = await register(http), await list_product(http)
    placed = await order(http, customer_id, product_id)
    ids = {"customer_id": customer_id, "product_id": product_id, "order_id": placed["order_id"]}
    url = str(http.base_url.join(path.format(**ids)))
    answer = await http.request(method, url, json=BODIES[operation.body])
    assert answer.status_code in (200, 201, 202), answer.text
    shape = described(path, method)["responses"][str(answer.status_code)]["content"]
    assert errors(shape["application/json"]["schema"], answer.json()) == []


async def test_the_document_is_served_with_an_etag(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=stack.url) as http:
        found = await http.get("/openapi.json", headers={"Accept-Encoding": "identity"})
        assert found.content == document(guarded=False).body
        assert found.headers["content-type"] == "application/json"
        etag = found.headers["etag"]
        again = await http.get("/openapi.json", headers={"If-None-Match": etag})
        assert again.status_code == 304
        assert again.headers["etag"] == etag
        assert again.content == b""


async def test_the_document_is_compressed_for_clients_that_accept_gzip(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=stack.url) as http:
        async with http.stream("GET", "/openapi.json", headers={"Accept-Encoding": "gzip"}) as got:
            packed = b"".join([part async for part in got.aiter_raw()])
        assert got.headers["content-encoding"] == "gzip"
        assert got.headers["vary"].lower() == "accept-encoding"
        assert gzip.decompress(packed) == document(guarded=False).body
