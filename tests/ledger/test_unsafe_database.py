"""A server that could lose a COMMIT is refused, and no default of a server counts.

The tests need a server of their own.
"""

import asyncio
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from cli.localstack.install import ensure_binaries
from cli.localstack.servers import prepare_database
from cli.localstack.supervisor import LEDGER
from cli.settings import Settings
from ledger.runtime.database import (
    SESSION_SETTINGS,
    SQL_MODE,
    UnsafeDatabase,
    make_engine,
    refuse_unsafe,
)
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


# What servers of others have by default: each of them changes what a statement means or returns.
GLOBALS = (
    "sql_mode = 'NO_BACKSLASH_ESCAPES,ANSI_QUOTES,PIPES_AS_CONCAT,NO_UNSIGNED_SUBTRACTION'",
    "sql_mode = ''",
    "time_zone = '+05:30'",
    "sql_select_limit = 1",
    "completion_type = 'RELEASE'",
    "sql_safe_updates = 1",
    "character_set_results = latin1",
    "character_set_client = latin1",
    "lock_wait_timeout = 31536000",
)
# Bytes that end a literal where a backslash does not escape: somebody's id may be these.
HOSTILE_IDS = (b"' or 1=1 #       ", b"@ABCDEFGHIJKLMN'", b"\\' or 1=1 -- \\\\ ", bytes(range(256)))


@pytest.mark.parametrize("setting", GLOBALS)
async def test_a_session_relies_on_no_default_of_the_server(url: URL, setting: str) -> None:
    name = setting.partition(" ")[0]
    before = await ask(url, f"SELECT @@GLOBAL.{name}")
    await ask(url, f"SET GLOBAL {setting}")
    try:
        assert await refusal(url) == ""
        found = await ask(
            url,
            "SELECT @@sql_mode, NOW() = UTC_TIMESTAMP(), @@lock_wait_timeout, COUNT(*)"
            " FROM (SELECT 1 UNION ALL SELECT 2) two",
        )
        assert [tuple(row) for row in found] == [(SQL_MODE, 1, 15, 2)]
        assert len(await ask(url, "SELECT 1 UNION ALL SELECT 2")) == 2
    finally:
        value = before[0][0]
        await ask(url, f"SET GLOBAL {name} = {value!r}")


@pytest.mark.parametrize("autocommit", [True, False])
async def test_every_session_reads_committed_rows(url: URL, autocommit: bool) -> None:
    await ask(url, "SET GLOBAL TRANSACTION ISOLATION LEVEL SERIALIZABLE")
    engine = make_engine(url, autocommit=autocommit)
    try:
        async with engine.connect() as connection:
            found = await connection.exec_driver_sql(
                "SHOW SESSION VARIABLES WHERE Variable_name IN"
                " ('tx_isolation', 'transaction_isolation')"
            )
            assert {value for _, value in found} == {"READ-COMMITTED"}
    finally:
        await engine.dispose()
        await ask(url, "SET GLOBAL TRANSACTION ISOLATION LEVEL READ COMMITTED")


@pytest.mark.parametrize("mode", ["", "NO_BACKSLASH_ESCAPES", "ANSI_QUOTES"])
@pytest.mark.parametrize("id_", HOSTILE_IDS)
async def test_no_bytes_leave_their_literal_in_any_mode(url: URL, id_: bytes, mode: str) -> None:
    """Not even in a mode that something set after the session began."""
    engine = make_engine(url)
    try:
        async with engine.connect() as connection:
            await connection.exec_driver_sql(f"SET SESSION sql_mode = '{mode}'")
            found = await connection.exec_driver_sql(
                "SELECT HEX(%s), %s = %s", (id_, id_, bytearray(id_))
            )
            assert tuple(found.one()) == (id_.hex().upper(), 1)
    finally:
        await engine.dispose()


async def test_a_server_that_changes_what_a_session_set_is_refused(url: URL) -> None:
    message = await refusal(url, "SET SESSION sql_mode = 'ANSI_QUOTES'")
    assert "sql_mode is 'ANSI_QUOTES' in a session that set it to 'ONLY_FULL_GROUP_BY" in message
    assert "init_connect" in message


async def test_a_server_that_lacks_a_setting_is_refused_in_a_sentence(
    url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SESSION_SETTINGS, "no_such_setting", 1)
    with pytest.raises(UnsafeDatabase, match=r"no_such_setting.*use a supported server"):
        await ask(url, "SELECT 1")


async def ask(url: URL, statement: str) -> Sequence[Any]:
    """The rows that a new session gets, if the statement gives rows."""
    engine = make_engine(url)
    try:
        async with engine.connect() as connection:
            found = await connection.exec_driver_sql(statement)
            return found.all() if found.returns_rows else []
    finally:
        await engine.dispose()
