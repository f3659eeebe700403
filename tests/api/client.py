"""What a client of the API does in these tests."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any
from uuid import uuid4

import httpx

JSON = {"Content-Type": "application/json"}
WAIT = {"Prefer": "wait=20"}

Body = dict[str, Any]


def exact(response: httpx.Response) -> Body:
    """The body with its numbers as they were written."""
    body: Body = json.loads(response.text, parse_float=Decimal)
    return body


def problem(response: httpx.Response, status: int, kind: str, field: str | None = None) -> Body:
    """The problem that a response must be; with `field`, one that names this field."""
    body: Body = response.json()
    assert response.status_code == status, body
    assert response.headers["content-type"] == "application/problem+json"
    assert body["type"] == f"/problems/{kind}"
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    if status == 503:
        assert int(response.headers["retry-after"]) >= 1
    if field is not None:
        assert field in [error["field"] for error in body["errors"]]
    return body


def limit(body: Body, field: str) -> object:
    """The limit that a problem names for a field."""
    return next(error["limit"] for error in body["errors"] if error["field"] == field)


async def post(
    http: httpx.AsyncClient, path: str, text: str | bytes, headers: Mapping[str, str] | None = None
) -> httpx.Response:
    """Post JSON as it is written here."""
    return await http.post(path, content=text, headers={**JSON, **(headers or {})})


async def register(http: httpx.AsyncClient, balance: str = "5000.00") -> str:
    """A new customer with this balance, of at least 5000.00."""
    response = await http.post("/customers", json={"username": "ann"}, headers=WAIT)
    assert response.status_code == 201, response.text
    customer_id: str = response.json()["customer_id"]
    more = Decimal(balance) - Decimal("5000.00")
    if more:
        path = f"/customers/{customer_id}/deposits"
        paid = await post(http, path, f'{{"amount": {more}}}', WAIT)
        assert paid.status_code == 200, paid.text
    return customer_id


async def list_product(
    http: httpx.AsyncClient, base_price: str = "100.00", stock: int = 100
) -> str:
    """A new product."""
    text = f'{{"name": "Lamp", "base_price": {base_price}, "stock": {stock}}}'
    response = await post(http, "/products", text, WAIT)
    assert response.status_code == 201, response.text
    product_id: str = response.json()["product_id"]
    return product_id


async def order(
    http: httpx.AsyncClient, customer_id: str, product_id: str, quantity: int = 1
) -> Body:
    """A decided order, which may have failed."""
    body = {"customer_id": customer_id, "product_id": product_id, "quantity": quantity}
    response = await http.post("/orders", json=body, headers=WAIT)
    return failed_order(response) if response.is_error else exact(response)


def failed_order(response: httpx.Response) -> Body:
    """The order in the problem that says why it failed."""
    body = exact(response)
    found: Body = body["order"]
    assert (response.status_code, found["status"]) == (body["status"], "FAILED"), body
    assert body["reason"] == found["failure_reason"]
    assert response.headers["location"] == f"/api/v1/orders/{found['order_id']}"
    assert int(response.headers["ledger-position"]) >= found["position"]
    return found


async def cancel(http: httpx.AsyncClient, order_id: str) -> Body:
    """A cancelled order."""
    response = await http.post(f"/orders/{order_id}/cancel", headers=WAIT)
    assert response.status_code == 200, response.text
    return exact(response)


async def balance(http: httpx.AsyncClient, customer_id: str) -> Decimal:
    """What the wallet holds."""
    found = exact(await http.get(f"/customers/{customer_id}"))
    amount: Decimal = found["wallet_balance"]
    return amount


async def stock(http: httpx.AsyncClient, product_id: str) -> int:
    """How many units are left."""
    units: int = (await http.get(f"/products/{product_id}")).json()["stock"]
    return units


@asynccontextmanager
async def nothing_appended(http: httpx.AsyncClient) -> AsyncIterator[None]:
    """What happens inside must leave no event in the ledger: positions are dense."""
    before = await _mark(http)
    yield
    assert await _mark(http) == before + 1


async def _mark(http: httpx.AsyncClient) -> int:
    response = await http.post("/customers", json={"username": str(uuid4())}, headers=WAIT)
    position: int = response.json()["position"]
    return position
