"""What clients see of a customer whose name was erased, and what they can still do."""

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import httpx
import pytest

from cli.commands.erase_customer import erase
from tests.harness import Stack, free_port, start_stack
from tests.private_servers import Servers

from .client import WAIT, Body, balance, list_product, order, problem

PROCESSES = ("api", "writer", "projector")


@pytest.fixture(scope="module")
async def talking(servers: Servers) -> AsyncIterator[Stack]:
    """Processes that log all they can."""
    stack = await start_stack(servers, log_level="DEBUG", access_log=True)
    yield stack
    await stack.stop()


@pytest.fixture
def http(talking: Stack) -> httpx.AsyncClient:
    """A client of them."""
    return talking.http


def a_name() -> str:
    return f"Zoë Quartermaine {uuid4()}"


async def register(http: httpx.AsyncClient, name: str, key: str) -> httpx.Response:
    """Register a customer under an Idempotency-Key."""
    headers = {**WAIT, "Idempotency-Key": key}
    return await http.post("/customers", json={"username": name}, headers=headers)


async def test_an_erased_customer_has_a_wallet_and_no_name(
    talking: Stack, http: httpx.AsyncClient
) -> None:
    made = (await register(http, a_name(), str(uuid4()))).json()
    erasure = await erase(talking.settings, UUID(made["customer_id"]))
    path = f"/customers/{made['customer_id']}"
    now = (await http.get(path, params={"min_position": erasure.position})).json()
    assert now == made | {"username": "erased", "position": erasure.position}
    then = (await http.get(path, params={"as_of_position": made["position"]})).json()
    assert then["username"] == "erased"
    bought = await order(http, made["customer_id"], await list_product(http, "10.00"))
    assert bought["status"] == "COMPLETED"
    assert await balance(http, made["customer_id"]) == 4990


async def test_a_retry_of_a_registration_gives_the_first_answer_after_the_erasure_too(
    talking: Stack, http: httpx.AsyncClient
) -> None:
    name, key = a_name(), str(uuid4())
    made = (await register(http, name, key)).json()
    await erase(talking.settings, UUID(made["customer_id"]))
    again = await register(http, name, key)
    assert again.status_code == 201
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["customer_id"] == made["customer_id"]
    assert again.json()["username"] == "erased"


async def test_a_process_that_never_had_the_name_compares_the_rest(
    talking: Stack, http: httpx.AsyncClient
) -> None:
    kept, gone, key = str(uuid4()), str(uuid4()), str(uuid4())
    name = a_name()
    await register(http, name, kept)
    made = (await register(http, name, gone)).json()
    await erase(talking.settings, UUID(made["customer_id"]))
    other = Stack(talking.settings.model_copy(update={"api_port": free_port()}))
    other.start("api")
    try:
        await other.ready()
        assert (await register(other.http, name, kept)).status_code == 201
        problem(await register(other.http, a_name(), kept), 422, "key-reused")
        answers = [await register(other.http, each, gone) for each in (name, a_name())]
        assert [answer.status_code for answer in answers] == [201, 201]
        assert {answer.json()["customer_id"] for answer in answers} == {made["customer_id"]}
        assert (await register(other.http, a_name(), key)).status_code == 201
    finally:
        await other.stop()


async def feed(http: httpx.AsyncClient, after: int) -> list[Body]:
    """Every event after a position."""
    events: list[Body] = (await http.get(f"/events?after={after}&limit=500")).json()
    return events


async def test_the_feed_and_every_log_are_without_the_name(
    talking: Stack, http: httpx.AsyncClient
) -> None:
    name = a_name()
    made = (await register(http, name, str(uuid4()))).json()
    await http.post("/customers", json={"username": name, "nickname": name})
    erasure = await erase(talking.settings, UUID(made["customer_id"]))
    events = await feed(http, made["position"] - 1)
    assert [event["type"] for event in events] == ["customer.registered", "customer.erased"]
    assert events[0]["schemaversion"] == 2
    assert set(events[0]["data"]) == {"opening_balance_minor", "sealed_username"}
    assert (events[1]["data"], events[1]["position"]) == ({}, erasure.position)
    assert "Quartermaine" not in str(events)
    for process in PROCESSES:
        said = talking.log_path(process).read_text()
        assert said, f"{process} logs nothing: this proves nothing"
        assert "Quartermaine" not in said
