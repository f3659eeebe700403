"""An API that asks nobody for a key is reached from this machine only, or does not start."""

from pathlib import Path

import httpx
import pytest

from api.auth.guard import Exposed, refuse_exposed
from cli.commands import up
from cli.commands.processes import AUTH_WARNINGS
from cli.settings import Settings
from tests.harness import Stack

from .conftest import Run


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
async def test_an_api_with_unsafe_or_contradictory_settings_does_not_start(
    run: Run, changes: dict[str, str], why: str
) -> None:
    done = await run("api", **changes)
    assert (done.status, done.out) == (2, "")
    assert why in done.said_one_sentence()


def test_the_stack_refuses_before_it_starts_anything(tmp_path: Path) -> None:
    with pytest.raises(Exposed, match="LEDGER_AUTH is off"):
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
