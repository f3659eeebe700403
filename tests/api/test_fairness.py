"""Revocation and fairness at a served API: what one client sends, or a stranger, harms no other."""

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from uuid import UUID, uuid4

import httpx
import pytest

from api.auth.api_keys import FRESH_S
from api.auth.principal import Scope
from api.reads.event_stream import MAX_STREAMS_OF_CLIENT
from cli.commands.keys import create, revoke
from tests.harness import DEADLINE_S, Stack, engine_of, eventually, free_port, start_stack
from tests.private_servers import Servers
from tests.proxy import Proxy, open_proxy

from .client import WAIT, problem
from .streaming import STREAM
from .test_access import bearer

Headers = dict[str, str]


@pytest.fixture(scope="module")
async def stack(servers: Servers) -> AsyncIterator[Stack]:
    """An API that asks for keys, and has the limits that it comes with."""
    running = await start_stack(servers, auth="required")
    yield running
    await running.stop()


@pytest.fixture(scope="module")
async def database(stack: Stack) -> AsyncIterator[Proxy]:
    """What another API process of the ledger reaches the database through."""
    async with open_proxy(stack.settings.db_port) as proxy:
        yield proxy


async def key(stack: Stack, scope: Scope = Scope.ADMIN, customer_id: str | None = None) -> Headers:
    bound_to = UUID(customer_id) if customer_id else None
    _, parts = await create(stack.settings, "test", (scope,), bound_to)
    return bearer(str(parts))


def prefix(headers: Headers) -> str:
    return headers["Authorization"].split("_")[1]


@asynccontextmanager
async def in_the_background(
    send: Callable[[], Awaitable[object]], tasks: int
) -> AsyncIterator[None]:
    """Go on sending, from so many tasks, until the block ends."""

    async def go_on() -> None:
        while True:
            await send()

    running = [asyncio.create_task(go_on()) for _ in range(tasks)]
    try:
        yield
        for task in running:
            assert not task.done(), task.exception()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_a_revoked_key_is_refused_in_time_during_a_flood_of_made_up_ones(
    stack: Stack,
) -> None:
    headers, kept = await key(stack), await key(stack)
    assert (await stack.http.get("/orders", headers=headers)).status_code == 200
    numbers, answers = itertools.count(), set[int]()

    async def made_up() -> None:
        secret = bearer(f"lk_{next(numbers):012x}_{'x' * 43}")
        answers.add((await stack.http.get("/orders", headers=secret)).status_code)

    async def is_refused() -> bool:
        return (await stack.http.get("/orders", headers=headers)).status_code == 401

    async with in_the_background(made_up, 32):
        await eventually(lambda: _reached(numbers, 300), "a flood")
        await revoke(stack.settings, prefix(headers))
        await eventually(is_refused, "the revoked key is refused", FRESH_S)
        assert (await stack.http.get("/orders", headers=kept)).status_code == 200
        new = await key(stack)
        await eventually(lambda: _is_served(stack, new), "a new key is known", FRESH_S)
    assert answers <= {401, 503}


async def _reached(numbers: "itertools.count[int]", count: int) -> bool:
    return next(numbers) > count


async def _is_served(stack: Stack, headers: Headers) -> bool:
    return (await stack.http.get("/orders", headers=headers)).status_code == 200


@pytest.mark.parametrize("fault", [Proxy.cut, Proxy.stall])
async def test_without_the_database_orders_of_known_keys_are_taken_and_revocation_follows(
    stack: Stack, database: Proxy, fault: Callable[[Proxy], None]
) -> None:
    """Of a key that was never used, too; of a process that never saw the database, no key's."""
    headers = await key(stack)
    settings = stack.settings.model_copy(update={"api_port": free_port(), "db_port": database.port})
    api = Stack(settings)
    body = {"customer_id": str(UUID(int=1)), "product_id": str(UUID(int=2))}
    try:
        api.start("api")
        await api.ready()
        fault(database)

        async def is_away() -> bool:
            return (await api.http.get("/products")).status_code == 503

        await eventually(is_away, "the database is away")
        accepted = await api.http.post("/orders", json=body, headers=headers)
        assert accepted.status_code == 202, accepted.text
        unknown = bearer(f"lk_{'0' * 12}_{'x' * 43}")

        async def cannot_be_checked() -> bool:
            answer = await api.http.post("/orders", json=body, headers=unknown)
            assert answer.json()["type"] == "/problems/keys-unavailable", answer.text
            return True

        await eventually(cannot_be_checked, "an unknown key")
        await revoke(stack.settings, prefix(headers))
        await database.heal()

        async def is_refused() -> bool:
            answer = await api.http.post("/orders", json=body, headers=headers)
            return answer.status_code == 401

        await eventually(is_refused, "the key is refused once the database is back", 2 * FRESH_S)
        database.cut()
        api.kill("api")
        api.start("api")

        async def is_served() -> bool:
            with suppress(httpx.TransportError):
                return (await api.http.get(f"{api.url}/docs")).status_code == 200
            return False

        await eventually(is_served, "the API serves again")
        problem(await api.http.post("/orders", json=body, headers=headers), 503, "keys-unavailable")
        await database.heal()
    finally:
        await database.heal()
        await api.stop()


async def test_a_client_that_sends_batches_without_pause_keeps_nobody_else_waiting(
    stack: Stack,
) -> None:
    admin = await key(stack)
    register = {"username": "ann"}
    made = await stack.http.post("/customers", json=register, headers={**admin, **WAIT})
    customer_id = made.json()["customer_id"]
    bound = await key(stack, Scope.ORDERS_WRITE, customer_id)
    order = {"customer_id": customer_id, "product_id": str(UUID(int=1))}
    statuses: list[int] = []

    async def batch() -> None:
        answer = await stack.http.post(
            "/orders/batch", json={"orders": [order] * 1000}, headers=bound
        )
        statuses.append(answer.status_code)
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1

    async def slowest_of_ten() -> float:
        times = []
        for _ in range(10):
            began = time.monotonic()
            answer = await stack.http.post("/orders", json=order, headers=admin)
            times.append(time.monotonic() - began)
            assert answer.status_code == 202, answer.text
        return statistics.quantiles(times, n=10)[-1]

    began = time.monotonic()
    async with in_the_background(batch, 10):
        await eventually(lambda: _any(statuses), "the first batch")
        beside = await slowest_of_ten()
        decided = await stack.http.post("/orders", json=order, headers={**admin, **WAIT})
    taken_s = time.monotonic() - began
    problem(decided, 404, "unknown-product")
    assert 202 in statuses
    assert set(statuses) <= {202, 429}
    # What was accepted is what the rate allows: a burst, a batch that goes beyond it, and the rest.
    assert statuses.count(202) * 1000 <= 3000 + 2000 * taken_s
    assert "too-many-requests (key:" in stack.log_path("api").read_text()
    # A batch that is parsed takes some 50 ms, and they come one by one; the rest is the machine's.
    assert beside < 2.0


async def _any(statuses: list[int]) -> bool:
    return bool(statuses)


async def test_one_key_can_have_a_share_of_the_streams_and_no_more(stack: Stack) -> None:
    headers, other = await key(stack), await key(stack)
    async with httpx.AsyncClient(
        base_url=str(stack.http.base_url), timeout=DEADLINE_S, limits=httpx.Limits()
    ) as http:

        async def open_stream(who: Headers) -> httpx.Response:
            request = http.build_request("GET", "/events", headers={**STREAM, **who})
            return await http.send(request, stream=True)

        opened = await asyncio.gather(
            *(open_stream(headers) for _ in range(MAX_STREAMS_OF_CLIENT + 5))
        )
        statuses = [answer.status_code for answer in opened]
        assert [statuses.count(200), statuses.count(429)] == [MAX_STREAMS_OF_CLIENT, 5]
        answer = await open_stream(other)
        assert answer.status_code == 200
        for response in (*opened, answer):
            await response.aclose()


async def test_strangers_who_read_lists_leave_turns_to_those_with_a_key(stack: Stack) -> None:
    headers = await key(stack)

    async def stranger() -> None:
        answer = await stack.http.get("/products?limit=500")
        assert answer.status_code in (200, 429, 503), answer.text

    async with in_the_background(stranger, 32):
        for _ in range(5):
            answer = await stack.http.get("/products?limit=500", headers=headers)
            assert answer.status_code == 200, answer.text


async def test_strangers_who_read_made_up_products_leave_connections_to_those_with_a_key(
    stack: Stack,
) -> None:
    headers = await key(stack)
    migrate, began = engine_of(stack.settings, "migrate"), itertools.count()

    async def stranger() -> None:
        next(began)
        answer = await stack.http.get(f"/products/{uuid4()}")
        assert answer.status_code == 503, answer.text

    async with migrate.connect() as locking:
        # Any look-up of a product takes as long as it may.
        await locking.exec_driver_sql("LOCK TABLES stock WRITE")
        async with in_the_background(stranger, 64):
            await eventually(lambda: _reached(began, 128), "a flood")
            answer = await stack.http.get(f"/orders/{uuid4()}", headers=headers)
            problem(answer, 404, "unknown-order")
        await locking.exec_driver_sql("UNLOCK TABLES")
    await migrate.dispose()
