"""Too much, a broker in need, no database: each request has its answer, each 202 is decided."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import httpx
import pytest

from api.schemas import MAX_BATCH
from ledger.eventlog.records import Record
from ledger.messaging.publisher import MAX_WAITING
from ledger.messaging.topology import INBOX
from tests.api.client import problem
from tests.harness import Stack, broker_admin, eventually, make_ledger
from tests.ledger.naive_audit import audit
from tests.ledger.pipeline import Ledger, running_ledger
from tests.observability.test_metrics import memory_alarm
from tests.private_servers import Servers
from tests.proxy import Proxy, open_proxy
from tests.submissions import ANN, PEN, opening

ORDER: Final = {"customer_id": str(ANN), "product_id": str(PEN)}
CLIENTS: Final = 40
ORDERS_EACH: Final = 8
FEW: Final = 3
ANSWERED_WITHIN_S: Final = 60.0
REFUSED_WITHIN_S: Final = 8.0
WATCHED_S: Final = 4.0
"""Longer than one try to publish, and what comes of it, takes."""


@dataclass
class Shop:
    """A ledger whose processes all reach the servers through proxies; tests reach them directly."""

    stack: Stack
    ledger: Ledger
    broker: Proxy
    database: Proxy

    async def health(self) -> httpx.Response:
        """What the API says about itself."""
        return await self.stack.http.get(f"{self.stack.url}/health/ready")

    async def until_decided(self, order_ids: set[str]) -> list[Record]:
        """Wait until the ledger has a decision of each of these orders; it may have but one."""
        wanted = {UUID(order_id).bytes for order_id in order_ids}

        async def are_decided() -> bool:
            rows = await self.ledger.rows("SELECT stream_id FROM events WHERE cause_position > 0")
            return wanted <= {stream_id for (stream_id,) in rows}

        await eventually(are_decided, f"{len(wanted)} orders are decided", 60)
        records = await self.ledger.records()
        audit(records)
        counts = Counter(record.stream_id for record in records if record.cause_position)
        assert {counts[stream_id] for stream_id in wanted} == {1}
        return records


@pytest.fixture(scope="module")
async def shared(servers: Servers) -> AsyncIterator[Shop]:
    settings = await make_ledger(servers)
    async with (
        open_proxy(settings.amqp_port) as broker,
        open_proxy(settings.db_port) as database,
        running_ledger(settings) as ledger,
    ):
        ports = {"amqp_port": broker.port, "db_port": database.port}
        stack = Stack(settings.model_copy(update=ports))
        try:
            for name in ("writer", "projector", "api"):
                stack.start(name)
            await stack.ready()
            await ledger.put_events(opening(balance_minor=10**12, stock=10**9))
            yield Shop(stack, ledger, broker, database)
        finally:
            # At once: the proxies are in this process, which waits for the end of the others.
            for name in list(stack.processes):
                stack.kill(name)
            await stack.stop()


@pytest.fixture
async def shop(shared: Shop) -> AsyncIterator[Shop]:
    """The shared one; whatever a test breaks is mended for the next."""
    yield shared
    await shared.broker.heal()
    await shared.database.heal()
    if "writer" not in shared.stack.processes:
        shared.stack.start("writer")
    await shared.stack.ready()


async def test_what_is_accepted_without_database_is_decided_once_when_it_is_back(
    shop: Shop,
) -> None:
    http = shop.stack.http
    shop.database.cut()
    answers = await asyncio.gather(*[http.post("/orders", json=ORDER) for _ in range(300)])
    assert {answer.status_code for answer in answers} == {202}
    problem(await http.get("/products"), 503, "views-unavailable")
    ready = await shop.health()
    assert ready.status_code == 503
    assert int(ready.headers["retry-after"]) >= 1
    await shop.database.heal()
    await shop.until_decided({answer.json()["order_id"] for answer in answers})
    await shop.stack.ready()
    assert (await http.get("/products")).status_code == 200


async def test_more_than_may_wait_to_be_published_is_refused_and_the_rest_is_kept(
    shop: Shop,
) -> None:
    body = {"orders": [ORDER] * MAX_BATCH}
    first = await shop.stack.http.post("/orders/batch", json=body)
    shop.broker.delay(0.5)
    batches = 2 * MAX_WAITING // MAX_BATCH
    async with asyncio.timeout(ANSWERED_WITHIN_S):
        flood = [shop.stack.http.post("/orders/batch", json=body) for _ in range(batches)]
        accepted = accepted_or_refused([first, *await asyncio.gather(*flood)])
    await shop.broker.heal()
    placed = [order for answer in accepted for order in answer.json()["orders"]]
    await shop.until_decided({order["order_id"] for order in placed})


async def test_more_than_the_inbox_holds_is_refused_and_the_rest_is_kept(
    shop: Shop, servers: Servers
) -> None:
    http = shop.stack.http
    shop.stack.kill("writer")

    async def ask() -> list[httpx.Response]:
        return [await http.post("/orders", json=ORDER) for _ in range(ORDERS_EACH)]

    async with inbox_of(FEW, servers, shop.ledger), asyncio.timeout(ANSWERED_WITHIN_S):
        asked = await asyncio.gather(*[ask() for _ in range(CLIENTS)])
    accepted = accepted_or_refused([answer for answers in asked for answer in answers])
    shop.stack.start("writer")
    await shop.until_decided({answer.json()["order_id"] for answer in accepted})


@asynccontextmanager
async def inbox_of(messages: int, servers: Servers, ledger: Ledger) -> AsyncIterator[None]:
    """The inbox holds no more than so many messages."""
    path = f"/policies/{ledger.settings.amqp_vhost}/few"
    policy = {"pattern": INBOX, "definition": {"max-length": messages}, "apply-to": "queues"}
    async with broker_admin(servers) as http:
        (await http.put(path, json=policy)).raise_for_status()
        yield
        (await http.delete(path)).raise_for_status()


async def test_while_a_broker_in_need_takes_nothing_readiness_says_so_all_the_time(
    shop: Shop, servers: Servers
) -> None:
    """Not by turns: whoever asks at the wrong moment would send orders that have to be refused."""
    http, loop = shop.stack.http, asyncio.get_running_loop()

    async def refused() -> bool:
        answer = await http.post("/orders", json=ORDER)
        return answer.status_code == 503 and answer.json()["accepted"] == "no"

    with memory_alarm(servers):
        first = asyncio.create_task(http.post("/orders", json=ORDER))
        await eventually(refused, "the broker takes nothing")
        end = loop.time() + WATCHED_S
        while loop.time() < end:
            assert (await shop.health()).status_code == 503
            began = loop.time()
            refusal = problem(await http.post("/orders", json=ORDER), 503, "inbox-unavailable")
            assert refusal["accepted"] == "no"
            assert loop.time() - began < REFUSED_WITHIN_S
            await asyncio.sleep(0.1)
    await shop.stack.ready()
    # What was sent before the broker said so may have waited for too long by now.
    assert (await first).status_code in (202, 503)
    assert (await http.post("/orders", json=ORDER)).status_code == 202


def accepted_or_refused(answers: list[httpx.Response]) -> list[httpx.Response]:
    """Those that were accepted; each of the others was refused, with word when to come again."""
    accepted = [answer for answer in answers if answer.status_code == 202]
    refused = [answer for answer in answers if answer.status_code != 202]
    assert accepted
    assert refused
    assert {answer.status_code for answer in refused} <= {429, 503}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    return accepted
