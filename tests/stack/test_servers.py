"""The private pair: beside others, on loopback only, and gone when it's to be gone."""

import re
from dataclasses import replace
from pathlib import Path

import aio_pika
import asyncmy
import psutil
import pytest

from cli.localstack import StackRefused
from cli.localstack.install import ensure_binaries
from cli.localstack.servers import prepare_rabbitmq
from cli.localstack.supervisor import find_processes
from cli.settings import Settings
from tests.harness import engine_of
from tests.private_servers import Servers, prepare, start_servers

LONG = "a directory with spaces, ümlauts and % in a path longer than any socket's may be " * 2


def listening(home: Path) -> set[str]:
    return {
        connection.laddr.ip
        for process in find_processes(home)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


@pytest.mark.usefixtures("servers")
def test_a_pair_starts_beside_another_on_loopback_only_and_leaves_nothing(tmp_path: Path) -> None:
    home = tmp_path / LONG
    with start_servers(home) as pair:
        names = {process.name() for process in find_processes(home)}
        assert {"beam.smp", "epmd"} <= names
        assert names & {"mariadbd", "mysqld"}
        assert listening(home) <= {"127.0.0.1", "::1"}
        assert pair.amqp_port != pair.db_port
    assert find_processes(home) == []


def test_data_and_ports_are_there_again_after_a_restart(tmp_path: Path) -> None:
    first = prepare(tmp_path)
    inode = (tmp_path / "database" / "data").stat().st_ino
    assert prepare(tmp_path).ports == first.ports
    assert (tmp_path / "database" / "data").stat().st_ino == inode


def test_new_secrets_leave_the_broker_the_node_that_its_data_belongs_to(tmp_path: Path) -> None:
    """Under another name it would start with an empty inbox: what was accepted would be lost."""
    first = prepare(tmp_path).broker.environment["RABBITMQ_NODENAME"]
    (tmp_path / "secrets" / "erlang_cookie").unlink()
    assert prepare(tmp_path).broker.environment["RABBITMQ_NODENAME"] == first


def test_what_the_broker_keeps_is_for_this_user_alone_in_a_home_of_an_earlier_release_too(
    tmp_path: Path,
) -> None:
    """Its files hold the customers' names of undecided orders."""
    base = tmp_path / "rabbitmq"
    assert prepare(tmp_path).broker
    assert base.stat().st_mode & 0o077 == 0
    segment = base / "data" / "node" / "quorum" / "1.segment"
    segment.parent.mkdir(parents=True)
    segment.touch()
    for path in (base, *base.rglob("*")):
        path.chmod(0o755)
    prepare(tmp_path)
    assert [path for path in (base, *base.rglob("*")) if path.stat().st_mode & 0o077] == []


async def test_no_server_shares_the_place_of_its_temporary_files(
    settings: Settings, servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MariaDB removes at its start what it takes for left behind there, of another one too."""
    engine = engine_of(settings, "migrate")
    async with engine.connect() as connection:
        directory = (await connection.exec_driver_sql("SELECT @@tmpdir")).scalar_one()
    await engine.dispose()
    assert Path(str(directory)) == servers.home / "database" / "tmp"
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    prepare(tmp_path)


async def test_neither_root_nor_guest_can_log_in(servers: Servers) -> None:
    with pytest.raises(asyncmy.errors.OperationalError, match=r"Access denied|locked"):
        await asyncmy.connect(host="127.0.0.1", port=servers.db_port, user="root")
    with pytest.raises(aio_pika.exceptions.ProbableAuthenticationError):
        await aio_pika.connect(f"amqp://guest:guest@127.0.0.1:{servers.amqp_port}/ledger")


def test_a_server_that_does_not_start_is_named_with_its_last_line_and_the_other_is_stopped(
    tmp_path: Path,
) -> None:
    broken = tmp_path / "rabbitmq-server"
    broken.write_text("#!/bin/sh\necho no more of this\nexit 3\n")
    broken.chmod(0o755)
    home = tmp_path / "home"
    programs = prepare(home)
    binaries = replace(ensure_binaries(lambda _: None), rabbitmq_server=broken)
    _, broker = prepare_rabbitmq(home, programs.secrets_dir, programs.ports, binaries)
    log = re.escape(str(home / "logs" / "rabbitmq.log"))
    with pytest.raises(StackRefused, match=rf"rabbitmq ended .*no more of this\): see {log}"):
        Servers(replace(programs, broker=broker)).start()
    assert find_processes(home) == []
