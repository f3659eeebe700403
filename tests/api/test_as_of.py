"""?as_of_position= and ?as_of_time=: a route answers for ever what it answered then."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from api.auth.rate_limit import Client, Turns
from api.http.problems import Problem
from api.reads.slow_reads import MAX_READS, TURN_TIMEOUT_S, AsOfReads
from projections.as_of import AsOf, AsOfPosition, AsOfReader
from projections.views.wallets import WALLETS
from tests.harness import Stack, make_ledger
from tests.ledger.pipeline import running_ledger
from tests.private_servers import Servers

from .client import WAIT, cancel, exact, limit, list_product, order, post, problem, register

ROUTES = ("customers", "products", "orders")


@dataclass
class Recording:
    """The answers of three routes as things happened, and at which positions."""

    http: httpx.AsyncClient
    ids: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[str, int, dict[str, Any]]] = field(default_factory=list)

    async def record(self) -> None:
        """Read all routes, and remember the answers."""
        for route, thing_id in self.ids.items():
            response = await self.http.get(f"/{route}/{thing_id}")
            assert response.status_code == 200
            position = int(response.headers["ledger-position"])
            self.seen.append((route, position, exact(response)))

    async def read_as_of(self, route: str, **when: object) -> httpx.Response:
        """The thing of a route as of a position or time."""
        return await self.http.get(f"/{route}/{self.ids[route]}", params=when)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
async def recording(stack: Stack) -> Recording:
    """A customer, a product and an order, and what happened to them."""
    http, recording = stack.http, Recording(stack.http)
    recording.ids["customers"] = customer_id = await register(http)
    await recording.record()
    recording.ids["products"] = product_id = await list_product(http, "10.00", 4)
    await recording.record()
    await order(http, customer_id, product_id, 1)
    await recording.record()
    recording.ids["orders"] = (await order(http, customer_id, product_id, 2))["order_id"]
    await recording.record()
    await http.patch(f"/products/{product_id}", json={"base_price": 7}, headers=WAIT)
    await recording.record()
    await post(http, f"/customers/{customer_id}/deposits", '{"amount": 1.5}', WAIT)
    await post(http, f"/products/{product_id}/receipts", '{"quantity": 9}', WAIT)
    await recording.record()
    await cancel(http, recording.ids["orders"])
    await recording.record()
    return recording


async def test_as_of_a_position_a_route_answers_what_it_answered_at_it(
    recording: Recording,
) -> None:
    prices = set()
    for route, position, live in recording.seen:
        response = await recording.read_as_of(route, as_of_position=position)
        assert exact(response) == {**live, "position": position}
        assert response.headers["ledger-position"] == str(position)
        prices.add(live.get("current_price"))
    assert len(prices - {None}) > 3, "the price never changed: it proves little"


async def recorded_times(http: httpx.AsyncClient) -> list[tuple[int, datetime]]:
    times: list[tuple[int, datetime]] = []
    while True:
        page = await http.get("/events", params={"after": len(times), "limit": 500})
        times += [(e["position"], datetime.fromisoformat(e["recordedtime"])) for e in page.json()]
        if "link" not in page.headers:
            return times


async def test_as_of_a_time_it_is_the_last_position_recorded_by_then(recording: Recording) -> None:
    times = await recorded_times(recording.http)
    zone = timedelta(hours=5, minutes=30)
    for route, position, live in recording.seen:
        recorded = next(time for at, time in times if at == position)
        last = max(at for at, time in times if time == recorded)
        local = recorded.astimezone(tz=timezone(zone)).isoformat()
        for time in (f"{recorded:%Y-%m-%dT%H:%M:%S.%fZ}", local):
            response = await recording.read_as_of(route, as_of_time=time)
            assert response.status_code == 200, response.text
            assert response.headers["ledger-position"] == str(last)
            assert exact(response) == {**live, "position": last}
        before = recorded - timedelta(microseconds=1)
        response = await recording.read_as_of(route, as_of_time=f"{before:%Y-%m-%dT%H:%M:%S.%fZ}")
        assert int(response.headers.get("ledger-position", 0)) < position


@pytest.mark.parametrize("route", ROUTES)
async def test_a_thing_is_unknown_as_of_a_position_before_it(
    recording: Recording, route: str
) -> None:
    kind = f"unknown-{route[:-1]}"
    first = next(position for name, position, _ in recording.seen if name == route)
    for when in (
        {"as_of_position": 0},
        {"as_of_position": min(position for _, position, _ in recording.seen) - 1},
        {"as_of_time": "1969-07-20T20:17:40Z"},
        {"as_of_time": "2000-01-01T00:00:00+14:00"},
    ):
        problem(await recording.read_as_of(route, **when), 404, kind)
    assert (await recording.read_as_of(route, as_of_position=first)).status_code == 200
    nobody = await recording.http.get(f"/{route}/{uuid4()}", params={"as_of_position": first})
    problem(nobody, 404, kind)


@pytest.mark.parametrize("route", ROUTES)
async def test_a_position_beyond_the_head_is_refused_and_the_head_named(
    recording: Recording, route: str
) -> None:
    response = await recording.read_as_of(route, as_of_position=2**62)
    body = problem(response, 422, "invalid-fields", "as_of_position")
    head = limit(body, "as_of_position")
    assert (body["head"], len(body["ledger"])) == (head, 36)
    assert head >= max(position for _, position, _ in recording.seen)  # type: ignore[operator]
    assert f"at most {head}, where the ledger ends" in body["detail"]
    assert (await recording.read_as_of(route, as_of_position=head)).status_code == 200
    response = await recording.read_as_of(route, as_of_time="9999-12-31T23:59:59-23:59")
    assert "lies ahead" in problem(response, 422, "invalid-fields", "as_of_time")["detail"]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("as_of_position=-1", "as_of_position"),
        ("as_of_position=x", "as_of_position"),
        ("as_of_position=", "as_of_position"),
        ("as_of_position=9223372036854775808", "as_of_position"),
        ("as_of_position=1&as_of_position=2", "as_of_position"),
        ("as_of_position=1&min_position=1", "as_of_position"),
        ("as_of_position=1&as_of_time=2026-01-01T00:00:00Z", "as_of_position"),
        ("as_of_time=2026-01-01T00:00:00Z&min_position=1", "as_of_time"),
        ("as_of_time=", "as_of_time"),
        ("as_of_time=now", "as_of_time"),
        ("as_of_time=2026-01-01", "as_of_time"),
        ("as_of_time=2026-01-01T00:00:00", "as_of_time"),
        ("as_of_time=2026-01-01T00:00:00+01:00", "as_of_time"),
        ("as_of_time=2026-02-30T00:00:00Z", "as_of_time"),
        ("as_of_time=2026-01-01T25:00:00Z", "as_of_time"),
        ("as_of_time=20260101T000000Z", "as_of_time"),
        ("as_of_time=%D9%A1026-01-01T00:00:00Z", "as_of_time"),
    ],
)
async def test_a_bad_position_or_time_is_refused_and_named(
    recording: Recording, route: str, query: str, field: str
) -> None:
    response = await recording.http.get(f"/{route}/{recording.ids[route]}?{query}")
    problem(response, 422, "invalid-fields", field)


async def test_a_time_without_a_zone_is_told_how_to_get_one(recording: Recording) -> None:
    response = await recording.read_as_of("orders", as_of_time="2026-01-01T00:00:00")
    body = problem(response, 422, "invalid-fields", "as_of_time")
    assert "write 2026-01-01T00:00:00Z for UTC" in body["detail"]


async def test_a_product_as_of_a_position_may_be_cached_for_ever(recording: Recording) -> None:
    route, position, _ = next(entry for entry in recording.seen if entry[0] == "products")
    first = await recording.read_as_of(route, as_of_position=position)
    assert first.headers["cache-control"] == "public, max-age=31536000, immutable"
    path = f"/products/{recording.ids['products']}"
    again = await recording.http.get(
        path,
        params={"as_of_position": position},
        headers={"If-None-Match": first.headers["etag"]},
    )
    assert (again.status_code, again.content) == (304, b"")
    head = await recording.http.head(path, params={"as_of_position": position})
    assert head.headers["content-length"] == str(len(first.content))


async def test_an_answer_as_of_a_time_that_may_still_get_events_is_not_cached(
    recording: Recording,
) -> None:
    response = await recording.read_as_of("products", as_of_time=datetime.now(UTC).isoformat())
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("route", ["customers", "orders"])
async def test_the_data_of_a_customer_is_not_cached(recording: Recording, route: str) -> None:
    response = await recording.read_as_of(route, as_of_position=recording.seen[-1][1])
    assert response.headers["cache-control"] == "no-store"


async def test_as_of_reads_do_not_change_the_product_cache(recording: Recording) -> None:
    path = f"/products/{recording.ids['products']}"
    now = exact(await recording.http.get(path))
    await recording.read_as_of("products", as_of_position=recording.seen[1][1])
    assert exact(await recording.http.get(path)) == now


@pytest.fixture
async def reads(servers: Servers) -> AsyncIterator[AsOfReads]:
    """As-of reads of an empty ledger."""
    async with running_ledger(await make_ledger(servers)) as ledger:
        yield AsOfReads(ledger.engine("api"), Turns(MAX_READS, TURN_TIMEOUT_S))


async def read(
    reads: AsOfReads, when: AsOf, query: Callable[[AsOfReader, int], Awaitable[Any]]
) -> tuple[Any, AsOfPosition]:
    """The answer of a query at the position asked for, and which that is."""
    async with reads.open(when, Client("ann", known=True)) as (reader, moment):
        return await query(reader, moment.position), moment


async def test_only_a_few_reads_run_at_once_and_others_wait_their_turn(
    reads: AsOfReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, go_on = asyncio.Event(), asyncio.Event()
    under_way = 0

    async def query(history: AsOfReader, position: int) -> None:
        nonlocal under_way
        under_way += 1
        assert under_way <= MAX_READS
        first.set()
        await go_on.wait()
        under_way -= 1

    now = AsOf(0)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(read(reads, now, query)) for _ in range(3 * MAX_READS)]
        await first.wait()
        with monkeypatch.context() as patch:
            patch.setattr(reads._turns, "timeout_s", 0.01)
            with pytest.raises(Problem, match="did not come within"):
                await read(reads, now, query)
        go_on.set()
    assert {task.result() for task in tasks} == {(None, AsOfPosition(0, final=True))}


async def test_a_read_that_fails_gives_its_turn_to_the_next(reads: AsOfReads) -> None:
    async def fail(history: AsOfReader, position: int) -> None:
        raise ZeroDivisionError

    for _ in range(2 * MAX_READS):
        with pytest.raises(ZeroDivisionError):
            await read(reads, AsOf(0), fail)
        with pytest.raises(Problem, match="at most 0"):
            await read(reads, AsOf(1), fail)
    wallet, moment = await read(reads, AsOf(None, 0), lambda h, p: h.row(WALLETS, UUID(int=1), p))
    assert (wallet, moment) == (None, AsOfPosition(0, final=False))
