"""Who may do what: every route, called with every kind of API key, at an API that is served."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from api.app import ROUTES
from api.auth.principal import Scope
from api.http.parameters import AS_OF_POSITION
from api.operation import Operation
from cli.commands.keys import create, revoke
from tests.harness import DEADLINE_S, Stack, engine_of, eventually, start_stack
from tests.private_servers import Servers

from .client import WAIT, problem

CALLS = [
    pytest.param(method, path, operation, id=f"{method} {path}")
    for path, operations in ROUTES.items()
    for method, operation in operations.items()
]
GUARDED = [call for call in CALLS if call.values[2].scope]
OPEN = [call for call in CALLS if not call.values[2].scope]
OWN = [call for call in GUARDED if call.values[2].own]
NOT_OWN = [call for call in GUARDED if not call.values[2].own]
AS_OF_READS = [call for call in OWN if AS_OF_POSITION in call.values[2].parameters]

Headers = dict[str, str]


@dataclass
class Site:
    """An API that requires API keys, with two customers who have an order each."""

    stack: Stack
    http: httpx.AsyncClient
    admin: Headers = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    keys: dict[str, Headers] = field(default_factory=dict)

    async def key(self, *scopes: Scope, customer_id: str | None = None, **more: Any) -> Headers:
        """The header with a new key."""
        bound = UUID(customer_id) if customer_id else None
        _, parts = await create(self.stack.settings, "test", scopes, bound, **more)
        return bearer(str(parts))

    async def bound(self, customer_id: str) -> Headers:
        """A key with every scope but admin, for one customer; made once."""
        if customer_id not in self.keys:
            scopes = [scope for scope in Scope if scope is not Scope.ADMIN]
            self.keys[customer_id] = await self.key(*scopes, customer_id=customer_id)
        return self.keys[customer_id]

    async def call(
        self, method: str, path: str, operation: Operation, headers: Mapping[str, str], **ids: str
    ) -> httpx.Response:
        """Ask for an operation on what exists, with a body that it takes."""
        names = {**self.ids, "asset": "x", "kind": "no-key", **ids}
        url = path.format(**names)
        async with self.http.stream(
            method, url, headers={**WAIT, **headers}, json=body(operation, names)
        ) as response:
            if not response.headers["content-type"].startswith("text/event-stream"):
                await response.aread()
            return response


def bearer(key: str) -> Headers:
    return {"Authorization": f"Bearer {key}"}


def body(operation: Operation, ids: Mapping[str, str]) -> object:
    """What the operation takes, on these ids."""
    order = {"customer_id": ids["customer_id"], "product_id": ids["product_id"]}
    bodies = {
        "PlaceOrder": order,
        "PlaceOrders": {"orders": [order]},
        "RegisterCustomer": {"username": "ann"},
        "Deposit": {"amount": 1},
        "CreateProduct": {"name": "Lamp", "base_price": 1, "stock": 1000},
        "ReceiveStock": {"quantity": 1},
        "ChangePrice": {"base_price": 1},
        "CancelOrder": {},
    }
    return bodies[operation.body.__name__] if operation.body else None


@pytest.fixture(scope="module")
async def site(servers: Servers) -> AsyncIterator[Site]:
    """The site, and nothing in it that one test could spoil for another."""
    stack = await start_stack(servers, auth="required", rate_per_s=0, concurrency=0)
    async with httpx.AsyncClient(base_url=stack.url, timeout=DEADLINE_S) as http:
        site = Site(stack, http)
        site.admin = await site.key(Scope.ADMIN)
        product = await _made(site, "products", {"name": "Lamp", "base_price": 1, "stock": 10**6})
        site.ids, site.others = [await _customer(site, product["product_id"]) for _ in range(2)]
        yield site
    await stack.stop()


async def _customer(site: Site, product_id: str) -> dict[str, str]:
    customer = await _made(site, "customers", {"username": "ann"})
    ids = {"customer_id": customer["customer_id"], "product_id": product_id}
    order = await _made(site, "orders", ids)
    return {**ids, "order_id": order["order_id"]}


async def _made(site: Site, what: str, body: object) -> dict[str, Any]:
    response = await site.http.post(f"/api/v1/{what}", json=body, headers={**site.admin, **WAIT})
    assert response.status_code == 201, response.text
    content: dict[str, Any] = response.json()
    return content


def refused(response: httpx.Response, status: int, kind: str, error: str | None) -> str:
    """The detail of a 401 or 403, with a challenge as RFC 6750 wants it."""
    challenge = response.headers["www-authenticate"]
    assert challenge.startswith('Bearer realm="ledger"')
    assert (f'error="{error}"' in challenge) if error else ("error" not in challenge)
    detail: str = problem(response, status, kind)["detail"]
    return detail


@pytest.mark.parametrize(("method", "path", "operation"), OPEN)
async def test_an_open_route_needs_no_key(
    site: Site, method: str, path: str, operation: Operation
) -> None:
    response = await site.call(method, path, operation, {})
    assert response.status_code not in (401, 403)


def test_only_products_and_pages_about_the_api_are_open() -> None:
    open_paths = {call.values[1] for call in OPEN}
    assert {call.values[0] for call in OPEN} == {"GET"}
    assert open_paths <= {
        "/api/v1/products",
        "/api/v1/products/{product_id}",
        "/health/live",
        "/health/ready",
        "/openapi.json",
        "/docs",
        "/docs/{asset}",
        "/problems/{kind}",
    }


@pytest.mark.parametrize(("method", "path", "operation"), GUARDED)
async def test_a_request_without_a_key_is_refused(
    site: Site, method: str, path: str, operation: Operation
) -> None:
    refused(await site.call(method, path, operation, {}), 401, "no-key", None)


@pytest.mark.parametrize(("method", "path", "operation"), GUARDED)
async def test_a_key_that_was_never_made_is_refused(
    site: Site, method: str, path: str, operation: Operation
) -> None:
    headers = bearer(f"lk_{'0' * 12}_{'x' * 43}")
    refused(await site.call(method, path, operation, headers), 401, "bad-key", "invalid_token")


@pytest.mark.parametrize(("method", "path", "operation"), GUARDED)
async def test_another_secret_with_the_prefix_of_a_key_is_refused(
    site: Site, method: str, path: str, operation: Operation
) -> None:
    headers = bearer(f"{site.admin['Authorization'][7:-43]}{'x' * 43}")
    detail = refused(
        await site.call(method, path, operation, headers), 401, "bad-key", "invalid_token"
    )
    assert detail == "there is no such API key"


@pytest.fixture(scope="module")
async def ended(site: Site) -> dict[str, Headers]:
    """A key that was revoked and one that has expired."""
    revoked, expired = await site.key(Scope.ADMIN), await site.key(Scope.ADMIN, expires_in_days=1)
    await revoke(site.stack.settings, revoked["Authorization"].split("_")[1])
    engine = engine_of(site.stack.settings, "migrate")
    async with engine.begin() as connection:
        await connection.exec_driver_sql(
            "UPDATE api_keys SET expires_at_us = 1 WHERE prefix = %s",
            (expired["Authorization"].split("_")[1],),
        )
    await engine.dispose()
    return {"revoked": revoked, "expired": expired}


@pytest.mark.parametrize("how", ["revoked", "expired"])
@pytest.mark.parametrize(("method", "path", "operation"), GUARDED)
async def test_a_revoked_or_expired_key_is_refused_on_every_route(
    site: Site, ended: dict[str, Headers], how: str, method: str, path: str, operation: Operation
) -> None:
    response = await site.call(method, path, operation, ended[how])
    assert refused(response, 401, "bad-key", "invalid_token").endswith(f"is {how}")


@pytest.mark.parametrize(("method", "path", "operation"), GUARDED)
async def test_a_key_with_every_scope_but_the_required_one_is_refused(
    site: Site, method: str, path: str, operation: Operation
) -> None:
    name = f"all but {operation.scope}"
    if name not in site.keys:
        site.keys[name] = await site.key(*(set(Scope) - {operation.scope, Scope.ADMIN}))
    response = await site.call(method, path, operation, site.keys[name])
    detail = refused(response, 403, "missing-scope", "insufficient_scope")
    assert str(operation.scope) in detail
    assert f'scope="{operation.scope}"' in response.headers["www-authenticate"]


@pytest.mark.parametrize(("method", "path", "operation"), GUARDED)
async def test_a_key_with_the_required_scope_is_admitted(
    site: Site, method: str, path: str, operation: Operation
) -> None:
    assert operation.scope
    if operation.scope not in site.keys:
        site.keys[operation.scope] = await site.key(operation.scope)
    response = await site.call(method, path, operation, site.keys[operation.scope])
    assert response.is_success or response.status_code == 409, response.text


@pytest.mark.parametrize(("method", "path", "operation"), OWN)
async def test_the_key_of_a_customer_is_admitted_for_that_customer(
    site: Site, method: str, path: str, operation: Operation
) -> None:
    headers = await site.bound(site.ids["customer_id"])
    response = await site.call(method, path, operation, headers)
    assert response.is_success or response.status_code == 409, response.text


@pytest.mark.parametrize(("method", "path", "operation"), OWN)
async def test_to_the_key_of_another_customer_the_thing_does_not_exist(
    site: Site, method: str, path: str, operation: Operation
) -> None:
    headers = await site.bound(site.others["customer_id"])
    if path == "/api/v1/orders" and method == "GET":
        path += "?customer_id={customer_id}"
    response = await site.call(method, path, operation, headers)
    kind = "unknown-order" if "{order_id}" in path else "unknown-customer"
    refusal = problem(response, 404, kind)
    name = "order_id" if "{order_id}" in path else "customer_id"
    unknown = str(uuid4())
    nobody = await site.call(method, path, operation, headers, **{name: unknown})
    assert nobody.status_code == 404
    assert nobody.json()["detail"].replace(unknown, "") == refusal["detail"].replace(
        site.ids[name], ""
    )


@pytest.mark.parametrize(("method", "path", "operation"), AS_OF_READS)
async def test_as_of_reads_are_open_to_whom_reads_of_now_are(
    site: Site, method: str, path: str, operation: Operation
) -> None:
    """To another customer's key the thing is as unknown as one that never was."""
    live = await site.call(method, path, operation, site.admin)
    path = f"{path}?as_of_position={live.headers['ledger-position']}"
    for ids, status in ((site.ids, 200), (site.others, 404)):
        headers = await site.bound(ids["customer_id"])
        assert (await site.call(method, path, operation, headers)).status_code == status
    name = "order_id" if "{order_id}" in path else "customer_id"
    headers = await site.bound(site.others["customer_id"])
    theirs = await site.call(method, path, operation, headers)
    nobodys = await site.call(method, path, operation, headers, **{name: (unknown := str(uuid4()))})
    assert theirs.json()["type"] == nobodys.json()["type"]
    assert theirs.json()["detail"].replace(site.ids[name], unknown) == nobodys.json()["detail"]


@pytest.mark.parametrize(("method", "path", "operation"), NOT_OWN)
async def test_the_key_of_a_customer_is_refused_for_what_is_not_about_one_customer(
    site: Site, method: str, path: str, operation: Operation
) -> None:
    headers = await site.bound(site.ids["customer_id"])
    response = await site.call(method, path, operation, headers)
    refused(response, 403, "bound-key", "insufficient_scope")


async def test_a_customers_key_lists_that_customers_orders_only(site: Site) -> None:
    headers = await site.bound(site.ids["customer_id"])
    response = await site.http.get("/api/v1/orders?limit=500", headers=headers)
    orders = response.json()["items"]
    assert {order["customer_id"] for order in orders} == {site.ids["customer_id"]}


async def test_a_customers_key_with_admin_is_still_bound(site: Site) -> None:
    headers = await site.key(Scope.ADMIN, customer_id=site.ids["customer_id"])
    path = f"/api/v1/customers/{site.others['customer_id']}"
    problem(await site.http.get(path, headers=headers), 404, "unknown-customer")


async def test_two_clients_may_use_the_same_idempotency_key(site: Site) -> None:
    ids = {name: site.ids[name] for name in ("customer_id", "product_id")}
    same = {"Idempotency-Key": str(uuid4())}
    first, again, other = [
        (await site.http.post("/api/v1/orders", json=ids, headers={**key, **same})).json()
        for key in (site.admin, site.admin, await site.bound(ids["customer_id"]))
    ]
    assert first["order_id"] == again["order_id"] != other["order_id"]


async def test_the_submitter_is_recorded(site: Site) -> None:
    prefix = site.admin["Authorization"].split("_")[1]
    engine = engine_of(site.stack.settings, "migrate")
    async with engine.connect() as connection:
        result = await connection.exec_driver_sql("SELECT meta FROM events WHERE position = 1")
        assert f'"submitter":"key:{prefix}"'.encode() in bytes(result.scalar_one())
    await engine.dispose()


async def test_revoking_a_key_counts_within_seconds(site: Site) -> None:
    headers = await site.key(Scope.ORDERS_READ)
    assert (await site.http.get("/api/v1/orders", headers=headers)).status_code == 200
    await revoke(site.stack.settings, headers["Authorization"].split("_")[1])

    async def is_refused() -> bool:
        return (await site.http.get("/api/v1/orders", headers=headers)).status_code == 401

    await eventually(is_refused, "a revoked key is refused")


async def test_a_stream_ends_when_its_key_is_revoked(site: Site) -> None:
    headers = await site.key(Scope.LEDGER_READ) | {"Accept": "text/event-stream"}
    async with site.http.stream("GET", "/api/v1/events", headers=headers) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        await revoke(site.stack.settings, headers["Authorization"].split("_")[1])
        async with asyncio.timeout(DEADLINE_S):
            async for _ in stream.aiter_bytes():
                pass


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "Basic dTpw")],
        [("Authorization", "lk_")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer lk_")],
        [("Authorization", "Bearer lk_000000000000_x")],
        [("Authorization", "Bearer a.b.c")],
        [("Authorization", b"Bearer \xff")],
        [("Authorization", "Bearer lk_x"), ("Authorization", "Bearer lk_y")],
    ],
)
async def test_a_header_without_a_usable_key_is_refused(site: Site, headers: Any) -> None:
    response = await site.http.get("/api/v1/orders", headers=headers)
    refused(response, 401, "bad-key", "invalid_token")


async def test_a_secret_is_in_no_log_and_in_no_table(site: Site) -> None:
    secret = site.admin["Authorization"][-43:]
    for name in site.stack.processes:
        assert secret not in site.stack.log_path(name).read_text()
    engine = engine_of(site.stack.settings, "migrate")
    async with engine.connect() as connection:
        keys = (await connection.exec_driver_sql("SELECT * FROM api_keys")).all()
        metas = (await connection.exec_driver_sql("SELECT meta, data FROM events")).all()
    await engine.dispose()
    assert not [cell for cell in chain(*keys, *metas) if secret.encode() in _bytes(cell)]


def _bytes(cell: object) -> bytes:
    return cell if isinstance(cell, bytes) else str(cell).encode()


async def test_the_api_may_not_change_keys(site: Site) -> None:
    engine = engine_of(site.stack.settings, "api")
    async with engine.connect() as connection:
        with pytest.raises(Exception, match="denied"):
            await connection.exec_driver_sql("UPDATE api_keys SET revoked_at_us = NULL")
    await engine.dispose()


async def test_health_says_that_keys_are_required(site: Site) -> None:
    assert (await site.http.get("/health/ready")).json()["keys_required"] is True


async def test_a_refused_request_leaves_its_connection_usable(site: Site) -> None:
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(base_url=site.stack.url, limits=limits) as http:
        for _ in range(3):
            response = await http.post("/api/v1/orders", content=b"x" * 60_000)
            refused(response, 401, "no-key", None)
            assert (await http.get("/api/v1/orders", headers=site.admin)).status_code == 200
