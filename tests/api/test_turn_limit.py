"""A turn of the event loop begins a bounded number of requests, whatever arrives in it."""

import asyncio
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from api.http.middleware import CROWDED, TURN_REQUESTS, TurnLimit


class Begun:
    """An application that notes which requests begin, and in which turn of the loop."""

    def __init__(self) -> None:
        self.turn = 0
        self.begun: list[tuple[int, int, bool]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun.append((self.turn, scope["number"], CROWDED in scope))

    async def count_turns(self) -> None:
        while True:
            self.turn += 1
            await asyncio.sleep(0)


async def serve(limit: Any, number: int, path: str = "/api/v1/orders") -> None:
    await limit({"number": number, "path": path}, None, None)


async def served(app: Begun, count: int) -> list[asyncio.Task[None]]:
    """Requests that all arrive in one turn."""
    limit = TurnLimit(app)
    return [asyncio.create_task(serve(limit, number)) for number in range(count)]


async def test_a_turn_begins_a_bounded_number_of_requests_and_all_come_in_their_order() -> None:
    app = Begun()
    turns = asyncio.create_task(app.count_turns())
    await asyncio.gather(*await served(app, 10 * TURN_REQUESTS))
    turns.cancel()
    in_turn = [turn for turn, _, _ in app.begun]
    assert max(map(in_turn.count, in_turn)) <= TURN_REQUESTS
    assert [number for _, number, _ in app.begun] == list(range(10 * TURN_REQUESTS))


async def test_requests_that_find_the_line_full_are_marked_and_do_not_wait_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("api.http.middleware.MAX_LINE", 5 * TURN_REQUESTS)
    app = Begun()
    await asyncio.gather(*await served(app, 7 * TURN_REQUESTS))
    crowded = [number for _, number, is_crowded in app.begun if is_crowded]
    assert crowded == list(range(6 * TURN_REQUESTS, 7 * TURN_REQUESTS))
    last = app.begun[-1]
    assert not last[2]


async def test_a_client_that_leaves_the_line_holds_up_nobody() -> None:
    app = Begun()
    requests = await served(app, 3 * TURN_REQUESTS)
    await asyncio.sleep(0)
    gone = requests[TURN_REQUESTS : 2 * TURN_REQUESTS]
    for request in gone:
        request.cancel()
    await asyncio.gather(*requests, return_exceptions=True)
    assert len(app.begun) == 2 * TURN_REQUESTS


async def test_a_probe_of_health_does_not_wait_behind_the_requests_of_clients() -> None:
    app = Begun()
    limit = TurnLimit(app)
    clients = [asyncio.create_task(serve(limit, number)) for number in range(10 * TURN_REQUESTS)]
    await asyncio.sleep(0)
    await serve(limit, -1, "/health/live")
    before = [number for _, number, _ in app.begun]
    assert len(before) <= 3 * TURN_REQUESTS
    await asyncio.gather(*clients)
