"""GET /openapi.json: a valid document, made of what serves, with examples that work."""

import gzip
import json
import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from api.app import ROUTES, document
from api.http import parameters
from api.http.parameters import X_REQUEST_ID, Parameter
from api.http.problems import KINDS
from api.openapi import ANSWERS, BODIES, EVENT_TYPES, REASONS
from api.operation import Operation
from ledger.core.decider import Status
from ledger.core.events import Reason
from tests.docs.test_reference import rows
from tests.harness import Stack

from .client import WAIT, cancel, list_product, order, register

Document = dict[str, Any]
GUARDED: Document = json.loads(document(guarded=True).body)
OPEN: Document = json.loads(document(guarded=False).body)
SCHEMAS: Document = GUARDED["components"]["schemas"]
EVENTS_PAGE = "docs/reference/events.md"
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
    assert {p: set(item) for p, item in GUARDED["paths"].items()} == served


def test_operation_ids_stay_what_they_are() -> None:
    """Generated clients have functions of these names."""
    ids = {f"{call.values[1]} {call.values[0]}": call.values[2].id for call in CALLS}
    assert ids == {
        "GET /api/v1/products/{product_id}": "getProduct",
        "PATCH /api/v1/products/{product_id}": "changePrice",
        "POST /api/v1/orders": "placeOrder",
        "GET /api/v1/orders": "listOrders",
        "POST /api/v1/orders/batch": "placeOrders",
        "GET /api/v1/orders/{order_id}": "getOrder",
        "GET /api/v1/orders/{order_id}/events": "listOrderEvents",
        "POST /api/v1/orders/{order_id}/cancel": "cancelOrder",
        "POST /api/v1/products/{product_id}/receipts": "receiveStock",
        "POST /api/v1/products": "createProduct",
        "GET /api/v1/products": "listProducts",
        "POST /api/v1/customers": "registerCustomer",
        "GET /api/v1/customers/{customer_id}": "getCustomer",
        "POST /api/v1/customers/{customer_id}/deposits": "depositMoney",
        "GET /api/v1/customers/{customer_id}/orders": "listCustomerOrders",
        "GET /api/v1/events": "listEvents",
        "GET /api/v1/reports/trial-balance": "getTrialBalance",
        "GET /health/live": "getLiveness",
        "GET /health/ready": "getReadiness",
        "GET /metrics": "getMetrics",
        "GET /openapi.json": "getOpenapiDocument",
        "GET /docs": "getDocsPage",
        "GET /docs/{asset}": "getDocsFile",
        "GET /problems/{kind}": "explainProblem",
    }
    assert len(set(ids.values())) == len(ids)


def test_names_of_schemas_stay_what_they_are() -> None:
    """Generated clients have classes of these names. Those of events follow from their types."""
    events = {payload.__name__ for payload in EVENT_TYPES.values()}
    events |= {f"{name}Event" for name in events}
    assert sorted(set(SCHEMAS) - events) == [
        "AcceptedCancel",
        "AcceptedCustomer",
        "AcceptedProduct",
        "Account",
        "CancelOrder",
        "ChangePrice",
        "CreateProduct",
        "Customer",
        "Deposit",
        "DryRun",
        "Event",
        "EventType",
        "FieldError",
        "Liveness",
        "Money",
        "Order",
        "OrderFailureReason",
        "OrderHistory",
        "OrderList",
        "OrderStatus",
        "PlaceOrder",
        "PlaceOrders",
        "PlacedOrders",
        "ProblemDetails",
        "ProblemExplanation",
        "ProblemType",
        "Product",
        "ProductList",
        "Readiness",
        "Reason",
        "ReceiveStock",
        "RegisterCustomer",
        "SealedRegistration",
        "TrialBalance",
        "Unit",
        "UnitTotal",
    ]


@every_operation
def test_the_document_names_the_scope_of_an_operation(
    path: str, method: str, operation: Operation
) -> None:
    required, optional = (
        found["paths"][path][method.lower()]["security"] for found in (GUARDED, OPEN)
    )
    if operation.scope is None:
        # Said as well, because nothing said is a mistake to those who check documents.
        assert required == optional == []
    else:
        assert described(path, method)["x-required-scope"] == operation.scope
        assert required == [{"bearer": []}]
        assert optional == [{}, {"bearer": []}]


def test_a_client_of_an_open_api_can_sign_in_to_a_guarded_one() -> None:
    """The two documents differ in `security` alone."""
    required, optional = deepcopy(GUARDED), deepcopy(OPEN)
    for found in (required, optional):
        for operations in found["paths"].values():
            for operation in operations.values():
                del operation["security"]
    assert required == optional
    assert optional["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


def schemas_in(node: object) -> Iterator[Document]:
    """Every JSON object of the document, schemas among them."""
    if isinstance(node, dict):
        yield node
    for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from schemas_in(each)


def test_every_price_with_two_decimals_is_valid() -> None:
    """`multipleOf` 0.01 would divide binary floats, and refuse one price in nine."""
    assert [node for node in schemas_in(GUARDED) if "multipleOf" in node] == []
    components = {"components": GUARDED["components"]}
    for schema, name in (("ChangePrice", "base_price"), ("Deposit", "amount")):
        checker = Draft202012Validator({"$ref": f"#/components/schemas/{schema}", **components})
        prices = (json.loads(f"{cents // 100}.{cents % 100:02}") for cents in range(1, 100_000, 97))
        assert [price for price in prices if not checker.is_valid({name: price})] == []
        assert not checker.is_valid({name: 0})


def test_integers_of_more_than_32_bits_are_marked() -> None:
    """Clients in languages with two sizes would take the small one."""
    for node in schemas_in(GUARDED["components"]["schemas"]):
        if node.get("type") == "integer" and node.get("maximum", 2**31) >= 2**31:
            assert node["format"] == "int64"


def test_a_reference_stands_alone() -> None:
    """Generators of clients leave out what stands beside one, or break."""
    assert [node for node in schemas_in(GUARDED) if "$ref" in node and len(node) > 1] == []


def test_every_component_is_used_and_every_reference_leads_somewhere() -> None:
    references = [node["$ref"] for node in schemas_in(GUARDED) if "$ref" in node]
    references += SCHEMAS["Event"]["discriminator"]["mapping"].values()
    parts = GUARDED["components"]
    named = {f"#/components/{kind}/{name}" for kind, of in parts.items() for name in of}
    assert set(references) == named - {"#/components/securitySchemes/bearer"}


@every_operation
def test_parameters_of_the_path_come_first_and_with_an_example(
    path: str, method: str, operation: Operation
) -> None:
    listed = described(path, method)["parameters"]
    first = listed[: len(operation.path)]
    assert [parameter.get("name") for parameter in first] == re.findall(r"\{(\w+)\}", path)
    for parameter in first:
        assert errors(parameter["schema"], parameter["example"]) == []
    assert "path" not in [parameter.get("in") for parameter in listed[len(first) :]]


def test_every_answer_names_its_media_type() -> None:
    """Generators of clients leave out what is `*/*`."""
    media = {name for node in schemas_in(GUARDED["paths"]) for name in node.get("content", ())}
    assert [name for name in media if "*" in name] == []


def test_an_order_has_one_shape_wherever_it_is_answered() -> None:
    shape = {"$ref": "#/components/schemas/Order"}
    orders = "/api/v1/orders"
    for path, method, status in (
        (orders, "post", "201"),
        (orders, "post", "202"),
        (f"{orders}/{{order_id}}", "get", "200"),
        (f"{orders}/{{order_id}}/cancel", "post", "200"),
    ):
        answer = GUARDED["paths"][path][method]["responses"][status]
        assert answer["content"]["application/json"]["schema"] == shape
    assert SCHEMAS["PlacedOrders"]["properties"]["orders"]["items"] == shape
    assert SCHEMAS["OrderList"]["properties"]["items"]["items"] == shape
    assert SCHEMAS["ProblemDetails"]["properties"]["orders"]["items"] == shape


def test_a_location_is_promised_where_there_is_one() -> None:
    for path, method, status, promised in (
        ("/orders", "post", "202", True),
        ("/customers/{customer_id}/deposits", "post", "200", True),
        ("/products/{product_id}", "patch", "200", True),
        ("/orders/batch", "post", "201", False),
        ("/orders/batch", "post", "202", False),
    ):
        answer = GUARDED["paths"][f"/api/v1{path}"][method]["responses"][status]
        assert ("Location" in answer["headers"]) == promised, path
        assert ("ETag" in answer["headers"]) == (promised and status != "202")
        assert ("Ledger-Position" in answer["headers"]) == (status != "202")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("OrderStatus", set(Status)),
        ("Reason", set(Reason)),
        ("EventType", set(EVENT_TYPES)),
        ("ProblemType", {f"/problems/{kind}" for kind in KINDS}),
    ],
)
def test_a_closed_set_has_all_its_words_each_with_its_meaning(name: str, words: set[str]) -> None:
    found = SCHEMAS[name]
    assert set(found["enum"]) == words
    assert set(found["x-enumDescriptions"]) == words
    for word, meaning in found["x-enumDescriptions"].items():
        assert f"- `{word}`: {meaning}" in found["description"]


def test_reasons_mean_what_the_page_about_events_says() -> None:
    page = {reason: meaning for reason, (meaning,) in rows(EVENTS_PAGE, "Reasons").items()}
    assert page == {"reason": "when", **REASONS}


async def test_every_event_of_the_feed_fits_the_schema_of_its_type(http: httpx.AsyncClient) -> None:
    customer_id, product_id = await register(http, "6000.00"), await list_product(http)
    await http.post(f"/products/{product_id}/receipts", json={"quantity": 1}, headers=WAIT)
    await http.patch(f"/products/{product_id}", json={"base_price": 99.99}, headers=WAIT)
    placed = await order(http, customer_id, product_id)
    await cancel(http, placed["order_id"])
    failed = await order(http, customer_id, product_id, 10**6)
    await http.post(f"/products/{product_id}/receipts", json={"quantity": 10**9}, headers=WAIT)
    first = {"after": max(placed["position"] - 20, 0), "limit": 500}
    events = (await http.get("/events", params=first)).json()
    types = {event["type"] for event in events}
    assert types >= set(EVENT_TYPES) - {"customer.erased", "order.cancel-refused"}
    assert failed["failure_reason"] == "INSUFFICIENT_STOCK"
    mapping = SCHEMAS["Event"]["discriminator"]["mapping"]
    assert set(mapping) == set(EVENT_TYPES)
    for event in events:
        assert errors({"$ref": mapping[event["type"]]}, event) == []
        assert errors({"$ref": "#/components/schemas/Event"}, event) == []
        assert errors({"$ref": mapping[event["type"]]}, {**event, "type": "other"})


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
