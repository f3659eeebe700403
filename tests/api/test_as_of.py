"""?as_of_position= and ?as_of_time=: what a route answered then, it answers for ever."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from api import as_of
from api.as_of import MAX_READS, AsOf, AsOfReads
from api.problems import Problem
from projections.as_of import AsOfPosition, AsOfReader
from tests.harness import Stack, make_ledger
from tests.ledger.running import running_ledger
from tests.private_servers import Servers

from .client import WAIT, cancel, exact, limit, list_product, order, post, problem, register

ROUTES = ("customers", "products", "orders")


@dataclass
class Diary:
    """What three routes answered live, and at which positions."""

    http: httpx.AsyncClient
    ids: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[str, int, dict[str, Any]]] = field(default_factory=list)

    async def note(self) -> None:
        """Look at all that there is, as of one position."""
        for route, thing_id in self.ids.items():
            response = await self.http.get(f"/{route}/{thing_id}")
            assert response.status_code == 200
            position = int(response.headers["ledger-position"])
            self.seen.append((route, position, exact(response)))

    async def then(self, route: str, **when: object) -> httpx.Response:
        """The thing of a route at another moment."""
        return await self.http.get(f"/{route}/{self.ids[route]}", params=when)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
async def diary(stack: Stack) -> Diary:
    """A customer, a product and an order, to whom things happened."""
    http, diary = stack.http, Diary(stack.http)
    diary.ids["customers"] = customer_id = await register(http)
    await diary.note()
    diary.ids["products"] = product_id = await list_product(http, "10.00", 4)
    await diary.note()
    await order(http, customer_id, product_id, 1)
    await diary.note()
    diary.ids["orders"] = (await order(http, customer_id, product_id, 2))["order_id"]
    await diary.note()
    await http.patch(f"/products/{product_id}", json={"base_price": 7}, headers=WAIT)
    await diary.note()
    await post(http, f"/customers/{customer_id}/deposits", '{"amount": 1.5}', WAIT)
    await post(http, f"/products/{product_id}/receipts", '{"quantity": 9}', WAIT)
    await diary.note()
    await cancel(http, diary.ids["orders"])
    await diary.note()
    return diary


async def test_as_of_a_position_a_route_answers_what_it_answered_then(diary: Diary) -> None:
    prices = set()
    for route, position, live in diary.seen:
        response = await diary.then(route, as_of_position=position)
        assert exact(response) == {**live, "position": position}
        assert response.headers["ledger-position"] == str(position)
        prices.add(live.get("current_price"))
    assert len(prices - {None}) > 3, "the price never changed: it proves little"


async def recorded_times(http: httpx.AsyncClient) -> list[tuple[int, datetime]]:
    found: list[tuple[int, datetime]] = []
    while True:
        page = await http.get("/events", params={"after": len(found), "limit": 500})
        found += [(e["position"], datetime.fromisoformat(e["recordedtime"])) for e in page.json()]
        if "link" not in page.headers:
            return found


async def test_as_of_a_time_it_is_the_last_position_recorded_by_then(diary: Diary) -> None:
    times = await recorded_times(diary.http)
    zone = timedelta(hours=5, minutes=30)
    for route, position, live in diary.seen:
        recorded = next(time for at, time in times if at == position)
        last = max(at for at, time in times if time == recorded)
        local = recorded.astimezone(tz=timezone(zone)).isoformat()
        for time in (f"{recorded:%Y-%m-%dT%H:%M:%S.%fZ}", local):
            response = await diary.then(route, as_of_time=time)
            assert response.status_code == 200, response.text
            assert response.headers["ledger-position"] == str(last)
            assert exact(response) == {**live, "position": last}
        before = recorded - timedelta(microseconds=1)
        response = await diary.then(route, as_of_time=f"{before:%Y-%m-%dT%H:%M:%S.%fZ}")
        assert int(response.headers.get("ledger-position", 0)) < position


@pytest.mark.parametrize("route", ROUTES)
async def test_what_was_not_there_yet_is_unknown(diary: Diary, route: str) -> None:
    kind = f"unknown-{route[:-1]}"
    first = next(position for name, position, _ in diary.seen if name == route)
    for when in (
        {"as_of_position": 0},
        {"as_of_position": min(position for _, position, _ in diary.seen) - 1},
        {"as_of_time": "1969-07-20T20:17:40Z"},
        {"as_of_time": "2000-01-01T00:00:00+14:00"},
    ):
        problem(await diary.then(route, **when), 404, kind)
    assert (await diary.then(route, as_of_position=first)).status_code == 200
    nobody = await diary.http.get(f"/{route}/{uuid4()}", params={"as_of_position": first})
    problem(nobody, 404, kind)


@pytest.mark.parametrize("route", ROUTES)
async def test_what_is_beyond_the_head_is_refused_and_the_head_named(
    diary: Diary, route: str
) -> None:
    response = await diary.then(route, as_of_position=2**62)
    body = problem(response, 422, "invalid-fields", "as_of_position")
    head = limit(body, "as_of_position")
    assert head >= max(position for _, position, _ in diary.seen)  # type: ignore[operator]
    assert f"at most {head}, where the ledger ends" in body["detail"]
    assert (await diary.then(route, as_of_position=head)).status_code == 200
    response = await diary.then(route, as_of_time="9999-12-31T23:59:59-23:59")
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
async def test_a_moment_that_can_not_be_meant_is_named(
    diary: Diary, route: str, query: str, field: str
) -> None:
    response = await diary.http.get(f"/{route}/{diary.ids[route]}?{query}")
    problem(response, 422, "invalid-fields", field)


async def test_a_time_without_a_zone_is_told_how_to_get_one(diary: Diary) -> None:
    response = await diary.then("orders", as_of_time="2026-01-01T00:00:00")
    body = problem(response, 422, "invalid-fields", "as_of_time")
    assert "write 2026-01-01T00:00:00Z for UTC" in body["detail"]


async def test_a_product_of_the_past_may_be_kept_for_ever(diary: Diary) -> None:
    route, position, _ = next(entry for entry in diary.seen if entry[0] == "products")
    first = await diary.then(route, as_of_position=position)
    assert first.headers["cache-control"] == "public, max-age=31536000, immutable"
    path = f"/products/{diary.ids['products']}"
    again = await diary.http.get(
        path,
        params={"as_of_position": position},
        headers={"If-None-Match": first.headers["etag"]},
    )
    assert (again.status_code, again.content) == (304, b"")
    head = await diary.http.head(path, params={"as_of_position": position})
    assert head.headers["content-length"] == str(len(first.content))


async def test_a_time_that_may_still_get_events_is_not_kept(diary: Diary) -> None:
    response = await diary.then("products", as_of_time=datetime.now(UTC).isoformat())
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("route", ["customers", "orders"])
async def test_what_belongs_to_somebody_is_kept_by_nobody(diary: Diary, route: str) -> None:
    response = await diary.then(route, as_of_position=diary.seen[-1][1])
    assert response.headers["cache-control"] == "no-store"


async def test_the_past_does_not_spoil_what_is_cached_of_now(diary: Diary) -> None:
    path = f"/products/{diary.ids['products']}"
    now = exact(await diary.http.get(path))
    await diary.then("products", as_of_position=diary.seen[1][1])
    assert exact(await diary.http.get(path)) == now


@pytest.fixture
async def looking(servers: Servers) -> AsyncIterator[AsOfReads]:
    """The past of an empty ledger."""
    async with running_ledger(await make_ledger(servers)) as ledger:
        yield AsOfReads(ledger.engine("api"))


async def test_only_a_few_look_at_once_and_others_wait_their_turn(
    looking: AsOfReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, go_on = asyncio.Event(), asyncio.Event()
    under_way = 0

    async def look(history: AsOfReader, position: int) -> None:
        nonlocal under_way
        under_way += 1
        assert under_way <= MAX_READS
        first.set()
        await go_on.wait()
        under_way -= 1

    now = AsOf(0, None)
    async with asyncio.TaskGroup() as group:
        looks = [group.create_task(looking.read(now, look)) for _ in range(3 * MAX_READS)]
        await first.wait()
        with monkeypatch.context() as patch:
            patch.setattr(as_of, "TURN_TIMEOUT_S", 0.01)
            with pytest.raises(Problem, match="read earlier state"):
                await looking.read(now, look)
        go_on.set()
    assert {look.result() for look in looks} == {(None, AsOfPosition(0, final=True))}


async def test_a_look_that_fails_gives_its_turn_to_the_next(looking: AsOfReads) -> None:
    async def fail(history: AsOfReader, position: int) -> None:
        raise ZeroDivisionError

    for _ in range(2 * MAX_READS):
        with pytest.raises(ZeroDivisionError):
            await looking.read(AsOf(0, None), fail)
        with pytest.raises(Problem, match="at most 0"):
            await looking.read(AsOf(1, None), fail)
    wallet, moment = await looking.read(AsOf(None, 0), lambda h, p: h.wallet(UUID(int=1), p))
    assert (wallet, moment) == (None, AsOfPosition(0, final=False))
