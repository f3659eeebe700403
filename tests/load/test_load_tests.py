"""The three load tests, with smaller numbers: their own limits and checks decide."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from projections.views.registry import PROJECTIONS
from tests.harness import Stack, engine_of, environment

BIN = Path(sys.executable).parent
TESTS = Path(__file__).parents[1]
READS = TESTS / "req-3-1-1_test_get_product_perf.js"
RACE = TESTS / "req-3-2-1_test_race_condition.py"
ORDERS = TESTS / "req-3-2-2_test_high_volume_test.js"
K6 = (BIN / "k6", "run", "--quiet", "--no-color", "--no-usage-report", "--address=")
"""Without the port on which k6 can be steered: another one may run."""

SMALLER = {"RATE": "200", "DURATION_S": "3"}
TIMEOUT_S = 60


@pytest.fixture
async def alone(make_stack: Callable[..., Awaitable[Stack]]) -> Stack:
    """A ledger with nobody else's events in it."""
    return await make_stack()


async def run(stack: Stack, *command: Path | str, **settings: str) -> tuple[int, str]:
    """The exit status of a command that talks to this stack, and all that it said."""
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        env=os.environ | environment(stack.settings) | {"BASE_URL": stack.url} | settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return done.returncode, done.stdout


async def passes(stack: Stack, *command: Path | str, **settings: str) -> str:
    """What a command said that had nothing to complain of."""
    status, said = await run(stack, *command, **settings)
    assert status == 0, said
    return said


async def test_product_reads_stay_under_their_limit(alone: Stack) -> None:
    await passes(alone, BIN / "ledger", "demo")
    await passes(alone, *K6, READS, **SMALLER)


async def test_a_load_test_fails_where_its_limits_are_broken(stack: Stack) -> None:
    status, said = await run(stack, *K6, READS, PRODUCT_ID=str(uuid4()), RATE="10", DURATION_S="1")
    assert status != 0
    assert "✗ is 200" in said


async def test_of_a_hundred_orders_at_once_one_gets_the_last_unit(stack: Stack) -> None:
    await passes(stack, sys.executable, RACE)


async def test_no_order_of_many_is_lost_and_the_accounts_agree_to_the_cent(alone: Stack) -> None:
    await passes(alone, *K6, ORDERS, **SMALLER)
    status = json.loads(await passes(alone, BIN / "ledger", "status", "--json"))
    behind = {view["name"]: view["lag"] for view in status["views"]}
    assert behind == {view.name: 0 for view in PROJECTIONS}
    assert (status["inbox_messages"], status["parked_messages"]) == (0, 0)
    assert await positions(alone) == (status["position"], 1, status["position"])


async def test_three_thousand_users_at_one_moment_are_all_served(
    alone: Stack, tmp_path: Path
) -> None:
    offered = {"RATE": "10000", "USERS": "3000", "DURATION_S": "2"}
    found = tmp_path / "found.json"
    # How long each of them waits depends on the machine, and is the bench's to say.
    await passes(alone, *K6, "--no-thresholds", f"--summary-export={found}", ORDERS, **offered)
    metrics = json.loads(found.read_text())["metrics"]
    assert metrics["vus_max"]["max"] == int(offered["USERS"])
    assert metrics["http_req_failed"]["value"] == 0
    assert metrics["checks"]["value"] == 1
    assert metrics["orders_lost"]["count"] == 0


async def positions(stack: Stack) -> tuple[int, int, int]:
    """How many events the ledger has, and its first and last position."""
    engine = engine_of(stack.settings, "projector")
    async with engine.connect() as connection:
        found = await connection.exec_driver_sql(
            "SELECT COUNT(*), MIN(position), MAX(position) FROM events"
        )
        rows: Any = found.all()
    await engine.dispose()
    count, first, last = rows[0]
    return count, first, last
