"""If-Match and its kin: what a client saw holds as its change is decided, or it is refused."""

import asyncio
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import pytest

from .client import WAIT, exact, list_product, nothing_appended, order, post, problem, register

CONDITIONS = {
    "If-None-Match": "*",
    "If-Unmodified-Since": "Thu, 01 Jan 2015 00:00:00 GMT",
    "If-Modified-Since": "Thu, 01 Jan 2015 00:00:00 GMT",
    "If-Range": '"1-00000000"',
}


class Change(NamedTuple):
    """A request that changes what the GET of `shown` shows."""

    shown: str
    method: str
    path: str
    body: dict[str, Any]


@pytest.fixture
async def changes(http: httpx.AsyncClient) -> list[Change]:
    """Each request that changes something which has an ETag."""
    customer_id, product_id = await register(http), await list_product(http)
    other_id = await list_product(http)
    order_id = (await order(http, customer_id, other_id))["order_id"]
    customer, product = f"/customers/{customer_id}", f"/products/{product_id}"
    return [
        Change(product, "PATCH", product, {"base_price": 7}),
        Change(product, "POST", f"{product}/receipts", {"quantity": 7}),
        Change(customer, "POST", f"{customer}/deposits", {"amount": 7}),
        Change(f"/orders/{order_id}", "POST", f"/orders/{order_id}/cancel", {}),
    ]


async def creations(http: httpx.AsyncClient) -> list[Change]:
    """Each request that makes something new, shown nowhere yet."""
    placed = {"customer_id": await register(http), "product_id": await list_product(http)}
    listed = {"name": "Lamp", "base_price": 1, "stock": 1}
    return [
        Change("", "POST", "/customers", {"username": "ann"}),
        Change("", "POST", "/products", listed),
        Change("", "POST", "/orders", placed),
        Change("", "POST", "/orders?dry_run=true", placed),
        Change("", "POST", "/orders/batch", {"orders": [placed]}),
    ]


async def etag(http: httpx.AsyncClient, path: str) -> str:
    found: str = (await http.get(path)).headers["etag"]
    assert found.startswith('"')
    return found


async def send(
    http: httpx.AsyncClient, change: Change, headers: dict[str, str] | None = None
) -> httpx.Response:
    headers = {**WAIT, **(headers or {})}
    return await http.request(change.method, change.path, json=change.body, headers=headers)


async def test_a_change_of_what_the_client_saw_is_made_and_answered_with_the_new_etag(
    http: httpx.AsyncClient, changes: list[Change]
) -> None:
    for change in changes:
        seen = await etag(http, change.shown)
        response = await send(http, change, {"If-Match": seen})
        assert response.status_code == 200, response.text
        assert response.headers["etag"] == await etag(http, change.shown) != seen
        assert exact(response) == exact(await http.get(change.shown))


async def test_a_change_of_what_changed_since_is_refused_and_not_recorded(
    http: httpx.AsyncClient, changes: list[Change]
) -> None:
    for change in changes[:3]:
        seen = await etag(http, change.shown)
        assert (await send(http, change)).status_code == 200
        async with nothing_appended(http):
            body = problem(await send(http, change, {"If-Match": seen}), 412, "precondition-failed")
            assert body["reason"] == "PRECONDITION_FAILED"


async def test_a_sale_changes_the_product_and_the_wallet_that_a_client_saw(
    http: httpx.AsyncClient,
) -> None:
    customer_id, product_id = await register(http), await list_product(http)
    product, customer = f"/products/{product_id}", f"/customers/{customer_id}"
    price = Change(product, "PATCH", product, {"base_price": 7})
    paid = Change(customer, "POST", f"{customer}/deposits", {"amount": 7})
    seen = [(change, await etag(http, change.shown)) for change in (price, paid)]
    await order(http, customer_id, product_id)
    for change, tag in seen:
        problem(await send(http, change, {"If-Match": tag}), 412, "precondition-failed")


async def test_of_many_changes_at_once_of_the_same_state_one_is_made(
    http: httpx.AsyncClient,
) -> None:
    """The views that a process looks at can't tell them apart: the fold decides."""
    path = f"/products/{await list_product(http)}"
    headers = {"If-Match": await etag(http, path), **WAIT}
    responses = await asyncio.gather(
        *(http.patch(path, json={"base_price": 1 + n}, headers=headers) for n in range(20))
    )
    made = [response for response in responses if response.status_code == 200]
    assert len(made) == 1
    for response in responses:
        if response not in made:
            problem(response, 412, "precondition-failed")
    assert exact(await http.get(path)) == exact(made[0])


async def test_no_update_is_lost_among_clients_that_read_change_and_retry(
    http: httpx.AsyncClient,
) -> None:
    customer_id, product_id = await register(http, "20000.00"), await list_product(http, "100")
    path = f"/products/{product_id}"

    async def raise_price(times: int) -> None:
        while times:
            found = await http.get(path)
            response = await http.patch(
                path,
                json={"base_price": found.json()["base_price"] + 1},
                headers={"If-Match": found.headers["etag"], **WAIT},
            )
            if response.status_code == 200:
                times -= 1
            else:
                problem(response, 412, "precondition-failed")

    await asyncio.gather(*(raise_price(4) for _ in range(5)), order(http, customer_id, product_id))
    assert (await http.get(path)).json()["base_price"] == 120


async def test_who_read_a_compressed_answer_can_change_what_it_showed(
    http: httpx.AsyncClient,
) -> None:
    listed = {"name": "Long", "description": "d" * 2000, "base_price": 1, "stock": 1}
    response = await http.post("/products", json=listed, headers=WAIT)
    path = response.headers["location"].removeprefix("/api/v1")
    packed = await http.get(path, headers={"Accept-Encoding": "gzip"})
    plain = await http.get(path, headers={"Accept-Encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["etag"] == f'{plain.headers["etag"][:-1]}-gzip"'
    for seen in (packed, plain):
        for coding in ("gzip", "identity"):
            headers = {"If-Match": seen.headers["etag"], "Accept-Encoding": coding}
            assert (await http.get(path, headers=headers)).status_code == 200
            headers = {"If-None-Match": seen.headers["etag"], "Accept-Encoding": coding}
            assert (await http.get(path, headers=headers)).status_code == 304
    headers = {"If-Match": packed.headers["etag"], "Accept-Encoding": "gzip", **WAIT}
    changed = await http.patch(path, json={"base_price": 2}, headers=headers)
    assert changed.status_code == 200
    headers["If-Match"] = changed.headers["etag"]
    assert (await http.patch(path, json={"base_price": 3}, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "form",
    ["*", "{etag}", '"other", {etag}', '{etag} , W/"x"', ',{etag},,"1-0"', '"other"\n{etag}'],
)
async def test_every_form_of_if_match_that_names_the_state_is_fulfilled(
    http: httpx.AsyncClient, form: str
) -> None:
    """Several lines are one list, too."""
    path = f"/products/{await list_product(http)}"
    lines = form.format(etag=await etag(http, path)).split("\n")
    headers = [("If-Match", line) for line in lines]
    assert (await http.get(path, headers=headers)).status_code == 200
    assert (await http.patch(path, json={"base_price": 1}, headers=headers)).status_code == 200


NAMES_NO_STATE = ['"nothing"', '""', "W/{etag}", '"99999999999999999999-00000000"', '"*"']
# As after a rebuild by other rules, which shows another price of the same event.
ANOTHER_CHECKSUM = '"{position}-00000000"'
UNREADABLE = ["{bare}", "w/{etag}", "{etag}; x", "*, {etag}", "", '"', "7"]


@pytest.mark.parametrize(
    ("form", "status", "kind", "field"),
    [(form, 412, "precondition-failed", None) for form in [*NAMES_NO_STATE, ANOTHER_CHECKSUM]]
    + [(form, 422, "invalid-fields", "If-Match") for form in UNREADABLE],
)
async def test_an_if_match_that_names_another_state_or_none_is_refused_and_changes_nothing(
    http: httpx.AsyncClient, form: str, status: int, kind: str, field: str | None
) -> None:
    path = f"/products/{await list_product(http)}"
    tag = await etag(http, path)
    bare = tag.strip('"')
    position = bare.partition("-")[0]
    headers = {"If-Match": form.format(etag=tag, bare=bare, position=position)}
    problem(await http.get(path, headers=headers), status, kind, field)
    async with nothing_appended(http):
        response = await http.patch(path, json={"base_price": 1}, headers=headers)
        problem(response, status, kind, field)


async def test_a_huge_if_match_is_read_at_once(http: httpx.AsyncClient) -> None:
    path = f"/products/{await list_product(http)}"
    for text in ('"a",' * 5_000, '"' * 20_001, "W/" * 10_000, "," * 20_000, '"a""b" "c",' * 2_000):
        started = asyncio.get_running_loop().time()
        response = await http.get(path, headers={"If-Match": text})
        assert response.status_code in (412, 422)
        assert asyncio.get_running_loop().time() - started < 1


@pytest.mark.parametrize("name", CONDITIONS)
async def test_a_precondition_that_no_change_can_keep_is_refused_and_says_what_can(
    http: httpx.AsyncClient, changes: list[Change], name: str
) -> None:
    async with nothing_appended(http):
        for change in changes:
            response = await send(http, change, {name: CONDITIONS[name]})
            assert "If-Match" in problem(response, 422, "invalid-fields", name)["detail"]


@pytest.mark.parametrize("name", ["If-Match", *CONDITIONS])
async def test_a_request_that_makes_something_new_takes_no_precondition(
    http: httpx.AsyncClient, name: str
) -> None:
    requests = await creations(http)
    async with nothing_appended(http):
        for request in requests:
            response = await send(http, request, {name: CONDITIONS.get(name, "*")})
            assert "Idempotency-Key" in problem(response, 422, "invalid-fields", name)["detail"]


async def test_beside_if_match_a_date_does_not_count(http: httpx.AsyncClient) -> None:
    """RFC 9110, 13.1.4: the ETag is the more exact of the two."""
    path = f"/products/{await list_product(http)}"
    date = {"If-Unmodified-Since": CONDITIONS["If-Unmodified-Since"]}
    headers = {"If-Match": await etag(http, path), **date, **WAIT}
    assert (await http.patch(path, json={"base_price": 1}, headers=headers)).status_code == 200
    response = await http.patch(path, json={"base_price": 2}, headers=headers)
    problem(response, 412, "precondition-failed")


async def test_a_read_passes_dates_over_as_no_answer_has_one_to_compare_with(
    http: httpx.AsyncClient, changes: list[Change]
) -> None:
    for shown in {change.shown for change in changes}:
        for name in ("If-Unmodified-Since", "If-Modified-Since", "If-Range"):
            response = await http.get(shown, headers={name: CONDITIONS[name]})
            assert response.status_code == 200
            assert "last-modified" not in response.headers


async def test_whatever_has_an_etag_is_read_by_it(
    http: httpx.AsyncClient, changes: list[Change]
) -> None:
    for shown in {change.shown for change in changes}:
        for path in (shown, f"{shown}?min_position=1", f"{shown}?as_of_position=999"):
            if "as_of" in path:
                head = (await http.get("/events?limit=1")).headers["ledger-position"]
                path = path.replace("999", head)  # noqa: PLW2901
            first = await http.get(path)
            tag = first.headers["etag"]
            assert (await http.get(path, headers={"If-Match": tag})).content == first.content
            same = await http.get(path, headers={"If-None-Match": tag})
            assert (same.status_code, same.content) == (304, b"")
            assert same.headers["etag"] == tag
            assert "ledger-position" in same.headers
            # RFC 9110, 13.2.2: If-Match comes first.
            both = {"If-Match": '"x"', "If-None-Match": tag}
            problem(await http.get(path, headers=both), 412, "precondition-failed")
            assert (await http.head(path, headers={"If-Match": '"x"'})).status_code == 412


@pytest.mark.parametrize("path", ["/products", "/orders", "/events", "/reports/trial-balance"])
async def test_what_has_no_etag_can_not_be_read_by_one(http: httpx.AsyncClient, path: str) -> None:
    problem(await http.get(path, headers={"If-Match": '"1-0"'}), 412, "precondition-failed")
    assert (await http.get(path, headers={"If-Match": "*"})).status_code == 200


async def test_what_does_not_exist_is_unknown_whatever_was_named(http: httpx.AsyncClient) -> None:
    for tag in ('"1-00000000"', "*", '"x"'):
        headers = {"If-Match": tag, **WAIT}
        path = f"/products/{uuid4()}"
        problem(await http.get(path, headers=headers), 404, "unknown-product")
        patched = await http.patch(path, json={"base_price": 1}, headers=headers)
        problem(patched, 404, "unknown-product")
        cancelled = await http.post(f"/orders/{uuid4()}/cancel", headers=headers)
        problem(cancelled, 404, "unknown-order")


async def test_a_refused_change_is_recorded_with_what_its_client_had_seen(
    http: httpx.AsyncClient,
) -> None:
    """By a position that no event has reached: no view can tell that it will not be so."""
    product_id = await list_product(http)
    path = f"/products/{product_id}"
    headers = {"If-Match": '"999999999-00000000"', **WAIT}
    body = problem(
        await http.patch(path, json={"base_price": 1}, headers=headers), 412, "precondition-failed"
    )
    assert body["reason"] == "PRECONDITION_FAILED"
    after = int((await http.get(path)).json()["position"])
    events = (await http.get(f"/events?after={after}&limit=500")).json()
    cause, refusal = [event for event in events if event["subject"] == product_id]
    assert cause["data"] == {"base_price_minor": 100, "expected_position": 999999999}
    assert (refusal["type"], refusal["data"]) == (
        "submission.refused",
        {"reason": "PRECONDITION_FAILED"},
    )


async def test_who_does_not_wait_is_refused_by_what_the_view_shows(
    http: httpx.AsyncClient,
) -> None:
    product_id = await list_product(http)
    path = f"/products/{product_id}"
    seen = await etag(http, path)
    soon = {"Prefer": "respond-async", "If-Match": seen}
    await post(http, f"{path}/receipts", '{"quantity": 1}', WAIT)
    problem(
        await http.patch(path, json={"base_price": 1}, headers=soon), 412, "precondition-failed"
    )
