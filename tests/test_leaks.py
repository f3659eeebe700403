"""A process that a test leaves running fails that test."""

import asyncio
import os
import signal
import subprocess
import sys

import psutil
import pytest

from cli.settings import Settings
from tests.harness import environment, start_ledger
from tests.leaks import failing_leaks
from tests.private_servers import Servers, wait_until
from tests.warm import COMMAND


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


@pytest.mark.skipif(sys.platform != "linux", reason="processes are started from scratch")
def test_a_fork_of_the_warm_process_counts_too_and_does_not_outlive_who_asked_for_it(
    settings: Settings, servers: Servers
) -> None:
    environ = os.environ | environment(settings)
    log = servers.home / "logs" / "leak.log"
    with pytest.raises(pytest.fail.Exception, match="ledger writer"), failing_leaks():
        fork = start_ledger(servers.home, ["writer"], environ, log, log)
    assert fork.poll() == -signal.SIGKILL

    assert servers.warm_ledger
    warm = psutil.Process(servers.warm_ledger.process.pid)
    others = set(warm.children())
    with subprocess.Popen([COMMAND, "writer"], env=environ) as shim:
        wait_until(lambda: bool(set(warm.children()) - others), 60, "no fork")
        (forked,) = set(warm.children()) - others
        shim.kill()
    wait_until(lambda: has_ended(forked), 60, "the fork still runs")
