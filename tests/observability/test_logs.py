"""Logs are lines of JSON with the ids of what they report, and without secrets."""

import json
import logging
from typing import Any
from uuid import uuid4

import pytest

from ledger.runtime import logs
from tests.harness import Stack, eventually

PROCESSES = ("api", "writer", "projector")
Line = dict[str, Any]


def lines(stack: Stack, process: str) -> list[Line]:
    """What a process has logged; fails where a line is not a JSON object."""
    text = stack.log_path(process).read_text()
    # What comes after the last newline is still being written.
    return [json.loads(line) for line in text.split("\n")[:-1]]


async def line(stack: Stack, process: str, **wanted: object) -> Line:
    """The first line that has these fields."""

    async def find() -> Line | None:
        return next(
            (line for line in lines(stack, process) if wanted.items() <= line.items()), None
        )

    found = await eventually(find, f"{process} logs {wanted}")
    assert found
    return found


async def test_one_order_can_be_followed_through_all_logs(verbose_stack: Stack) -> None:
    request_id = f"test-{uuid4()}"
    body = {"customer_id": str(uuid4()), "product_id": str(uuid4())}
    headers = {"X-Request-Id": request_id}
    response = await verbose_stack.http.post("/orders", json=body, headers=headers)
    order_id = response.json()["order_id"]

    confirmed = await line(verbose_stack, "api", request_id=request_id, stream_id=order_id)
    recorded = await line(verbose_stack, "writer", event_id=confirmed["event_id"])
    assert recorded["epoch"] >= 1

    async def shown() -> bool:
        batches = [b for b in lines(verbose_stack, "projector") if b["event"] == "projector: shown"]
        return any(b["first_position"] <= recorded["position"] <= b["position"] for b in batches)

    await eventually(shown, "the projector logs a batch with the order's position")


async def test_the_access_log_names_route_status_and_request(verbose_stack: Stack) -> None:
    request_id = f"test-{uuid4()}"
    path = f"/orders/{uuid4()}"
    await verbose_stack.http.get(path, headers={"X-Request-Id": request_id})
    found = await line(verbose_stack, "api", logger="api.access", request_id=request_id)
    assert (found["method"], found["status"]) == ("GET", 404)
    assert found["route"] == "/api/v1/orders/{order_id}"
    assert found["path"] == f"/api/v1{path}"
    assert found["duration_ms"] > 0


@pytest.mark.parametrize("process", PROCESSES)
async def test_every_line_is_json_with_time_level_and_event(
    verbose_stack: Stack, process: str
) -> None:
    found = lines(verbose_stack, process)
    assert found
    for logged in found:
        assert logged.keys() >= {"time", "level", "event", "logger"}


@pytest.mark.parametrize("process", PROCESSES)
async def test_no_password_is_in_any_log(verbose_stack: Stack, process: str) -> None:
    said = verbose_stack.log_path(process).read_text()
    secrets = [
        path.read_text().strip() for path in verbose_stack.settings.home.glob("secrets/[ad]*")
    ]
    assert len(secrets) > 8
    assert not [secret for secret in secrets if secret in said]


@pytest.mark.parametrize(
    "formatter", [logs.JsonFormatter(), logs.TextFormatter()], ids=["json", "text"]
)
@pytest.mark.parametrize(
    ("said", "secret"),
    [
        ("can't reach amqp://ledger_api:s3cr3t@127.0.0.1:5672/ledger", "s3cr3t"),
        ("mysql+asyncmy://ledger_api:p%40ss@wo@rd@db/ledger is away", "p%40ss@wo@rd"),
        ("Authorization: Bearer lk_0123456789abcdef", "lk_0123456789abcdef"),
        ("authorization: Basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNzd29yZA=="),
    ],
)
def test_secrets_are_masked(formatter: logging.Formatter, said: str, secret: str) -> None:
    raised = (ConnectionError, ConnectionError(said), None)
    record = logging.LogRecord("x", logging.ERROR, "", 0, "%s", (said,), raised)
    line = formatter.format(record)
    assert "***" in line
    assert secret not in line


def test_auto_is_text_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            return len(text)

    monkeypatch.setattr("sys.stderr", Terminal())
    assert isinstance(logs.formatter("auto"), logs.TextFormatter)
    assert isinstance(logs.formatter("json"), logs.JsonFormatter)
