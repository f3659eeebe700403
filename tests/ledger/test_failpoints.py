"""Failpoints are off unless a setting turns them on, and then fail where and how it says."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cli.settings import Settings
from ledger.eventlog.records import Submitted
from ledger.messaging.publisher import InboxUnavailable, Publisher
from ledger.runtime import failpoints
from ledger.runtime.failpoints import (
    BadFailpoint,
    Failpoint,
    FailpointReached,
    failpoint,
    failpoint_after_send,
)
from tests.harness import DEADLINE_S, environment, eventually
from tests.projections.view_rows import all_live, all_replayed, until_projected
from tests.submissions import opening, orders
from tests.warm import COMMAND

from .naive_audit import audit, causes, ids
from .pipeline import Ledger

SOURCE = Path(__file__).parents[2] / "src"
NAME = "writer.after-commit"


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    failpoints.arm("")


def test_every_failpoint_is_at_one_place_in_the_code() -> None:
    code = "".join(path.read_text() for path in sorted(SOURCE.rglob("*.py")))
    reached = re.findall(r'failpoint(?:_after_send)?\(\s*"([^"]+)"', code)
    assert sorted(reached) == sorted(failpoints.NAMES)


def test_the_setting_is_parsed_into_name_action_and_pass() -> None:
    text = "writer.after-commit=die@3, publisher.before-confirm=delay:0.5"
    assert failpoints.parse(text) == {
        "writer.after-commit": Failpoint("die", 0.0, 3),
        "publisher.before-confirm": Failpoint("delay", 0.5, 0),
    }


@pytest.mark.parametrize(
    "text",
    [
        "writer.after-commit",
        "writer.after-commit=explode",
        "writer.after-commit=delay",
        "writer.after-commit=die:1",
        "writer.after-commit=die@x",
        "writer.after-lunch=die",
    ],
)
def test_a_text_that_names_no_failpoint_or_action_is_refused(text: str) -> None:
    with pytest.raises(BadFailpoint):
        failpoints.parse(text)


async def test_only_the_failpoints_that_are_on_fail() -> None:
    await failpoint(NAME)
    failpoints.arm("writer.after-ack=raise")
    await failpoint(NAME)


async def test_a_failpoint_raises_at_its_pass_and_at_no_other() -> None:
    failpoints.arm(f"{NAME}=raise@2")
    await failpoint(NAME)
    with pytest.raises(FailpointReached):
        await failpoint(NAME)
    await failpoint(NAME)


async def test_a_failpoint_delays_every_pass() -> None:
    failpoints.arm(f"{NAME}=delay:0.02")
    began = time.monotonic()
    await failpoint(NAME)
    await failpoint(NAME)
    assert time.monotonic() - began >= 0.04


async def test_a_failpoint_after_send_cancels_the_call_under_way() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    failpoints.arm("writer.commit-sent=raise")
    with pytest.raises(FailpointReached):
        await failpoint_after_send("writer.commit-sent", work())
    assert begun.is_set()
    assert ended.is_set()


def process_that_fails(action: str) -> subprocess.Popen[bytes]:
    code = (
        "import asyncio; from ledger.runtime.failpoints import arm, failpoint;"
        f"arm('{NAME}={action}'); asyncio.run(failpoint('{NAME}')); print('went on')"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)


def test_a_process_dies_at_once() -> None:
    with process_that_fails("die") as process:
        assert process.communicate(timeout=DEADLINE_S)[0] == b""
        assert process.returncode == -signal.SIGKILL


async def test_a_process_stops_until_it_is_told_to_go_on() -> None:
    with process_that_fails("stop") as process:

        async def is_stopped() -> bool:
            return psutil.Process(process.pid).status() == psutil.STATUS_STOPPED

        await eventually(is_stopped, "the process has stopped")
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=DEADLINE_S)[0] == b"went on\n"


def ledger_migrate(settings: Settings, text: str) -> subprocess.CompletedProcess[str]:
    command = [COMMAND, "migrate"]
    env = os.environ | environment(settings) | {"LEDGER_FAILPOINTS": text}
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def test_a_process_with_failpoints_warns_and_one_with_unknown_ones_does_not_start(
    settings: Settings,
) -> None:
    warned = ledger_migrate(settings, f"{NAME}=die")
    assert warned.returncode == 0
    assert f"FAILPOINT {NAME} IS ON" in warned.stderr
    assert "FAILPOINT" not in ledger_migrate(settings, "").stderr
    refused = ledger_migrate(settings, "writer.after-lunch=die")
    assert refused.returncode == 2
    assert "'writer.after-lunch' must be one of" in refused.stderr


async def accepted(publisher: Publisher, group: list[Submitted]) -> bool:
    """True when the inbox has the group for certain; otherwise the caller submits it again."""
    try:
        await publisher.submit(group)
    except InboxUnavailable:
        return False
    return True


@pytest.mark.parametrize("name", sorted(failpoints.NAMES))
async def test_an_error_at_any_failpoint_leaves_each_event_decided_once(
    ledger: Ledger, name: str
) -> None:
    failpoints.arm(f"{name}=raise@1")
    first, events = opening(), orders(10)
    async with ledger.writing(), ledger.projecting(), ledger.publishing() as publisher:
        for group in (first, events):
            await eventually(lambda group=group: accepted(publisher, group), "a group is accepted")
        records = await ledger.until_recorded([*first, *events])
        await until_projected(ledger)
        await ledger.until_inbox_empty()
    audit(records)
    assert causes(records) == ids([*first, *events])
    assert await all_live(ledger) == await all_replayed(ledger)
