"""Idempotency-Key: the ledger alone remembers what each made, for ever."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api.submission import IdempotencyKey
from ledger.core.events import CustomerRegistered, OrderPlaced
from ledger.eventlog.records import Submitted
from ledger.runtime.timestamps import now_us
from tests.harness import Stack, eventually, free_port, start_stack
from tests.ledger.pipeline import running_ledger
from tests.private_servers import Servers

from .client import WAIT, Body, limit, list_product, order, problem, register

Call = tuple[str, str, Body, Body]
"""Method, path, body, and another body."""


def key() -> dict[str, str]:
    """A new idempotency key, as headers."""
    return {"Idempotency-Key": str(uuid4())}


async def head_of(http: httpx.AsyncClient) -> int:
    """Where the ledger ends."""
    return int((await http.get("/events?limit=1")).headers["ledger-position"])


async def recorded_after(http: httpx.AsyncClient, position: int) -> list[Body]:
    """The events that the ledger got since."""
    events: list[Body] = (await http.get(f"/events?after={position}&limit=500")).json()
    return events


@pytest.fixture(scope="module")
async def pair(servers: Servers) -> AsyncIterator[tuple[Stack, Stack]]:
    """A ledger with two API processes, the second of which tests may kill."""
    stack = await start_stack(servers)
    other = Stack(stack.settings.model_copy(update={"api_port": free_port()}))
    other.start("api")
    await other.ready()
    yield stack, other
    await other.stop()
    await stack.stop()


@pytest.fixture
def here(pair: tuple[Stack, Stack]) -> httpx.AsyncClient:
    """A client of the first process, which may remember keys."""
    return pair[0].http


@pytest.fixture
def there(pair: tuple[Stack, Stack]) -> httpx.AsyncClient:
    """A client of the second process, which knows of the first only what the ledger has."""
    return pair[1].http


@pytest.fixture
async def calls(here: httpx.AsyncClient) -> list[Call]:
    """Every request that takes a key, with a body that succeeds and another one."""
    customer_id, product_id = await register(here), await list_product(here)
    placed = await order(here, customer_id, product_id)
    body = {"customer_id": customer_id, "product_id": product_id}
    listed = {"name": "Lamp", "description": "", "base_price": 1, "stock": 1}
    return [
        ("POST", "/orders", body, {**body, "quantity": 2}),
        ("POST", "/orders/batch", {"orders": [body] * 3}, {"orders": [body] * 2}),
        ("POST", "/orders/batch", {"orders": [body] * 3}, {"orders": [body] * 4}),
        ("POST", "/orders/batch", {"orders": [body]}, {"orders": [body], "atomic": True}),
        ("POST", f"/orders/{placed['order_id']}/cancel", {}, {}),
        ("POST", "/customers", {"username": "ann"}, {"username": "bob"}),
        ("POST", f"/customers/{customer_id}/deposits", {"amount": 1}, {"amount": 2}),
        ("POST", "/products", listed, {**listed, "stock": 2}),
        ("POST", f"/products/{product_id}/receipts", {"quantity": 1}, {"quantity": 2}),
        ("PATCH", f"/products/{product_id}", {"base_price": 100}, {"base_price": 101}),
    ]


def same(first: Any, again: Any) -> bool:
    """Whether a replay is the first answer, but for what happened to the thing since then."""
    later = {"position", "wallet_balance", "stock", "current_price", "base_price"}
    return {k: v for k, v in first.items() if k not in later} == {
        k: v for k, v in again.items() if k not in later
    }


async def test_each_request_is_replayed_by_a_process_that_never_saw_its_key(
    here: httpx.AsyncClient, there: httpx.AsyncClient, calls: list[Call]
) -> None:
    for method, path, body, other in calls:
        headers = {**key(), **WAIT}
        first = await here.request(method, path, json=body, headers=headers)
        assert first.status_code in (200, 201), first.text
        assert "idempotency-replayed" not in first.headers
        start = await head_of(here)
        for http in (here, there):
            again = await http.request(method, path, json=body, headers=headers)
            assert again.status_code == first.status_code, again.text
            assert again.headers["idempotency-replayed"] == "true"
            assert again.headers.get("location") == first.headers.get("location")
            assert same(first.json(), again.json())
            if other != body:
                refused = await http.request(method, path, json=other, headers=headers)
                problem(refused, 422, "key-reused")
        assert await recorded_after(here, start) == []


@pytest.mark.parametrize(("plain", "quoted"), [("{}", '"{}"'), ('a"\\{}', r'"a\"\\{}"')])
async def test_a_key_in_quotes_is_the_key_without_them(
    here: httpx.AsyncClient, there: httpx.AsyncClient, plain: str, quoted: str
) -> None:
    """draft-ietf-httpapi-idempotency-key-header has it as a string of RFC 8941."""
    body, unique = {"customer_id": str(uuid4()), "product_id": str(uuid4())}, str(uuid4())
    first, *others = [
        await http.post("/orders", json=body, headers={"Idempotency-Key": form.format(unique)})
        for http, form in ((here, quoted), (there, plain), (here, plain), (there, quoted))
    ]
    assert first.status_code == 202
    assert {other.headers["location"] for other in others} == {first.headers["location"]}


async def test_the_longest_key_is_the_same_one_in_quotes(here: httpx.AsyncClient) -> None:
    body, unique = {"customer_id": str(uuid4()), "product_id": str(uuid4())}, uuid4().hex
    escaped = '"' + unique + r"\"" * (255 - len(unique)) + '"'
    answers = [
        await here.post("/orders", json=body, headers={"Idempotency-Key": key})
        for key in (unique + '"' * (255 - len(unique)), escaped)
    ]
    assert len({answer.headers["location"] for answer in answers}) == 1
    too_long = {"Idempotency-Key": f'"{"x" * 256}"'}
    answer = await here.post("/orders", json=body, headers=too_long)
    assert limit(problem(answer, 422, "invalid-fields"), "Idempotency-Key") == 255


@pytest.mark.parametrize(
    "text", ['"', '""', '"a', '"a"b', r'"a\"', r'"a\b"', '"a";b=1', "a b", '"é"', "x" * 256]
)
async def test_a_key_that_can_not_be_used_is_named(here: httpx.AsyncClient, text: str) -> None:
    body = {"customer_id": str(uuid4()), "product_id": str(uuid4())}
    headers = {"Idempotency-Key": text.encode()}
    for path in ("/orders", "/orders?dry_run=true"):
        answer = await here.post(path, json=body, headers=headers)
        assert problem(answer, 422, "invalid-fields", "Idempotency-Key")


async def test_a_key_in_quotes_still_finds_what_it_made_when_they_were_a_part_of_it(
    pair: tuple[Stack, Stack], here: httpx.AsyncClient
) -> None:
    """A client that retries after an upgrade must not order twice."""
    unique, ids = str(uuid4()), [uuid4(), uuid4()]
    body = {"customer_id": str(ids[0]), "product_id": str(ids[1])}
    single = IdempotencyKey(f'POST /orders\n\n"{unique}"\n', is_batch=False)
    batch = IdempotencyKey(f'POST /orders/batch\n\n"{unique}"\n', is_batch=True)
    before = [
        Submitted(*event_ids, now_us(), OrderPlaced(*ids))
        for event_ids in (single.derived_ids(), batch.derived_ids(0), batch.derived_ids(1))
    ]
    async with running_ledger(pair[0].settings) as ledger:
        await ledger.put_events(before)
        await ledger.until_recorded(before)
    quoted, plain = {"Idempotency-Key": f'"{unique}"'}, {"Idempotency-Key": unique}
    again = await here.post("/orders", json=body, headers=quoted)
    assert again.headers["location"].endswith(str(before[0].stream_id))
    assert again.headers["idempotency-replayed"] == "true"
    orders = await here.post("/orders/batch", json={"orders": [body] * 2}, headers=quoted)
    found = [order["order_id"] for order in orders.json()["orders"]]
    assert found == [str(event.stream_id) for event in before[1:]]
    other = await here.post("/orders", json={**body, "quantity": 2}, headers=quoted)
    problem(other, 422, "key-reused")
    new = await here.post("/orders", json=body, headers=plain)
    assert "idempotency-replayed" not in new.headers
    assert new.headers["location"] != again.headers["location"]


async def test_a_key_finds_the_name_that_it_came_with_before_names_were_trimmed(
    pair: tuple[Stack, Stack], here: httpx.AsyncClient
) -> None:
    unique = str(uuid4())
    event_ids = IdempotencyKey(f"POST /customers\n\n{unique}\n", is_batch=False).derived_ids()
    before = [Submitted(*event_ids, now_us(), CustomerRegistered(" re\u0301mi "))]
    async with running_ledger(pair[0].settings) as ledger:
        await ledger.put_events(before)
        await ledger.until_recorded(before)
    headers = {"Idempotency-Key": unique, **WAIT}
    again = await here.post("/customers", json={"username": " re\u0301mi "}, headers=headers)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["customer_id"] == str(before[0].stream_id)
    other = await here.post("/customers", json={"username": "ann"}, headers=headers)
    problem(other, 422, "key-reused")


async def test_a_retry_with_if_match_gets_the_outcome_of_the_first_try(
    here: httpx.AsyncClient, there: httpx.AsyncClient
) -> None:
    """Although the ETag is another since: the first try made it so."""
    path = f"/products/{await list_product(here)}"
    seen = (await here.get(path)).headers["etag"]
    headers = {**key(), **WAIT, "If-Match": seen}
    first = await here.patch(path, json={"base_price": 7}, headers=headers)
    assert first.status_code == 200
    start = await head_of(here)
    for http in (here, there):
        again = await http.patch(path, json={"base_price": 7}, headers=headers)
        assert (again.status_code, again.json()) == (200, first.json())
        assert again.headers["idempotency-replayed"] == "true"
        for other in ({"If-Match": first.headers["etag"]}, {"If-Match": "*"}):
            refused = await http.patch(path, json={"base_price": 7}, headers={**headers, **other})
            problem(refused, 422, "key-reused")
        fresh = {**headers, **key()}
        refused = await http.patch(path, json={"base_price": 7}, headers=fresh)
        problem(refused, 412, "precondition-failed")
    assert await recorded_after(here, start) == []


async def test_refusals_are_replayed_after_a_restart(
    pair: tuple[Stack, Stack], here: httpx.AsyncClient
) -> None:
    """With the first decision, although the fold would decide otherwise by now."""
    _, restarted = pair
    there = restarted.http
    customer_id, product_id = await register(here), await list_product(here, stock=0)
    unlisted, nobody = str(uuid4()), str(uuid4())
    refused: list[tuple[str, Body, int, str]] = [
        (f"/products/{unlisted}/receipts", {"quantity": 1}, 404, "unknown-product"),
        (f"/customers/{nobody}/deposits", {"amount": 1}, 404, "unknown-customer"),
        (f"/products/{product_id}/receipts", {"quantity": 10**9}, 200, ""),
        (f"/products/{product_id}/receipts", {"quantity": 1}, 409, "stock-limit"),
    ]
    keys = [{**key(), **WAIT} for _ in refused]
    first = [
        await there.post(path, json=body, headers=headers)
        for (path, body, *_), headers in zip(refused, keys, strict=True)
    ]
    short = {"customer_id": customer_id, "product_id": product_id, "quantity": 10**6}
    headers = {**key(), **WAIT}
    failed = await there.post("/orders", json=short, headers=headers)
    problem(failed, 409, "out-of-money")
    start = await head_of(here)
    await asyncio.to_thread(restarted.kill, "api")
    restarted.start("api")
    await restarted.ready()
    for (path, body, status, kind), keyed, before in zip(refused, keys, first, strict=True):
        again = await there.post(path, json=body, headers=keyed)
        assert again.status_code == before.status_code == status
        if kind:
            assert problem(again, status, kind) == before.json()
        changed = {name: value + 1 for name, value in body.items()}
        if status == 404:
            problem(await there.post(path, json=changed, headers=keyed), 422, "key-reused")
    again = await there.post("/orders", json=short, headers=headers)
    assert again.status_code == failed.status_code
    assert again.json() == failed.json()
    other = await there.post("/orders", json={**short, "quantity": 1}, headers=headers)
    problem(other, 422, "key-reused")
    assert await recorded_after(here, start) == []


async def test_a_202_is_replayed_as_202_that_shows_the_decision_after_a_restart(
    pair: tuple[Stack, Stack], here: httpx.AsyncClient
) -> None:
    _, restarted = pair
    there, headers = restarted.http, key()
    body = {"customer_id": str(uuid4()), "product_id": str(uuid4())}
    first = await there.post("/orders", json=body, headers=headers)
    await asyncio.to_thread(restarted.kill, "api")
    restarted.start("api")
    await restarted.ready()

    async def decided() -> bool:
        return (await here.get(first.headers["location"][7:])).json().get("status") == "FAILED"

    await eventually(decided, "the order is decided")
    again = await there.post("/orders", json=body, headers=headers)
    decided_order = await here.get(first.headers["location"][7:])
    assert (again.status_code, again.json()) == (202, decided_order.json())
    assert again.headers["idempotency-replayed"] == "true"
    assert int(again.headers["ledger-position"]) >= again.json()["position"]
    other = await there.post("/orders", json={**body, "quantity": 2}, headers=headers)
    problem(other, 422, "key-reused")


@pytest.mark.parametrize("wait", [WAIT, {"Prefer": "respond-async"}])
async def test_fifty_requests_at_once_on_two_processes_make_one_event(
    here: httpx.AsyncClient, there: httpx.AsyncClient, wait: dict[str, str]
) -> None:
    start, headers = await head_of(here), {**key(), **wait}
    posts = [
        http.post("/customers", json={"username": "ann"}, headers=headers)
        for http in [here, there] * 25
    ]
    answers = await asyncio.gather(*posts)
    assert len({answer.headers["location"] for answer in answers}) == 1
    assert len({answer.status_code for answer in answers}) == 1
    await register(here)
    events = await recorded_after(here, start)
    assert [event["type"] for event in events] == ["customer.registered"] * 2
    assert events[0]["subject"] == answers[0].headers["location"].rpartition("/")[2]


async def test_of_fifty_bodies_at_once_one_is_decided_and_every_other_is_refused(
    here: httpx.AsyncClient, there: httpx.AsyncClient
) -> None:
    """On two processes: who waits learns which body was recorded, not only that one was."""
    start, headers = await head_of(here), {**key(), **WAIT}
    posts = [
        http.post("/customers", json={"username": f"ann {i}"}, headers=headers)
        for i, http in enumerate([here, there] * 25)
    ]
    answers = await asyncio.gather(*posts)
    winners = [answer for answer in answers if answer.status_code == 201]
    assert len(winners) == 1
    for answer in answers:
        if answer not in winners:
            problem(answer, 422, "key-reused")
    (event,) = await recorded_after(here, start)
    assert event["subject"] == winners[0].json()["customer_id"]
    customer = await here.get(f"/customers/{event['subject']}")
    assert customer.json()["username"] == winners[0].json()["username"]


async def test_within_a_process_another_body_is_refused_before_the_decision(
    here: httpx.AsyncClient,
) -> None:
    headers, ids = key(), [str(uuid4()) for _ in range(10)]
    answers = await asyncio.gather(
        *(
            here.post("/orders", json={"customer_id": i, "product_id": i}, headers=headers)
            for i in ids
        )
    )
    assert sorted(answer.status_code for answer in answers) == [202] + [422] * 9


async def test_a_reused_key_never_tears_an_atomic_batch(
    pair: tuple[Stack, Stack], here: httpx.AsyncClient, there: httpx.AsyncClient
) -> None:
    """Two bodies at once on two processes: the first in the inbox is decided, the other is not."""
    stack, _ = pair
    customer_id, product_id = await register(here), await list_product(here)
    body = {"customer_id": customer_id, "product_id": product_id}
    headers, start = key(), await head_of(here)
    stack.kill("writer")
    short = await here.post(
        "/orders/batch", json={"orders": [body] * 2, "atomic": True}, headers=headers
    )
    long = await there.post(
        "/orders/batch", json={"orders": [body] * 5, "atomic": True}, headers=headers
    )
    assert short.status_code == long.status_code == 202
    stack.start("writer")
    await register(here)
    events = await recorded_after(here, start)
    assert [e["type"] for e in events[:-1]] == ["order.placed", "order.completed"] * 2
    late = await there.post(
        "/orders/batch", json={"orders": [body] * 5, "atomic": True}, headers=headers
    )
    problem(late, 422, "key-reused")
    again = await there.post(
        "/orders/batch", json={"orders": [body] * 2, "atomic": True}, headers=headers
    )
    assert again.status_code == 202
    shown = [(placed["order_id"], placed["status"]) for placed in again.json()["orders"]]
    assert shown == [(placed["order_id"], "COMPLETED") for placed in short.json()["orders"]]


async def test_a_request_refused_by_its_check_submits_nothing_then_or_later(
    pair: tuple[Stack, Stack], here: httpx.AsyncClient
) -> None:
    """A cancel that was refused at once left nothing in the ledger, and leaves nothing later."""
    start, headers = await head_of(here), key()
    path = f"/orders/{uuid4()}/cancel"
    for _ in range(2):
        problem(await here.post(path, headers=headers), 404, "unknown-order")
    assert await recorded_after(here, start) == []
