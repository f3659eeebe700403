"""What holds for every route: slashes, methods, unknown paths, and errors that are problems."""

import re
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest

from api.app import ROUTES
from api.http.middleware import MAX_TARGET
from api.openapi import BODIES
from api.operation import PREFIX

from .client import list_product, order, problem, register

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
CALLS = [(method, path) for path, handlers in ROUTES.items() for method in handlers]
NAMES = ("order_id", "product_id", "customer_id")
FIXED = {"asset": "start.js", "kind": "bad-json"}


def root(http: httpx.AsyncClient) -> str:
    """The URL below which ROUTES are."""
    url = urlsplit(str(http.base_url))
    return f"{url.scheme}://{url.netloc}"


def filled(path: str) -> str:
    """The path with ids that nobody was given."""
    return path.format(**dict.fromkeys(NAMES, uuid4()), **FIXED)


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_a_trailing_slash_makes_no_difference(
    http: httpx.AsyncClient, method: str, path: str
) -> None:
    url = root(http) + filled(path)
    plain, slashed = [await http.request(method, u) for u in (url, f"{url}/")]
    assert plain.status_code == slashed.status_code
    assert not plain.is_redirect
    if plain.is_error:
        assert plain.json()["type"] == slashed.json()["type"]


async def test_orders_may_be_placed_with_a_trailing_slash(http: httpx.AsyncClient) -> None:
    body = {"customer_id": str(uuid4()), "product_id": str(uuid4())}
    assert (await http.post("/orders/", json=body)).status_code == 202


@pytest.mark.parametrize("path", ROUTES)
async def test_an_unknown_method_is_refused_with_the_allowed_ones(
    http: httpx.AsyncClient, path: str
) -> None:
    known = {"OPTIONS", *ROUTES[path]} | ({"HEAD"} if "GET" in ROUTES[path] else set())
    for method in set(METHODS) - known:
        response = await http.request(method, root(http) + filled(path))
        problem(response, 405, "method-not-allowed") if method != "HEAD" else None
        assert response.status_code == 405
        assert set(response.headers["allow"].split(", ")) == known


@pytest.mark.parametrize("path", ["/api/v1/orders", "/nowhere", "/health/live"])
async def test_a_method_that_no_path_has_is_refused_as_unknown(
    http: httpx.AsyncClient, path: str
) -> None:
    problem(await http.request("PROPFIND", root(http) + path), 501, "unknown-method")


@pytest.mark.parametrize(
    "path",
    [
        "/" + "x" * MAX_TARGET,
        f"{PREFIX}/orders/{'7' * MAX_TARGET}",
        f"{PREFIX}/orders?after={'7' * MAX_TARGET}",
        f"{PREFIX}/orders?{'&' * MAX_TARGET}",
    ],
)
async def test_a_target_that_is_too_long_is_refused(http: httpx.AsyncClient, path: str) -> None:
    refused = problem(await http.get(root(http) + path), 414, "target-too-long")
    assert str(MAX_TARGET) in refused["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/x",
        "/api",
        "/api/v1",
        "/api/v2/orders",
        "/api/v1/order",
        "/orders",
        "/api/v1/orders//",
        "/api/v1//orders",
        "/api/v1/orders/x/y/z",
        "/health",
        "/API/V1/ORDERS",
        "/api/v1/orders%00",
        "/%ff",
        "/api/v1/orders/..",
        "/api/v1/" + "x" * 5000,
    ],
)
async def test_an_unknown_path_is_refused(http: httpx.AsyncClient, path: str) -> None:
    for method in ("GET", "POST"):
        problem(await http.request(method, root(http) + path), 404, "no-such-path")


@pytest.mark.parametrize(
    "path", [path for path, ops in ROUTES.items() if "GET" in ops and path != "/metrics"]
)
async def test_head_answers_like_get_without_the_body(http: httpx.AsyncClient, path: str) -> None:
    customer_id, product_id = await register(http), await list_product(http)
    ids = {
        "customer_id": customer_id,
        "product_id": product_id,
        "order_id": (await order(http, customer_id, product_id))["order_id"],
        **FIXED,
    }
    url = root(http) + path.format(**ids)
    got, head = await http.get(url), await http.head(url)
    assert head.status_code == got.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":
        assert head.headers["content-length"] == got.headers["content-length"]


@pytest.mark.parametrize(
    "path", [path for path, handlers in ROUTES.items() if "GET" in handlers and PREFIX in path]
)
async def test_every_answer_from_a_view_has_its_position(
    http: httpx.AsyncClient, path: str
) -> None:
    customer_id, product_id = await register(http), await list_product(http)
    placed = await order(http, customer_id, product_id)
    ids = {"customer_id": customer_id, "product_id": product_id, "order_id": placed["order_id"]}
    response = await http.get(root(http) + path.format(**ids))
    assert int(response.headers["ledger-position"]) >= placed["position"]
    problem(
        await http.get(root(http) + path.format(**ids), params={"min_position": "x"}),
        422,
        "invalid-fields",
        "min_position",
    )


@pytest.mark.parametrize(("method", "path"), [(m, p) for m, p in CALLS if "_id}" in p])
async def test_a_path_id_that_is_not_a_uuid_is_named(
    http: httpx.AsyncClient, method: str, path: str
) -> None:
    name = next(name for name in NAMES if name in path)
    url = root(http) + path.format(**dict.fromkeys(NAMES, "7"))
    problem(await http.request(method, url), 422, "invalid-fields", name)


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_only_declared_query_parameters_are_accepted(
    http: httpx.AsyncClient, method: str, path: str
) -> None:
    operation = ROUTES[path][method]
    body = {"json": BODIES[operation.body]} if operation.body else {}
    url = f"{root(http)}{filled(path)}?nonsense=1"
    refused = problem(await http.request(method, url, **body), 422, "invalid-fields", "nonsense")
    _, _, known = refused["detail"].partition("known here: ")
    assert set(known.split(", ") if known else ()) == set(operation.query)


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_every_route_has_a_file_of_tests(method: str, path: str) -> None:
    """Which names it in its first line."""
    call = f"{method} {path.removeprefix(PREFIX)}"
    files = Path(__file__).parents[1].glob("*/test_*.py")
    named = [re.findall(r"[A-Z]+ /[^\s,:?]*", file.read_text().split("\n")[0]) for file in files]
    calls = {name.rstrip('."') for names in named for name in names}
    last = path.strip("/").replace("{", "").replace("}", "").replace("_id", "").split("/")[-1]
    assert call in calls, f"write tests/api/test_{method.lower()}_{last}.py about {call}"
