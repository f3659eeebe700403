# noqa: N999  # the name is the requirement's
"""REQ-3.2.1: of 100 orders at once for the last unit, exactly one gets it.

By hand, beside a running `make run`; BASE_URL names another API:

    .venv/bin/python tests/req-3-2-1_test_race_condition.py
"""

import asyncio
import os
import sys
import time
from collections import Counter

import httpx

BASE_URL = os.environ.get("BASE_URL", "http://127.0.0.1:8000")
ORDERS = 100
DECIDED_TIMEOUT_S = 20.0
WAIT = {"Prefer": "wait=20"}


async def main() -> None:
    """Race, and compare what came of it with what must."""
    limits = httpx.Limits(max_connections=ORDERS)
    base_url = f"{BASE_URL}/api/v1"
    async with httpx.AsyncClient(base_url=base_url, limits=limits, timeout=30) as http:
        customer_id = (await made(http, "/customers", {"username": "race"}))["customer_id"]
        last_unit = {"name": "Last one", "base_price": 100, "stock": 1}
        product_id = (await made(http, "/products", last_unit))["product_id"]
        body = {"customer_id": customer_id, "product_id": product_id}
        answers = await asyncio.gather(*(http.post("/orders", json=body) for _ in range(ORDERS)))
        codes = Counter(answer.status_code for answer in answers)
        assert codes == {202: ORDERS}, f"answers: {codes}"
        paths = [f"/orders/{answer.json()['order_id']}" for answer in answers]
        orders = await asyncio.gather(*(decided(http, path) for path in paths))
        stock = (await http.get(f"/products/{product_id}")).json()["stock"]
    statuses = Counter(order["status"] for order in orders)
    reasons = Counter(order["failure_reason"] for order in orders if order["status"] == "FAILED")
    assert statuses == {"COMPLETED": 1, "FAILED": ORDERS - 1}, f"orders: {statuses}"
    assert reasons == {"INSUFFICIENT_STOCK": ORDERS - 1}, f"reasons: {reasons}"
    assert stock == 0, f"stock: {stock}"
    sys.stdout.write(f"{ORDERS} × 202, then {dict(statuses)}, stock {stock}\n")


async def made(http: httpx.AsyncClient, path: str, body: dict[str, object]) -> dict[str, str]:
    """What a POST made, as the view shows it."""
    answer = await http.post(path, json=body, headers=WAIT)
    assert answer.status_code == 201, f"POST {path}: {answer.text}"
    thing: dict[str, str] = answer.json()
    return thing


async def decided(http: httpx.AsyncClient, path: str) -> dict[str, str]:
    """The order, once it's no longer PENDING."""
    deadline = time.monotonic() + DECIDED_TIMEOUT_S
    while True:
        answer = await http.get(path)
        assert answer.status_code == 200, f"GET {path}: {answer.text}"
        order: dict[str, str] = answer.json()
        if order["status"] != "PENDING":
            return order
        assert time.monotonic() < deadline, f"{path} is PENDING after {DECIDED_TIMEOUT_S} s"
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(main())
