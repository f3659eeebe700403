"""POST /customers, and GET /customers/{customer_id}."""

from decimal import Decimal
from uuid import UUID, uuid4

import httpx
import pytest

from ledger.core.events import MAX_USERNAME

from .client import WAIT, exact, limit, nothing_appended, post, problem, register


async def test_a_wallet_opens_with_five_thousand(http: httpx.AsyncClient) -> None:
    response = await http.post("/customers", json={"username": "ann"}, headers=WAIT)
    made = exact(response)
    assert response.status_code == 201
    assert '"wallet_balance":5000.00' in response.text
    assert made["username"] == "ann"
    assert UUID(made["customer_id"]).version == 7
    assert response.headers["location"] == f"/api/v1/customers/{made['customer_id']}"
    found = await http.get(f"/customers/{made['customer_id']}")
    assert found.status_code == 200
    assert exact(found) == made
    assert int(found.headers["ledger-position"]) >= made["position"]


async def test_the_decision_is_waited_for_by_default(http: httpx.AsyncClient) -> None:
    response = await http.post("/customers", json={"username": "ann"})
    assert response.status_code == 201
    assert "preference-applied" not in response.headers


async def test_respond_async_answers_202_with_a_location(http: httpx.AsyncClient) -> None:
    headers = {"Prefer": "respond-async"}
    response = await http.post("/customers", json={"username": "ann"}, headers=headers)
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "respond-async"
    customer_id = response.json()["customer_id"]
    assert response.headers["location"] == f"/api/v1/customers/{customer_id}"
    position = exact(await http.post("/customers", json={"username": "b"}, headers=WAIT))[
        "position"
    ]
    found = await http.get(f"/customers/{customer_id}", params={"min_position": position})
    assert found.json()["username"] == "ann"


async def test_two_customers_may_have_one_name(http: httpx.AsyncClient) -> None:
    assert await register(http) != await register(http)


@pytest.mark.parametrize("name", ["a", "é" * MAX_USERNAME, "🦆", "Ж 'quoted' \\", "[/b]"])
async def test_names_are_returned_unchanged(http: httpx.AsyncClient, name: str) -> None:
    response = await http.post("/customers", json={"username": name}, headers=WAIT)
    assert response.status_code == 201
    assert response.json()["username"] == name


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"username": ""}',
        '{"username": null}',
        '{"username": 7}',
        '{"username": " "}',
        r'{"username": "a\u001b[2Jb"}',
        r'{"username": "a\nb"}',
        r'{"username": "a\u202eb"}',
        r'{"username": "a\ufeffb"}',
    ],
)
async def test_an_invalid_name_is_refused(http: httpx.AsyncClient, text: str) -> None:
    async with nothing_appended(http):
        problem(await post(http, "/customers", text), 422, "invalid-fields", "username")


async def test_a_name_is_trimmed_and_composed(http: httpx.AsyncClient) -> None:
    response = await post(http, "/customers", r'{"username": " re\u0301mi "}', WAIT)
    assert response.json()["username"] == "r\u00e9mi"


async def test_a_name_that_is_too_long_names_the_limit(http: httpx.AsyncClient) -> None:
    response = await http.post("/customers", json={"username": "x" * (MAX_USERNAME + 1)})
    body = problem(response, 422, "invalid-fields", "username")
    assert limit(body, "username") == MAX_USERNAME


async def test_the_opening_balance_can_not_be_chosen(http: httpx.AsyncClient) -> None:
    response = await post(http, "/customers", '{"username": "ann", "wallet_balance": 1000000.00}')
    problem(response, 422, "invalid-fields", "wallet_balance")


async def test_a_retry_with_the_same_key_is_the_same_customer(http: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": str(uuid4()), **WAIT}
    first = await http.post("/customers", json={"username": "ann"}, headers=headers)
    async with nothing_appended(http):
        again = await http.post("/customers", json={"username": "ann"}, headers=headers)
        other = await http.post("/customers", json={"username": "bob"}, headers=headers)
    assert first.status_code == again.status_code == 201
    assert exact(first) == exact(again)
    assert again.headers["idempotency-replayed"] == "true"
    problem(other, 422, "key-reused")


async def test_one_key_may_be_used_on_two_paths(http: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": str(uuid4()), **WAIT}
    customer = await http.post("/customers", json={"username": "ann"}, headers=headers)
    product = await post(
        http, "/products", '{"name": "Lamp", "base_price": 1.00, "stock": 1}', headers
    )
    assert customer.status_code == product.status_code == 201


async def test_an_unknown_customer_is_a_404(http: httpx.AsyncClient) -> None:
    problem(await http.get(f"/customers/{uuid4()}"), 404, "unknown-customer")


async def test_an_id_that_is_not_a_uuid_is_named(http: httpx.AsyncClient) -> None:
    problem(await http.get("/customers/ann"), 422, "invalid-fields", "customer_id")


async def test_the_balance_is_a_number_with_two_decimals(http: httpx.AsyncClient) -> None:
    customer_id = await register(http, balance="5000.10")
    response = await http.get(f"/customers/{customer_id}")
    assert '"wallet_balance":5000.10,' in response.text
    assert exact(response)["wallet_balance"] == Decimal("5000.10")
