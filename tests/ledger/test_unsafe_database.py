"""A server that could lose a COMMIT is refused. The tests need a server of their own."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from cli.localstack.install import ensure_binaries
from cli.localstack.servers import prepare_database
from cli.localstack.supervisor import LEDGER
from cli.settings import Settings
from ledger.runtime.database import UnsafeDatabase, make_engine, refuse_unsafe
from tests.harness import DEADLINE_S, environment, free_port
from tests.private_servers import Servers, wait_until

PASSWORD = "for-this-test"
ACCOUNTS = "".join(
    f"CREATE USER IF NOT EXISTS '{name}'@'%' IDENTIFIED BY '{PASSWORD}';\n"
    f"GRANT ALL PRIVILEGES ON *.* TO '{name}'@'%';\n"
    for name in ("admin", "ledger_writer", "ledger_migrate")
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[URL]:
    """A database with a binary log, whose settings the test may change."""
    home = tmp_path_factory.mktemp("unsafe")
    bootstrap = home / "bootstrap.sql"
    bootstrap.write_text(ACCOUNTS)
    port = free_port()
    program = prepare_database(home, bootstrap, port, ensure_binaries(lambda _: None))
    with (home / "database" / "my.cnf").open("a") as configuration:
        configuration.write("log-bin = binlog\nserver-id = 1\nsync-binlog = 1\n")
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(program.command, env=program.environment, stdout=log, stderr=log)
    try:
        wait_until(program.answers, program.start_timeout_s, "the database gave no answer")
        yield URL.create("mysql+asyncmy", "admin", PASSWORD, "127.0.0.1", port, "mysql")
    finally:
        process.kill()
        process.wait()


async def refusal(url: URL, *statements: str) -> str:
    """The message of UnsafeDatabase after these statements; empty if the server is safe."""
    engine = make_engine(url)
    try:
        async with engine.connect() as connection:
            for statement in statements:
                await connection.exec_driver_sql(statement)
            try:
                await refuse_unsafe(connection)
            except UnsafeDatabase as error:
                return str(error)
            return ""
    finally:
        await engine.dispose()


async def test_a_server_that_may_lose_a_commit_is_refused_with_the_remedy(url: URL) -> None:
    assert await refusal(url) == ""
    for name in ("innodb_flush_log_at_trx_commit", "sync_binlog"):
        for value in (0, 2):
            message = await refusal(url, f"SET GLOBAL {name} = {value}")
            assert f"{name} is {value}: set it to 1" in message
        assert await refusal(url, f"SET GLOBAL {name} = 1") == ""


@pytest.mark.parametrize("command", ["writer", "migrate"])
async def test_neither_writer_nor_migrate_starts_on_such_a_server(
    servers: Servers, url: URL, tmp_path: Path, command: str
) -> None:
    """Each ends before it has done anything, with one line that names the remedy."""
    assert url.port
    for name in (f"amqp_{command}", f"db_{command}"):
        (tmp_path / name).write_text(PASSWORD)
    settings = Settings(
        home=tmp_path,
        secrets_dir=tmp_path,
        amqp_port=servers.amqp_port,
        db_port=url.port,
        db_name="mysql",
    )
    message = await refusal(url, "SET GLOBAL innodb_flush_log_at_trx_commit = 2")
    ended = await asyncio.to_thread(
        subprocess.run,
        [LEDGER, command],
        env=os.environ | environment(settings),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert await refusal(url, "SET GLOBAL innodb_flush_log_at_trx_commit = 1") == ""
    assert ended.returncode == 1
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
