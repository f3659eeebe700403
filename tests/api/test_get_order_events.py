"""GET /orders/{order_id}/events."""

from uuid import uuid4

import httpx

from .client import cancel, list_product, order, problem, register


async def test_the_events_of_an_order_are_listed_in_order(http: httpx.AsyncClient) -> None:
    customer_id, product_id = await register(http), await list_product(http)
    placed = await order(http, customer_id, product_id)
    await order(http, customer_id, product_id)
    undone = await cancel(http, placed["order_id"])
    response = await http.get(f"/orders/{placed['order_id']}/events")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/cloudevents-batch+json"
    assert int(response.headers["ledger-position"]) >= undone["position"]
    events = response.json()
    assert [event["type"] for event in events] == [
        "order.placed",
        "order.completed",
        "order.cancel-requested",
        "order.cancelled",
    ]
    assert [event["version"] for event in events] == [1, 2, 3, 4]
    assert {event["subject"] for event in events} == {placed["order_id"]}
    assert events[1]["causationid"] == events[0]["id"]
    assert events[3]["causationid"] == events[2]["id"]
    assert events[3]["position"] == undone["position"]


async def test_the_events_of_an_order_come_in_pages(http: httpx.AsyncClient) -> None:
    placed = await order(http, await register(http), await list_product(http))
    first = await http.get(f"/orders/{placed['order_id']}/events?limit=1")
    (event,) = first.json()
    path = first.links["next"]["url"].removeprefix("/api/v1")
    last = await http.get(path)
    assert [event["position"], last.json()[0]["position"]] == [
        placed["position"] - 1,
        placed["position"],
    ]
    assert "next" not in last.links


async def test_the_events_of_an_unknown_order_are_a_404(http: httpx.AsyncClient) -> None:
    for unknown in (str(uuid4()), await register(http), await list_product(http)):
        problem(await http.get(f"/orders/{unknown}/events"), 404, "unknown-order")
