"""`make test-engines`: what it reads of apt and pytest, its table, and how it ends."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.engines import REPOSITORY, counts, mirror_of, with_row
from tests.private_servers import wait_until

PAGE = """# Tested

| | from |
|---|---|
| Python | 3.11 |

| Debian | tests |
|---|---|
| sid | 1 passed |
| trixie | 2 passed |

after
"""

# A run whose suite, in real namespaces, prints its mark and deafly goes on.
RUN = """
import os, pathlib, sys
from tests import engines

engines.CACHE = pathlib.Path(sys.argv[1])
engines.ENTER = "trap '' INT TERM; sleep 600 & echo under way; wait"
engines.PASSED_ON = engines.re.compile("MARK")
engines.prepare_machine = lambda: "mirror"
engines.make_root = lambda *_: True
engines.copy_tree = lambda _: None
if os.geteuid():
    engines.NAMESPACES += ("--map-root-user",)
sys.argv[1:] = ["--on", "trixie", "--on", "sid"]
engines.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_target_with_all_its_suites(
    tmp_path: Path, number: signal.Signals
) -> None:
    def running() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("MARK") == str(tmp_path):
                    found.append(process)
        return found

    environment = os.environ | {"MARK": str(tmp_path)}
    target = subprocess.Popen(
        [sys.executable, "-c", RUN, tmp_path],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.DEVNULL,
    )

    def are_under_way() -> bool:
        assert target.poll() is None
        # One where memory is short: the other waits then, and must not begin.
        return any("under way" in log.read_text() for log in tmp_path.glob("*.log"))

    try:
        wait_until(are_under_way, 60, "no suite is under way")
        target.send_signal(number)
        assert target.wait() == -number
        wait_until(lambda: not running(), 60, "something of the suites is left")
    finally:
        for process in running():
            with contextlib.suppress(psutil.Error):
                process.kill()
        target.kill()
        target.wait()


def test_the_archive_is_debians_and_not_that_of_its_security_updates() -> None:
    targets = (
        "Node https://node.example/\nDebian http://a.example/debian-security/\n"
        "Debian http://a.example/debian/\n"
    )
    assert mirror_of(targets) == "http://a.example/debian/"
    assert mirror_of("Ubuntu http://a.example/ubuntu/\n") is None


def test_the_counts_of_all_runs_are_added_and_errors_are_failures() -> None:
    log = (
        "1 failed, 68 passed, 1 error in 142.96s (0:02:22)\n"
        "a line in between\n"
        "====== 7 passed, 2 deselected in 1.10s ======\n"
    )
    assert counts(log) == (75, 2)


def test_a_row_replaces_the_one_of_its_release_only() -> None:
    page = with_row(PAGE, "| sid | 3 passed |")
    assert page.count("| sid |") == 1
    assert "| sid | 3 passed |\n| trixie | 2 passed |\n\nafter\n" in page
