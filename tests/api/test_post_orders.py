"""POST /orders."""

import asyncio
import re
from decimal import Decimal
from uuid import UUID, uuid4

import httpx
import pytest

from ledger.core.events import MAX_QUANTITY

from .client import (
    WAIT,
    Body,
    balance,
    exact,
    failed_order,
    limit,
    list_product,
    nothing_appended,
    order,
    post,
    problem,
    register,
    stock,
)

RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def text(**fields: str) -> str:
    """A good body, with these fields written as they are; an empty one is left out."""
    ids = {"customer_id": f'"{uuid4()}"', "product_id": f'"{uuid4()}"'}
    written = {name: value for name, value in {**ids, **fields}.items() if value}
    return "{" + ", ".join(f'"{name}": {value}' for name, value in written.items()) + "}"


async def test_an_order_is_accepted_at_once_and_found_at_its_location(
    http: httpx.AsyncClient,
) -> None:
    customer_id, product_id = await register(http), await list_product(http)
    body = {"customer_id": customer_id, "product_id": product_id}
    response = await http.post("/orders", json=body)
    accepted = response.json()
    assert response.status_code == 202
    assert accepted == {
        **body,
        "order_id": accepted["order_id"],
        "quantity": 1,
        "status": "PENDING",
        "created_at": accepted["created_at"],
        "updated_at": accepted["created_at"],
        "unit_price": None,
        "price_paid": None,
        "failure_reason": None,
        "position": None,
    }
    assert UUID(accepted["order_id"]).version == 7
    assert RFC3339.fullmatch(accepted["created_at"])
    assert response.headers["location"] == f"/api/v1/orders/{accepted['order_id']}"
    found = (await http.get(f"/orders/{accepted['order_id']}")).json()
    assert found["created_at"] == accepted["created_at"]


async def test_unknown_ids_are_accepted_and_fail_later(http: httpx.AsyncClient) -> None:
    accepted = await post(http, "/orders", text())
    assert (accepted.status_code, accepted.json()["status"]) == (202, "PENDING")
    failed = await http.get(
        f"/orders/{(await order(http, str(uuid4()), str(uuid4())))['order_id']}"
    )
    assert (failed.status_code, failed.json()["status"]) == (200, "FAILED")
    assert failed.json()["failure_reason"] == "UNKNOWN_PRODUCT"
    assert failed.json()["price_paid"] is None


@pytest.mark.parametrize(
    ("fields", "status", "kind"),
    [
        ({"product_id": None}, 404, "unknown-product"),
        ({"customer_id": None}, 404, "unknown-customer"),
        ({"quantity": 101}, 409, "out-of-stock"),
        ({"quantity": 100}, 409, "out-of-money"),
    ],
)
async def test_a_client_that_waits_can_not_take_a_failed_order_for_one_that_it_got(
    http: httpx.AsyncClient, fields: Body, status: int, kind: str
) -> None:
    ids = {"customer_id": await register(http), "product_id": await list_product(http)}
    body = {**ids, **{name: value or str(uuid4()) for name, value in fields.items()}}
    headers = {**WAIT, "Idempotency-Key": str(uuid4())}
    response = await http.post("/orders", json=body, headers=headers)
    with pytest.raises(httpx.HTTPStatusError):
        response.raise_for_status()
    problem(response, status, kind)
    found = failed_order(response)
    assert response.headers["preference-applied"] == "wait=20"
    assert exact(await http.get(f"/orders/{found['order_id']}")) == found
    again = await http.post("/orders", json=body, headers=headers)
    assert again.json() == response.json()
    assert again.headers["idempotency-replayed"] == "true"


async def test_prefer_wait_answers_with_the_decided_order(http: httpx.AsyncClient) -> None:
    customer_id = await register(http)
    product_id = await list_product(http, base_price="33.33", stock=3)
    response = await http.post(
        "/orders",
        json={"customer_id": customer_id, "product_id": product_id, "quantity": 3},
        headers={"Prefer": "wait=20"},
    )
    assert response.status_code == 201
    assert response.headers["preference-applied"] == "wait=20"
    assert int(response.headers["ledger-position"]) >= exact(response)["position"]
    assert '"unit_price":33.33,"price_paid":99.99,' in response.text
    assert exact(response)["status"] == "COMPLETED"
    assert await balance(http, customer_id) == Decimal("4900.01")
    assert await stock(http, product_id) == 0


async def test_a_failed_order_has_its_reason_and_changes_nothing(http: httpx.AsyncClient) -> None:
    customer_id, product_id = await register(http), await list_product(http, stock=1)
    assert (await order(http, customer_id, product_id, 2))["failure_reason"] == "INSUFFICIENT_STOCK"
    dear = await list_product(http, base_price="5000.01")
    assert (await order(http, customer_id, dear))["failure_reason"] == "INSUFFICIENT_BALANCE"
    assert await balance(http, customer_id) == Decimal("5000.00")
    assert await stock(http, product_id) == 1


async def test_of_a_hundred_simultaneous_orders_for_the_last_unit_one_completes(
    http: httpx.AsyncClient,
) -> None:
    customer_id = await register(http, balance="50000.00")
    product_id = await list_product(http, stock=1)
    orders = await asyncio.gather(*(order(http, customer_id, product_id) for _ in range(100)))
    statuses = [found["status"] for found in orders]
    assert statuses.count("COMPLETED") == 1
    assert statuses.count("FAILED") == 99
    assert await stock(http, product_id) == 0


@pytest.mark.parametrize("quantity", [1, MAX_QUANTITY])
async def test_the_smallest_and_largest_quantity_are_accepted(
    http: httpx.AsyncClient, quantity: int
) -> None:
    response = await post(http, "/orders", text(quantity=str(quantity)))
    assert response.status_code == 202
    assert response.json()["quantity"] == quantity


@pytest.mark.parametrize(
    ("written", "quantity"), [("1.0", 1), ("103.00", 103), ("1e2", 100), ("2.5E+1", 25)]
)
async def test_a_whole_number_may_be_written_with_a_decimal_point(
    http: httpx.AsyncClient, written: str, quantity: int
) -> None:
    """JSON has one type of numbers, and some languages write all of them so."""
    response = await post(http, "/orders", text(quantity=written))
    assert (response.status_code, response.json()["quantity"]) == (202, quantity)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"quantity": "0"}, "quantity"),
        ({"quantity": "-1"}, "quantity"),
        ({"quantity": str(MAX_QUANTITY + 1)}, "quantity"),
        ({"quantity": "1" + "0" * 300}, "quantity"),
        ({"quantity": "1.5"}, "quantity"),
        ({"quantity": "1e6000"}, "quantity"),
        ({"quantity": "true"}, "quantity"),
        ({"quantity": '"1"'}, "quantity"),
        ({"quantity": "null"}, "quantity"),
        ({"quantity": "[1]"}, "quantity"),
        ({"customer_id": ""}, "customer_id"),
        ({"customer_id": '"ann"'}, "customer_id"),
        ({"customer_id": "7"}, "customer_id"),
        ({"product_id": "null"}, "product_id"),
        ({"product_id": f'"----{"a" * 32}"'}, "product_id"),
        ({"product_id": f'"{"a" * 32}----"'}, "product_id"),
        ({"product_id": f'"{"a" * 32}"'}, "product_id"),
        ({"product_id": f'"{{{uuid4()}}}"'}, "product_id"),
        ({"product_id": f'"urn:uuid:{uuid4()}"'}, "product_id"),
        ({"product_id": f'" {uuid4()}"'}, "product_id"),
        ({"product_id": r'"' + "\uff11" * 8 + '-1111-1111-1111-111111111111"'}, "product_id"),
        ({"price": "1"}, "price"),
        ({"status": '"COMPLETED"'}, "status"),
    ],
)
async def test_an_invalid_field_is_named_and_nothing_is_appended(
    http: httpx.AsyncClient, fields: dict[str, str], field: str
) -> None:
    async with nothing_appended(http):
        problem(await post(http, "/orders", text(**fields)), 422, "invalid-fields", field)


async def test_the_limit_of_a_field_is_named(http: httpx.AsyncClient) -> None:
    few = problem(await post(http, "/orders", text(quantity="0")), 422, "invalid-fields")
    many = await post(http, "/orders", text(quantity=str(MAX_QUANTITY + 1)))
    assert limit(few, "quantity") == 1
    assert limit(problem(many, 422, "invalid-fields"), "quantity") == MAX_QUANTITY


async def test_all_invalid_fields_are_named_in_one_answer(http: httpx.AsyncClient) -> None:
    response = await post(http, "/orders", '{"customer_id": 1, "quantity": 0, "more": 1}')
    errors = problem(response, 422, "invalid-fields")["errors"]
    assert {e["field"] for e in errors} == {"customer_id", "product_id", "quantity", "more"}


@pytest.mark.parametrize("text", ["[]", "null", "1", '"order"', "true"])
async def test_a_body_that_is_not_an_object_is_refused(http: httpx.AsyncClient, text: str) -> None:
    problem(await post(http, "/orders", text), 422, "invalid-fields", "body")


async def test_an_unknown_query_parameter_is_refused(http: httpx.AsyncClient) -> None:
    async with nothing_appended(http):
        response = await post(http, "/orders?notify=true", text())
        problem(response, 422, "invalid-fields", "notify")


async def test_a_retry_with_the_same_key_is_the_same_order(http: httpx.AsyncClient) -> None:
    customer_id, product_id = await register(http), await list_product(http)
    body = {"customer_id": customer_id, "product_id": product_id}
    key = {"Idempotency-Key": str(uuid4())}
    first = await http.post("/orders", json=body, headers=key)
    again = await http.post("/orders", json=body, headers=key)
    waited = await http.post("/orders", json=body, headers={**key, **WAIT})
    assert first.status_code == again.status_code == 202
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    # It may be decided by then, which a replay shows.
    assert first.json()["order_id"] == again.json()["order_id"]
    assert waited.status_code == 201
    assert waited.json()["order_id"] == first.json()["order_id"]
    assert waited.json()["created_at"] == first.json()["created_at"]
    assert await balance(http, customer_id) == Decimal("4900.00")


async def test_fifty_simultaneous_retries_make_one_order(http: httpx.AsyncClient) -> None:
    customer_id, product_id = await register(http), await list_product(http)
    body = {"customer_id": customer_id, "product_id": product_id}
    headers = {"Idempotency-Key": str(uuid4()), **WAIT}
    responses = await asyncio.gather(
        *(http.post("/orders", json=body, headers=headers) for _ in range(50))
    )
    assert {response.status_code for response in responses} == {201}
    assert len({response.text for response in responses}) == 1
    assert await balance(http, customer_id) == Decimal("4900.00")
    assert await stock(http, product_id) == 99


async def test_a_key_with_another_body_is_refused(http: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": str(uuid4())}
    assert (await post(http, "/orders", text(), headers)).status_code == 202
    async with nothing_appended(http):
        problem(await post(http, "/orders", text(), headers), 422, "key-reused")


async def test_different_keys_make_different_orders(http: httpx.AsyncClient) -> None:
    body = text()
    ids = {
        (await post(http, "/orders", body, {"Idempotency-Key": key})).json()["order_id"]
        for key in (f"a-{uuid4()}", f"b-{uuid4()}")
    }
    assert len(ids) == 2


@pytest.mark.parametrize("key", ["", "two words", "x" * 256, "caf\u00e9"])
async def test_an_invalid_idempotency_key_is_refused(http: httpx.AsyncClient, key: str) -> None:
    headers = [(b"content-type", b"application/json"), (b"idempotency-key", key.encode("latin-1"))]
    response = await http.post("/orders", content=text(), headers=headers)
    problem(response, 422, "invalid-fields", "Idempotency-Key")


async def test_the_longest_idempotency_key_is_accepted(http: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": (str(uuid4()) * 8)[:255]}
    assert (await post(http, "/orders", text(), headers)).status_code == 202


async def test_respond_async_does_not_wait(http: httpx.AsyncClient) -> None:
    response = await post(http, "/orders", text(), {"Prefer": "respond-async"})
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "respond-async"
