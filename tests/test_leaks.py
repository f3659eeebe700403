"""A process that a test leaves running fails that test."""

import asyncio
import subprocess

import psutil
import pytest

from tests.leaks import failing_leaks
from tests.private_servers import wait_until


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def leave_running() -> psutil.Process:
    """Start a process that starts another, which is returned."""
    process = subprocess.Popen(["sh", "-c", "sleep 600; true"])
    wait_until(lambda: bool(psutil.Process(process.pid).children()), 60, "no child")
    return psutil.Process(process.pid).children()[0]


def test_a_process_left_running_is_ended_with_its_children_and_named() -> None:
    with pytest.raises(pytest.fail.Exception, match="sleep 600"), failing_leaks():
        child = leave_running()
    wait_until(lambda: has_ended(child), 60, "the child of the process still runs")


async def test_one_that_asyncio_started_counts_as_well() -> None:
    with pytest.raises(pytest.fail.Exception, match="sleep 600"), failing_leaks():
        left = await asyncio.create_subprocess_exec("sleep", "600")
    assert await left.wait() != 0


def test_one_that_has_ended_is_no_leak() -> None:
    with failing_leaks():
        ended = subprocess.Popen(["true"])
        ended.wait()
