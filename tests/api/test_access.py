"""Tokens, rate limits and origins, at an API that is served."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from api.auth.principal import Scope
from cli.commands.keys import create, rotate
from tests.harness import Stack, engine_of, eventually, start_stack
from tests.private_servers import Servers

from .client import problem
from .test_tokens import AUDIENCE, CUSTOMER, ISSUER, PRIVATE, pem, signed

ORIGIN = "https://shop.example"
RATE, CONCURRENCY = 20, 3


def issuer_key(directory: Path) -> Path:
    path = directory / "key.pem"
    path.write_bytes(pem(PRIVATE["EdDSA"]))
    return path


@pytest.fixture(scope="module")
async def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """An API with an issuer, tight limits and one origin."""
    path = issuer_key(tmp_path_factory.mktemp("issuer"))
    running = await start_stack(
        servers,
        auth="required",
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
        jwt_key_file=path,
        rate_per_s=RATE,
        concurrency=CONCURRENCY,
        cors_origins=f"{ORIGIN} https://other.example",
    )
    yield running
    await running.stop()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def new_key(stack: Stack, customer_id: str | None = None) -> str:
    bound = UUID(customer_id) if customer_id else None
    _, parts = await create(stack.settings, "test", (Scope.ADMIN,), bound)
    return str(parts)


async def test_a_token_is_accepted_like_an_api_key(stack: Stack) -> None:
    async def get(path: str, token: str) -> httpx.Response:
        return await stack.http.get(path, headers=bearer(token))

    assert (await get("/orders", signed())).status_code == 200
    problem(await get("/orders", signed(scope="openid")), 403, "missing-scope")
    problem(await get("/orders", signed(aud="another")), 401, "bad-key")
    own = signed(customer_id=CUSTOMER)
    assert (await get("/orders", own)).json()["items"] == []
    other = "00000000-0000-4000-8000-000000000000"
    problem(await get(f"/customers/{other}/orders", own), 404, "unknown-customer")


async def test_the_subject_of_a_token_is_recorded(stack: Stack) -> None:
    token = signed(scope="wallets:write", sub="bob")
    response = await stack.http.post("/customers", json={"username": "b"}, headers=bearer(token))
    engine = engine_of(stack.settings, "migrate")
    async with engine.connect() as connection:
        result = await connection.exec_driver_sql(
            "SELECT meta FROM events WHERE position = %s", (response.json()["position"],)
        )
        assert b'"submitter":"jwt:bob"' in bytes(result.scalar_one())
    await engine.dispose()


async def test_idempotency_keys_outlive_the_rotation_of_an_api_key(stack: Stack) -> None:
    old = await new_key(stack)
    _, parts = await rotate(stack.settings, old.split("_")[1], 60, None)
    ids = []
    for key in (old, str(parts)):
        headers = bearer(key) | {"Idempotency-Key": "once"}
        response = await stack.http.post("/customers", json={"username": "c"}, headers=headers)
        ids.append(response.json()["customer_id"])
    assert ids[0] == ids[1]


async def test_the_rate_limit_of_one_api_key_does_not_touch_another(stack: Stack) -> None:
    first, second = bearer(await new_key(stack)), bearer(await new_key(stack))
    answers = [await stack.http.get("/orders", headers=first) for _ in range(RATE * 4)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    problem(refused[0], 429, "too-many-requests")
    assert int(refused[0].headers["retry-after"]) >= 1
    assert (await stack.http.get("/orders", headers=second)).status_code == 200

    async def is_served() -> bool:
        return (await stack.http.get("/orders", headers=first)).status_code == 200

    await eventually(is_served, "requests are served again", 3)


async def test_more_requests_at_once_than_allowed_are_refused(stack: Stack) -> None:
    headers = bearer(await new_key(stack))
    waiting = [
        stack.http.get("/orders?min_position=1000000000", headers=headers)
        for _ in range(CONCURRENCY + 1)
    ]
    answers = [answer.status_code for answer in await asyncio.gather(*waiting)]
    assert sorted(answers) == [*[409] * CONCURRENCY, 429]
    assert (await stack.http.get("/orders", headers=headers)).status_code == 200


async def test_a_known_api_key_works_during_a_flood_of_made_up_ones(stack: Stack) -> None:
    headers = bearer(await new_key(stack))
    assert (await stack.http.get("/orders", headers=headers)).status_code == 200
    made_up = [bearer(f"lk_{number:012x}_{'x' * 43}") for number in range(300)]
    answers = await asyncio.gather(*(stack.http.get("/orders", headers=h) for h in made_up))
    assert {answer.status_code for answer in answers} <= {401, 503}
    assert (await stack.http.get("/orders", headers=headers)).status_code == 200


async def test_a_page_of_a_known_origin_may_call(stack: Stack) -> None:
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,idempotency-key,prefer",
    }
    preflight = await stack.http.options("/orders", headers=asked)
    assert (preflight.status_code, preflight.content) == (204, b"")
    assert "content-type" not in preflight.headers
    for name in ("x-request-id", "x-content-type-options", "cache-control"):
        assert name in preflight.headers
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-credentials" not in preflight.headers
    answer = await stack.http.get("/products", headers={"Origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "Ledger-Position" in answer.headers["access-control-expose-headers"]
    refused = await stack.http.get("/orders", headers={"Origin": ORIGIN})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == ORIGIN


@pytest.mark.parametrize("names", ["", ",", "prefer,, ,", ", authorization"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PATCH"])
async def test_a_preflight_may_ask_for_any_method_and_leave_names_of_headers_empty(
    stack: Stack, method: str, names: str
) -> None:
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": names}
    answer = await stack.http.options("/orders", headers={"Origin": ORIGIN, **asked})
    assert answer.status_code == 204, answer.text


async def test_pages_of_known_origins_and_of_the_api_itself_may_post(stack: Stack) -> None:
    headers = bearer(signed(scope="wallets:write"))
    own = f"http://{stack.http.base_url.netloc.decode()}"
    for page, status in (
        ({"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"}, 202),
        ({"Origin": own}, 202),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null", "Sec-Fetch-Site": "cross-site"}, 403),
    ):
        path, given = "/customers", {**headers, **page, "Prefer": "respond-async"}
        answer = await stack.http.post(path, json={"username": "d"}, headers=given)
        assert answer.status_code == status, (page, answer.text)
        allowed = answer.headers.get("access-control-allow-origin")
        assert allowed == (ORIGIN if page["Origin"] == ORIGIN else None)


async def test_a_page_of_another_origin_may_not_call(stack: Stack) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    refused = problem(
        await stack.http.options("/orders", headers=asked), 403, "cors-refused", "Origin"
    )
    assert [error["field"] for error in refused["errors"]] == ["Origin"]
    answer = await stack.http.get("/products", headers=asked)
    assert "access-control-allow-origin" not in answer.headers
    assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Access-Control-Request-Method", "DELETE"),
        ("Access-Control-Request-Headers", "authorization, x-other"),
    ],
)
async def test_a_preflight_that_is_refused_is_a_problem_that_says_why(
    stack: Stack, header: str, value: str
) -> None:
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST", header: value}
    answer = await stack.http.options("/orders", headers={**asked, "X-Request-Id": "mine"})
    assert problem(answer, 403, "cors-refused", header)["instance"] == "/api/v1/orders"
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "Origin" in answer.headers["vary"]


async def test_problems_of_all_kinds_can_be_read_by_the_page(stack: Stack) -> None:
    for path in ("/orders", "/nowhere", "/orders?x=1"):
        answer = await stack.http.get(path, headers={"Origin": ORIGIN})
        assert answer.is_client_error
        assert answer.headers["access-control-allow-origin"] == ORIGIN
