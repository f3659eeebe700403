"""Servers that are too old, too new, or of another make than the data: what is said of each."""

import asyncio
import logging
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from cli import connections
from cli.localstack import StackRefused
from cli.localstack.install import ensure_binaries
from cli.localstack.servers import prepare_database, prepare_rabbitmq
from cli.settings import Settings
from ledger.messaging.rabbitmq import Connection
from ledger.runtime import versions
from ledger.runtime.versions import SUPPORTED, Unsupported, check
from tests.harness import DEADLINE_S, environment, free_port
from tests.private_servers import prepare

ROOT = Path(__file__).parents[2]
OF_3_10 = "[quorum_queue,stream_queue,\n virtual_host_metadata]."
OF_3_13 = "[message_containers,quorum_queue]."
OF_4_0 = "[message_containers,message_containers_deaths_v2,'rabbitmq_4.0.0']."
OF_4_3 = "[message_containers,'rabbitmq_4.0.0','rabbitmq_4.2.0',\n 'rabbitmq_4.3.0']."


@pytest.mark.parametrize(
    ("product", "text"),
    [
        ("RabbitMQ", "3.10.8"),
        ("RabbitMQ", "4.3.6"),
        ("MySQL", "8.4.0-commercial"),
        ("MySQL", "9.7.4-2"),
        ("MariaDB", "10.11.19-MariaDB-0+deb12u1"),
        ("MariaDB", "11.8.9-MariaDB"),
        ("Python", "3.14.0"),
    ],
)
def test_both_ends_of_the_range_are_taken_in_silence(
    caplog: pytest.LogCaptureFixture, product: str, text: str
) -> None:
    check(product, versions.version_of(text))
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("product", "text"),
    [("RabbitMQ", "3.9.30"), ("MySQL", "8.3.9"), ("MariaDB", "10.6.20"), ("Python", "3.10.12")],
)
def test_an_older_one_is_refused_with_the_range(product: str, text: str) -> None:
    with pytest.raises(Unsupported, match=f"{product} .* is too old: .* to .* are supported"):
        check(product, versions.version_of(text))


@pytest.mark.parametrize(
    ("product", "text"),
    [("RabbitMQ", "4.4.0"), ("MySQL", "9.10.1"), ("MariaDB", "12.0.2"), ("MySQL", "none")],
)
def test_a_newer_one_is_warned_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, product: str, text: str
) -> None:
    monkeypatch.setattr(versions, "_warned", set())
    with caplog.at_level(logging.WARNING):
        check(product, versions.version_of(text))
        check(product, versions.version_of(text))
    (message,) = caplog.messages
    assert "was never tested with this ledger" in message


async def test_whoever_connects_learns_the_servers_own_versions(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real servers are too old for these ranges, in commands and in processes alike."""
    future = dict.fromkeys(SUPPORTED, ((99, 0), (99, 9)))
    monkeypatch.setattr(versions, "SUPPORTED", future)
    with pytest.raises(Unsupported, match=r"(MariaDB|MySQL) \d+\.\d+ is too old"):
        async with connections.connection(settings, "writer"):
            pass
    connection = Connection(settings.amqp_url("writer"), "versions")
    with pytest.raises(Unsupported, match=r"RabbitMQ \d+\.\d+ is too old"):
        async with connection.channel(confirms=False):
            pass


PATCHED = """
import sys
from ledger.runtime import versions
versions.SUPPORTED[sys.argv[1]] = ((99, 0), (99, 9))
if sys.argv[1] == "MariaDB":
    versions.SUPPORTED["MySQL"] = versions.SUPPORTED["MariaDB"]
from cli.main import app
sys.argv[1:] = sys.argv[2:]
app()
"""


@pytest.mark.parametrize("product", ["RabbitMQ", "MariaDB"])
@pytest.mark.parametrize("command", ["api", "writer", "projector"])
async def test_every_process_ends_with_a_sentence_on_a_server_that_is_too_old(
    settings: Settings, command: str, product: str
) -> None:
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", PATCHED, product, command],
        env=os.environ | environment(settings) | {"LEDGER_API_PORT": str(free_port())},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    assert "too old: 99.0 to 99.9 are supported" in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr


def test_docs_and_metadata_have_the_same_ranges() -> None:
    page = (ROOT / "docs/reference/engines.md").read_text()
    for product, (oldest, newest) in SUPPORTED.items():
        numbers = [".".join(map(str, version)) for version in (oldest, newest)]
        assert f"| {product} | {numbers[0]} | {numbers[1]} |" in page
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest, newest = SUPPORTED["Python"]
    assert project["requires-python"] == f">=3.{oldest[1]}"
    tested = [f"Programming Language :: Python :: 3.{n}" for n in range(oldest[1], newest[1] + 1)]
    assert [line for line in project["classifiers"] if ":: Python :: 3." in line] == tested


@pytest.mark.parametrize(
    ("flags", "version", "said"),
    [
        (OF_3_10, "4.0.5", r"RabbitMQ 4\.0 can't read the data of RabbitMQ before 3\.13 in"),
        (OF_3_10, "4.3.6", r"RabbitMQ 4\.3 can't read the data of RabbitMQ before 3\.13 in"),
        (OF_3_10, "3.13.7", ""),
        (OF_3_13, "4.0.5", ""),
        (OF_4_0, "4.3.6", ""),
        (OF_4_3, "4.3.1", ""),
        (OF_4_3, "4.0.5", r"RabbitMQ 4\.0 can't read the data of RabbitMQ 4\.3 in"),
        (OF_4_0, "3.10.8", r"RabbitMQ 3\.10 can't read the data of RabbitMQ 4\.0 in"),
    ],
)
def test_a_broker_that_cannot_read_the_data_is_not_started(
    tmp_path: Path, flags: str, version: str, said: str
) -> None:
    programs = prepare(tmp_path / "home")
    kept = programs.home / "rabbitmq" / "data" / "ledger-1@localhost-feature_flags"
    kept.write_text(flags)
    server = tmp_path / f"rabbitmq_server-{version}" / "sbin" / "rabbitmq-server"
    server.parent.mkdir(parents=True)
    server.touch()
    binaries = replace(ensure_binaries(lambda _: None), rabbitmq_server=server)
    arguments = (programs.home, programs.secrets_dir, programs.ports, binaries)
    if said:
        with pytest.raises(StackRefused, match=f"{said} .*docs/how-to/upgrade-servers.md"):
            prepare_rabbitmq(*arguments)
    else:
        prepare_rabbitmq(*arguments)
    assert kept.read_text() == flags


@pytest.mark.parametrize(
    ("mark", "maker", "install"),
    [
        ("aria_log_control", "MariaDB", None),
        ("mysql.ibd", "MySQL", Path("/usr/bin/mariadb-install-db")),
    ],
)
def test_the_data_of_the_other_database_is_left_as_it_is(
    tmp_path: Path, mark: str, maker: str, install: Path | None
) -> None:
    data = tmp_path / "database" / "data"
    data.mkdir(parents=True)
    (data / mark).touch()
    binaries = replace(ensure_binaries(lambda _: None), database_install=install)
    with pytest.raises(StackRefused, match=f"can't read the data of {maker} .*upgrade-servers.md"):
        prepare_database(tmp_path, tmp_path / "bootstrap.sql", 1, binaries)
    assert [path.name for path in data.iterdir()] == [mark]
