"""The short commands: what they show, and that doing a thing twice is doing it once."""

import asyncio
from pathlib import Path

import pytest

from cli.commands.status import read_status
from cli.localstack.supervisor import MARK
from cli.settings import Settings, load_settings, unknown_variables
from ledger.messaging.consumer import PREFETCH
from projections.views.projection import METADATA
from projections.views.registry import PROJECTIONS
from tests.harness import eventually, free_port
from tests.ledger.pipeline import Ledger, running_ledger
from tests.private_servers import Servers
from tests.submissions import opening, orders

from .conftest import Run, shell, typed

COMMANDS = ("migrate", "api", "writer", "status")


async def test_status_of_a_new_ledger_is_all_zero(run: Run) -> None:
    done = await run("status", "--json")
    assert done.status == 0
    assert done.json == {
        "position": 0,
        "hash": "00" * 32,
        "epoch": 0,
        "views": [
            {
                "name": view.name,
                "position": 0,
                "lag": 0,
                "version": view.version,
                "code_version": view.version,
            }
            for view in sorted(PROJECTIONS, key=lambda view: view.name)
        ],
        "inbox_messages": 0,
        "held_messages_at_most": 0,
        "parked_messages": 0,
    }


async def test_status_shows_head_lag_and_depths(run: Run, settings: Settings) -> None:
    async with running_ledger(settings) as ledger:
        await ledger.put(b"poison")
        await ledger.write(opening(), orders(3))
        await ledger.put_events(orders(1), orders(1))
        head = await ledger.head()
    shown = (await run("status", "--json")).json
    assert (shown["position"], shown["hash"], shown["epoch"]) == (8, head.hash.hex(), 1)
    assert {view["lag"] for view in shown["views"]} == {8}
    assert (shown["inbox_messages"], shown["parked_messages"]) == (2, 1)
    assert shown["held_messages_at_most"] == 0
    table = (await run("status")).out
    for part in ("position 8, epoch 1", head.hash.hex(), "8 behind", "`ledger parked list`"):
        assert part in table
    assert "2 messages wait, no writer is connected" in table


async def test_status_bounds_the_messages_that_the_broker_does_not_count(
    settings: Settings,
) -> None:
    async with running_ledger(settings) as ledger, ledger.connection("migrate") as other:
        await ledger.write(opening())
        # The writer takes what it may hold, and gets stuck at the head.
        await other.exec_driver_sql("UPDATE ledger_head SET epoch = epoch WHERE id = 1")
        await ledger.put_events(*[orders(1) for _ in range(PREFETCH + 3)])
        async with ledger.writing(), ledger.writing():

            async def all_else_waits() -> bool:
                shown = await read_status(settings)
                return (shown.inbox_messages, shown.held_messages_at_most) == (3, PREFETCH)

            await eventually(all_else_waits, "a writer holds what it may")
            await other.rollback()
            await ledger.until_inbox_empty()


async def objects(ledger: Ledger) -> dict[str, object]:
    """The whole schema, its rows and the rights of every account."""
    tables = [name for (name,) in await ledger.rows("SHOW TABLES")]
    found: dict[str, object] = {"triggers": await ledger.rows("SHOW TRIGGERS")}
    for table in tables:
        found[table] = await ledger.rows(f"SHOW CREATE TABLE {table}")
        found[f"rows of {table}"] = sorted(await ledger.rows(f"SELECT * FROM {table}"))
    for role in ("writer", "projector", "api", "analyst"):
        found[role] = sorted(await ledger.rows("SHOW GRANTS", role))
    return found


async def test_migrating_twice_changes_nothing(run: Run, settings: Settings) -> None:
    async with running_ledger(settings) as ledger:
        await ledger.write(opening(), orders(3))
        await ledger.put_events(orders(1))
        before = await objects(ledger)
        done = await run("migrate")
        assert (done.status, done.err) == (0, "")
        assert await objects(ledger) == before
        assert len(await ledger.waiting()) == 1


async def test_migrate_adds_missing_indexes_to_existing_views(run: Run, settings: Settings) -> None:
    async with running_ledger(settings) as ledger, ledger.projecting():
        before = await indexes(ledger)
        for table in METADATA.sorted_tables:
            for index in table.indexes:
                await ledger.execute(f"DROP INDEX {index.name} ON {table.name}")
        await ledger.write(opening(), orders(3))
        done = await run("migrate")
        assert (done.status, done.err) == (0, "")
        assert await indexes(ledger) == before


async def indexes(ledger: Ledger) -> set[tuple[object, ...]]:
    """Each column of each index of the views."""
    rows = await ledger.rows(
        "SELECT table_name, index_name, non_unique, seq_in_index, column_name"
        " FROM information_schema.statistics WHERE table_schema = DATABASE()"
    )
    return {row for row in rows if row[0] in METADATA.tables}


async def test_loading_the_demo_twice_changes_nothing(run: Run, settings: Settings) -> None:
    async with running_ledger(settings) as ledger, ledger.writing(), ledger.projecting():
        first = await run("demo")
        assert first.status == 0, first.err
        assert len(await ledger.records()) == 5
        assert (await run("demo")).status == 0
        await ledger.put_events(last := orders(1))
        assert len(await ledger.until_recorded(last)) == 5 + 2


@pytest.mark.parametrize("command", COMMANDS)
def test_a_typo_in_a_setting_is_named_in_one_sentence(command: str) -> None:
    done = typed(command, LEDGER_API_PORT="abc")
    assert done.status == 2
    assert "LEDGER_API_PORT=abc" in done.said_one_sentence()


@pytest.mark.parametrize(
    ("variable", "known"),
    [
        ("LEDGER_API_PROT", "LEDGER_API_PORT"),
        ("LEDGER_AUHT", "LEDGER_AUTH"),
        ("LEDGER_DBNAME", "LEDGER_DB_NAME"),
        ("LEDGER_ACESS_LOG", "LEDGER_ACCESS_LOG"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_one_that_was_meant(
    variable: str, known: str
) -> None:
    done = typed("status", **{variable: "1"})
    assert done.status == 2
    assert f"{variable} is no setting: did you mean {known}?" in done.said_one_sentence()


def test_variables_of_other_programs_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LEDGER_FILE", "LEDGER_PRICE_DB", "LEDGER_API_KEY", "LEDGER_URL"):
        monkeypatch.setenv(name, "x")
    load_settings()
    assert "LEDGER_FILE" in unknown_variables()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("statsu",), "Did you mean 'status'?"),
        (("keys", "lsit"), "Did you mean 'list'?"),
        (("status", "--jsno"), "--json"),
    ],
)
def test_a_misspelt_command_or_option_is_answered_with_a_hint(
    arguments: tuple[str, ...], hint: str
) -> None:
    done = typed(*arguments)
    assert done.status == 2
    assert hint in done.err


@pytest.mark.parametrize("content", ["directory", "bytes"])
def test_a_file_of_ports_that_can_not_be_read_is_one_sentence(tmp_path: Path, content: str) -> None:
    if content == "bytes":
        (tmp_path / "stack.env").write_bytes(b"LEDGER_DB_PORT=\xff\xfe")
    else:
        (tmp_path / "stack.env").mkdir()
    done = typed("status", LEDGER_HOME=str(tmp_path))
    assert done.status in (1, 2)
    assert str(tmp_path) in done.said_one_sentence()


async def test_every_bad_setting_is_named_at_once(run: Run) -> None:
    done = await run("status", LEDGER_DB_PORT="70000", LEDGER_DB_NAME="no such name")
    assert done.status == 2
    said = done.said_one_sentence()
    assert "LEDGER_DB_PORT=70000" in said
    assert "LEDGER_DB_NAME=no such name" in said


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_missing_password_is_one_sentence_with_the_remedy(
    run: Run, command: str, tmp_path: Path
) -> None:
    done = await run(command, LEDGER_SECRETS_DIR=str(tmp_path))
    assert done.status == 1
    said = done.said_one_sentence()
    assert str(tmp_path) in said
    assert "make run" in said


@pytest.mark.parametrize("command", ["status", "migrate"])
async def test_a_server_that_is_away_is_one_sentence(run: Run, command: str) -> None:
    for setting in ("LEDGER_DB_PORT", "LEDGER_AMQP_PORT"):
        done = await run(command, **{setting: str(free_port())})
        assert done.status == 1
        assert "does not answer" in done.said_one_sentence()


async def test_the_stack_that_was_started_here_is_named_with_the_settings_it_has(
    settings: Settings, tmp_path: Path
) -> None:
    """The machine may run others."""
    home = tmp_path / "its home"
    mark = {MARK: str(home), "LEDGER_HOME": str(home)}
    stack = await asyncio.create_subprocess_exec("sleep", "60", env=mark, cwd=tmp_path)
    try:
        done = await shell(
            settings, "LEDGER_HOME=none LEDGER_SECRETS_DIR=none ledger status", tmp_path
        )
    finally:
        stack.kill()
        await stack.wait()
    assert done.status == 1
    assert f"started in this directory has 'LEDGER_HOME={home}'" in done.said_one_sentence()


async def test_before_the_first_migration_a_sentence_says_what_is_missing(
    run: Run, tmp_path: Path, servers: Servers
) -> None:
    for path in servers.secrets_dir.iterdir():
        (tmp_path / path.name).write_text("not yet the password of the account")
    for command in ("verify", "status", "balance"):
        done = await run(command, LEDGER_SECRETS_DIR=str(tmp_path))
        assert done.status in (1, 3)
        assert "this ledger is not ready: `make run` is still starting" in done.said_one_sentence()


async def test_a_damaged_ledger_ends_the_writer_with_one_sentence(
    run: Run, settings: Settings
) -> None:
    async with running_ledger(settings) as ledger:
        await ledger.write(opening())
        await ledger.execute("DROP TRIGGER events_no_update")
        await ledger.execute("UPDATE events SET meta = '{}' WHERE position = 1")
    done = await run("writer")
    assert done.status == 1
    assert "LedgerDamaged: position 1: the hash is not" in done.err
    assert "Traceback" not in done.err


async def test_no_command_prints_a_password(run: Run, servers: Servers) -> None:
    secrets = [path.read_text().strip() for path in servers.secrets_dir.glob("*_*")]
    assert secrets
    for arguments, changes in (
        (("status",), {}),
        (("status",), {"LEDGER_DB_PORT": str(free_port())}),
        (("status",), {"LEDGER_AMQP_VHOST": "nowhere"}),
        (("migrate",), {"LEDGER_AMQP_PORT": str(free_port())}),
    ):
        done = await run(*arguments, **changes)
        assert not any(secret in done.out + done.err for secret in secrets if secret)
