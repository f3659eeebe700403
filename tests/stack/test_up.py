"""`ledger up`, whole: ready, resumed with its data, stopped for good; and what it refuses."""

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest
from dotenv import dotenv_values

from cli.commands import up
from cli.commands.up import run_stack
from cli.localstack import StackRefused
from cli.localstack.servers import ServerPrograms
from cli.localstack.supervisor import LEDGER, find_processes
from cli.settings import Settings, load_other_settings
from tests.harness import engine_of, free_port
from tests.packages import require_program
from tests.private_servers import wait_until
from tests.projections.rebuilding import EARLIER_RELEASE

TIMEOUT_S = 120.0
# What shells, Erlang and configuration files stumble over; and longer than a path of a socket.
ODD = '日本 Łódź it\'s "$HOME" #1 `x` \\' + "!" * 100
METRICS_PORTS = ("LEDGER_WRITER_METRICS_PORT", "LEDGER_PROJECTOR_METRICS_PORT")


class Up:
    """A running `ledger up` as a person sees it."""

    def __init__(self, home: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._output = home.with_name("output")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("LEDGER_")}
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [LEDGER, "up"],
                env=inherited | {"LEDGER_HOME": str(home), "LEDGER_API_PORT": str(port)},
                stdout=output,
                stderr=output,
            )

    def until_ready(self) -> None:
        """Wait for the line that says how to stop it."""
        wait_until(self._ready_or_ended, TIMEOUT_S, "`ledger up` is not ready in time")
        assert self.process.poll() is None, self.output()

    def _ready_or_ended(self) -> bool:
        return "Ctrl-C stops" in self.output() or self.process.poll() is not None

    def output(self) -> str:
        return self._output.read_text()

    def stop(self, *numbers: signal.Signals) -> int:
        """Send signals one after the other; the exit status."""
        for number in numbers:
            self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)

    def __enter__(self) -> "Up":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def shows_metrics(port: int) -> bool:
    try:
        return "ledger_" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
    except httpx.ConnectError:
        return False


def status_of(url: str) -> int | None:
    """The status with which a GET is answered; None while nobody does."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url).status_code
    return None


async def make_earlier(home: Path) -> None:
    """Let the tables of a running stack be those that an earlier release made."""
    engine = engine_of(load_other_settings(home), "migrate")
    async with engine.begin() as connection:
        for statement in EARLIER_RELEASE:
            await connection.exec_driver_sql(statement)
    await engine.dispose()


def test_up_gets_ready_takes_an_earlier_releases_home_and_leaves_nothing_running(
    tmp_path: Path,
) -> None:
    require_program("curl")
    home = tmp_path / ODD
    port = free_port()
    with Up(home, port) as first:
        product = f"{first.url}/api/v1/products/a1b2c3d4-e5f6-7890-1234-567890abcdef"
        wait_until(lambda: status_of(product) not in (None, 503), TIMEOUT_S, "no answer")
        assert status_of(product) == 200, "the API serves before the demo catalogue is loaded"
        first.until_ready()
        curl = re.search(r"curl .*", first.output())
        assert curl
        placed = subprocess.run(["sh", "-c", curl[0]], capture_output=True, check=True)
        order = httpx.Response(202, content=placed.stdout).json()
        assert order["status"] == "PENDING"
        url = f"{first.url}/api/v1/orders/{order['order_id']}"
        wait_until(lambda: httpx.get(url).json()["status"] == "COMPLETED", TIMEOUT_S, "no order")
        asyncio.run(make_earlier(home))
        # A second signal does not break the stopping.
        assert first.stop(signal.SIGINT, signal.SIGINT, signal.SIGTERM) == 0
    assert find_processes(home) == []
    assert "the data is kept" in first.output()

    with Up(home, port) as second:
        second.until_ready()
        assert "view stock was made by version 1, this code makes version 2" in second.output()
        assert re.search(r"stock rebuilt, .* kept as stock_old \d+\.\d s", second.output())
        assert httpx.get(product).json()["stock"] == 99
        assert httpx.get(url).json()["status"] == "COMPLETED"
        for name in METRICS_PORTS:
            port = int(dotenv_values(home / "stack.env")[name] or 0)
            wait_until(lambda port=port: shows_metrics(port), TIMEOUT_S, f"no metrics at {name}")
        second.stop(signal.SIGKILL)
    wait_until(lambda: not find_processes(home), TIMEOUT_S, "`ledger up` was killed, and not all")


def refusal(settings: Settings, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        run_stack(settings)
    assert ended.value.code == 1
    return " ".join(capsys.readouterr().out.split())


def test_ctrl_c_waits_for_a_step_that_can_not_be_cut_short_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an installation by apt, of which a half would be worse."""
    said: list[str] = []

    def prepare(_: Settings, terminal: up.Terminal) -> ServerPrograms:
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: len(said) == 2, TIMEOUT_S, "it's not said that it waits")
        terminal.line("installed")
        raise StackRefused("nobody asks any more")

    monkeypatch.setattr(up, "prepare", prepare)
    monkeypatch.setattr(up.Terminal, "line", lambda _, text, *__: said.append(text))
    run_stack(Settings(home=tmp_path, api_port=free_port()))
    assert said == [
        "stopping …",
        "waiting until the step under way has ended",
        "installed",
        "stopped; the data is kept",
    ]


def test_a_second_up_is_refused_while_one_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "up.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        said = refusal(Settings(home=tmp_path), capsys)
    assert "is running already: stop that one with Ctrl-C, or set LEDGER_HOME" in said


def test_a_busy_api_port_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        said = refusal(Settings(home=tmp_path, api_port=busy.getsockname()[1]), capsys)
    assert "stop what uses it, or set LEDGER_API_PORT to a free port" in said
    assert not (tmp_path / "database").exists()


@pytest.mark.parametrize(
    ("home", "cause"),
    [
        ("file", "is a file; set"),
        ("file/below", "what should hold it, is a file; set"),
        ("/proc/nowhere", r"\(No such file.*set"),
    ],
)
def test_a_home_that_can_not_be_made_is_refused_with_the_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], home: str, cause: str
) -> None:
    (tmp_path / "file").touch()
    said = refusal(Settings(home=tmp_path / home, api_port=free_port()), capsys)
    assert re.search(f"can't use .*{cause} LEDGER_HOME to a directory", said)


def test_a_disk_without_room_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "NEW_HOME_MB", 10**9)
    said = refusal(Settings(home=tmp_path, api_port=free_port()), capsys)
    assert re.search(r"has \d+ MB free and 1000000560 MB are needed: make room", said)
    assert not (tmp_path / "database").exists()
