"""An API that asks nobody for a key is reached from this machine only, or does not start."""

import asyncio
import os
import sys
from pathlib import Path

import httpx
import pytest

from api.auth.guard import Exposed, refuse_exposed
from cli.commands import up
from cli.localstack import StackRefused
from cli.processes import AUTH_WARNINGS
from cli.settings import Settings
from tests.harness import Stack, environment


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_without_keys_it_listens_on_loopback(host: str) -> None:
    refuse_exposed(host, "off")


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "10.0.0.1", "fe80::1", "::ffff:10.0.0.1", "ledger.example", "*"]
)
def test_without_keys_it_listens_nowhere_else(host: str) -> None:
    with pytest.raises(Exposed, match="LEDGER_AUTH is off"):
        refuse_exposed(host, "off")
    refuse_exposed(host, "required")
    refuse_exposed(host, "outside")


async def started(settings: Settings, **changes: str) -> str:
    """What `ledger api` says when it refuses to start with these changes."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("ledger"),
        "api",
        env=os.environ | environment(settings) | changes,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 20)
    said = output.decode().strip()
    assert process.returncode == 2, said
    assert len(said.splitlines()) == 1
    return said


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"LEDGER_API_HOST": "0.0.0.0"}, "LEDGER_AUTH is off"),
        ({"LEDGER_AUTH": "no"}, "LEDGER_AUTH=no"),
        ({"LEDGER_CORS_ORIGINS": "https://a.example https://b.example/"}, "b.example/: write"),
        ({"LEDGER_AUTH": "required", "LEDGER_JWT_ISSUER": "x"}, "all three"),
        ({"LEDGER_AUTH": "required", "LEDGER_JWT_AUDIENCE": "x"}, "all three"),
        (
            {
                "LEDGER_AUTH": "required",
                "LEDGER_JWT_ISSUER": "x",
                "LEDGER_JWT_AUDIENCE": "x",
                "LEDGER_JWT_KEY_FILE": "/nowhere",
            },
            "LEDGER_JWT_KEY_FILE",
        ),
        (
            {
                "LEDGER_JWT_ISSUER": "x",
                "LEDGER_JWT_AUDIENCE": "x",
                "LEDGER_JWT_KEY_FILE": "/nowhere",
            },
            "must be `required`",
        ),
    ],
)
async def test_an_api_that_would_let_anybody_in_does_not_start(
    settings: Settings, changes: dict[str, str], why: str
) -> None:
    assert why in await started(settings, **changes)


def test_the_stack_refuses_before_it_starts_anything(tmp_path: Path) -> None:
    with pytest.raises(StackRefused, match="LEDGER_AUTH is off"):
        up.prepare(Settings(home=tmp_path, api_host="0.0.0.0"), None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


async def test_an_api_without_keys_says_so(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=stack.url) as http:
        assert (await http.get("/health/ready")).json()["keys_required"] is False
    assert AUTH_WARNINGS["off"] in stack.log_path("api").read_text()


async def test_unless_named_no_origin_may_call(stack: Stack) -> None:
    answer = await stack.http.get("/products", headers={"Origin": "https://shop.example"})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
