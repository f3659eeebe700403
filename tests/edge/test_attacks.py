"""The product under attack: bounded, and open for those who have a key."""

import secrets
from collections.abc import Awaitable, Callable

import pytest

from api.auth.principal import Scope
from cli.commands.keys import create
from tests.durability.memory import LIMIT_BYTES
from tests.harness import Stack, eventually

from .attacks import attacked, count_connections

MakeStack = Callable[..., Awaitable[Stack]]


@pytest.mark.parametrize(
    ("seconds", "slow_ms"), [(5, 5000), pytest.param(120, 2000, marks=pytest.mark.slow)]
)
@pytest.mark.timeout(300)
async def test_strangers_keep_nobody_with_a_key_from_ordering(
    make_stack: MakeStack, seconds: float, slow_ms: float
) -> None:
    stack = await make_stack(auth="required")
    _, key = await create(stack.settings, "attacked", (Scope.ADMIN,))
    headers = {"Authorization": f"Bearer {key}"}
    seed = secrets.randbelow(10**6)
    figures = await attacked(stack, str(key), seconds, connections=64, seed=seed)
    shown = f"seed {seed}\n{figures}"

    assert not figures.refused, shown
    assert len(figures.order_ids) > seconds, shown
    assert max(*figures.kept_ms, *figures.new_ms) < slow_ms, shown
    assert max(figures.peak_bytes.values()) < LIMIT_BYTES, shown
    assert figures.socket_bytes["api"] < LIMIT_BYTES, shown

    async def all_gone() -> bool:
        # One is that of the client of these tests.
        return count_connections(stack) <= 1

    await eventually(all_gone, "the API has hung up on all strangers")

    async def all_decided() -> bool:
        last = await stack.http.get(f"/orders/{figures.order_ids[-1]}", headers=headers)
        return bool(last.json()["status"] == "FAILED")

    await eventually(all_decided, "the last order is decided")
    page = await stack.http.get("/events", params={"limit": 1}, headers=headers)
    # Each order is an event and its decision; strangers have added nothing.
    assert int(page.headers["ledger-position"]) == 2 * len(figures.order_ids), shown
