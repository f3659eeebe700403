"""What holds for every route: slashes, methods, unknown paths, and errors that are problems."""

import json
import re
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
import pytest

from api.app import ROUTES
from api.http.connection import MAX_TARGET
from api.openapi import BODIES
from api.operation import PREFIX

from .client import list_product, order, problem, register
from .test_connections import exchange

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
        "/api/v1/orders/..",
        "/api/v1%2Forders",
        "/api%2fv1/orders",
        "/api/v1/orders%2F",
        "/api/v1/orders%2f%2F",
        "/%2Fapi/v1/orders",
        "/docs%2Fstart.js",
        "/api/v1/products/../orders/x/y",
        "/api/v1/" + "x" * 5000,
    ],
)
async def test_an_unknown_path_is_refused(http: httpx.AsyncClient, path: str) -> None:
    for method in ("GET", "POST"):
        problem(await http.request(method, root(http) + path), 404, "no-such-path")


@pytest.mark.parametrize(
    "path", ["/problems/bad-json%2F", "/problems/%2Fbad-json", "/docs/..%2Fstart.js"]
)
async def test_a_name_with_an_encoded_slash_is_another_name(
    http: httpx.AsyncClient, path: str
) -> None:
    problem(await http.get(root(http) + path), 404, "no-such-path")


@pytest.mark.parametrize(
    "segment",
    [
        "%2F",
        "%2f",
        "..",
        "%2e%2e",
        ".",
        "%2E",
        "%252F",
        "%00",
        "%",
        "%zz",
        f"{UUID(int=7)}%2Fcancel",
    ],
)
async def test_an_encoded_character_is_a_part_of_its_segment(
    http: httpx.AsyncClient, segment: str
) -> None:
    """Not a separator, nor a step up: a proxy may have allowed the path for what it says."""
    head = f"GET {PREFIX}/orders/{segment} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await exchange(http, head.encode())
    assert answer.startswith(b"HTTP/1.1 422 "), answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["errors"][0]["field"] == "order_id"


async def test_an_encoded_letter_is_the_letter(http: httpx.AsyncClient) -> None:
    product_id = await list_product(http)
    encoded = "".join(f"%{ord(character):02x}" for character in product_id)
    for path in (f"/%70roducts/{encoded}", f"/products/{encoded}/"):
        assert (await http.get(path)).json()["product_id"] == product_id


@pytest.mark.parametrize("path", ["/%ff", "/api/v1/orders/%C3", "/api/v1/%ED%A0%80"])
async def test_a_path_that_is_not_utf_8_is_refused(http: httpx.AsyncClient, path: str) -> None:
    problem(await http.get(root(http) + path), 400, "bad-request")


@pytest.mark.parametrize("query", ["after=%ff", "%C3=1", "status=%ED%A0%80", "a=%F0%9F"])
async def test_a_query_that_is_not_utf_8_is_refused(http: httpx.AsyncClient, query: str) -> None:
    problem(await http.get(f"/orders?{query}"), 400, "bad-request", "query")


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
    passing = {"date", "x-request-id", *(["content-length"] if path == "/metrics" else [])}
    same = [
        {(n, v) for n, v in answer.headers.items() if n not in passing} for answer in (got, head)
    ]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("method", "path"), [(m, p) for m, p in CALLS if m == "GET" and "_id}" in p]
)
async def test_head_is_refused_like_get_without_the_body(
    http: httpx.AsyncClient, method: str, path: str
) -> None:
    url = root(http) + path.format(**dict.fromkeys(NAMES, "7"))
    got, head = await http.request(method, url), await http.head(url)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
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
    digits, full_width = "1" * 32, "\uff11" * 8 + "-1111-1111-1111-111111111111"
    for text in ("7", digits, f"----{digits}", f"{digits}----", full_width, f"{{{uuid4()}}}"):
        url = root(http) + path.format(**dict.fromkeys(NAMES, text))
        problem(await http.request(method, url), 422, "invalid-fields", name)


@pytest.mark.parametrize("text", [f"----{'1' * 32}", "1" * 32, "\u0661" * 36])
async def test_an_id_of_a_query_that_has_another_form_is_named(
    http: httpx.AsyncClient, text: str
) -> None:
    response = await http.get("/orders", params={"product_id": text})
    problem(response, 422, "invalid-fields", "product_id")


async def test_an_id_may_be_in_capital_letters(http: httpx.AsyncClient) -> None:
    """They are the same UUID (RFC 9562, 4); answers have small letters."""
    product_id = await list_product(http)
    assert (await http.get(f"/products/{product_id.upper()}")).json()["product_id"] == product_id


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
