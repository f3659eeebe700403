"""schemathesis: what the OpenAPI document promises holds for requests that nobody thought of."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from api.auth.principal import Scope
from cli.commands.keys import create
from tests.harness import Stack

ROOT = Path(__file__).parents[2]
DEADLINE_S = 200
SEED = os.environ.get("SEED", "1")
"""One seed in the suite, so that a change fails for what it does; `SEED=N` tries another one."""


async def test_schemathesis_finds_nothing(
    make_stack: Callable[..., Awaitable[Stack]], tmp_path: Path
) -> None:
    stack = await make_stack(auth="required", rate_per_s=0, concurrency=0)
    _, key = await create(stack.settings, "schemathesis", (Scope.ADMIN,))
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"),
        "run",
        f"{stack.url}/openapi.json",
        "--header",
        f"Authorization: Bearer {key}",
        "--seed",
        SEED,
        "--max-examples",
        "6",
        "--request-timeout",
        "10",
        "--no-color",
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.api.fuzzing", "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            report, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    print(report.decode())  # noqa: T201  # pytest shows it, with the seed, if the next line fails
    assert process.returncode == 0, report.decode()
