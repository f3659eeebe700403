"""`ledger export`: whole, of one position, exact in every format, and nothing at all otherwise."""

import asyncio
import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import pytest

from cli.exports.reading import pin_views, view_rows
from cli.exports.tables import TABLES
from cli.settings import Settings
from ledger.chain import GENESIS_HASH, Record, next_hash
from projections.registry import PROJECTIONS
from tests.harness import environment, eventually
from tests.ledger.events import history, opening, orders
from tests.ledger.running import Ledger, running_ledger
from tests.projections.views import advance_to_the_end
from tests.proxy import open_proxy

from .conftest import Run

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FORMATS = ("parquet", "csv", "jsonl")
NOTHING = {"events": 0, **{projection.name: 0 for projection in PROJECTIONS}}


@asynccontextmanager
async def filled(settings: Settings, submissions: int = 300) -> AsyncIterator[Ledger]:
    """A ledger with every kind of event, and its views."""
    async with running_ledger(settings) as ledger:
        await ledger.write(history(5, submissions))
        await project(ledger)
        yield ledger


async def project(ledger: Ledger) -> None:
    """Bring the views to the head."""
    async with ledger.connection("projector") as connection:
        await advance_to_the_end(connection)


def manifest(directory: Path) -> Any:
    """The manifest of an export."""
    return json.loads((directory / "manifest.json").read_text())


def events_of(directory: Path) -> list[Record]:
    """The records of an export, read by tools that are not ours."""
    if (directory / "events.parquet").exists():
        rows = duckdb.sql(
            "SELECT position, event_id, stream_id, version, type, schema_version, cause_position,"
            " epoch_us(occurred_at), epoch_us(recorded_at), meta, data, hash"
            f" FROM '{directory}/events.parquet'"
        ).fetchall()
        return [
            Record(p, e.bytes, s.bytes, *middle, meta.encode(), data.encode(), hash_)
            for p, e, s, *middle, meta, data, hash_ in rows
        ]
    if (directory / "events.csv").exists():
        with (directory / "events.csv").open(newline="") as file:
            found = [(row, row["meta"], row["data"]) for row in csv.DictReader(file)]
    else:
        lines = (directory / "events.jsonl").read_text().splitlines()
        found = [
            (json.loads(line), canonical(line, "meta"), canonical(line, "data")) for line in lines
        ]
    return [from_text(*parts) for parts in found]


def canonical(line: str, name: str) -> str:
    """A JSON column as it stands in the ledger."""
    return json.dumps(json.loads(line)[name], separators=(",", ":"), ensure_ascii=False)


def from_text(row: dict[str, Any], meta: str, data: str) -> Record:
    """A record of the text form of its columns."""
    occurred_at_us, recorded_at_us = (
        (datetime.fromisoformat(row[name]) - EPOCH) // timedelta(microseconds=1)
        for name in ("occurred_at", "recorded_at")
    )
    return Record(
        int(row["position"]),
        UUID(row["event_id"]).bytes,
        UUID(row["stream_id"]).bytes,
        int(row["version"]),
        row["type"],
        int(row["schema_version"]),
        int(row["cause_position"]),
        occurred_at_us,
        recorded_at_us,
        meta.encode(),
        data.encode(),
        bytes.fromhex(row["hash"]),
    )


@pytest.mark.parametrize("format_", FORMATS)
async def test_the_events_of_an_export_are_those_of_the_ledger_to_the_byte(
    run: Run, settings: Settings, tmp_path: Path, format_: str
) -> None:
    async with filled(settings) as ledger:
        records = await ledger.records()
    done = await run("export", "events", "--format", format_, "--out", str(tmp_path / "to"))
    assert done.status == 0, done.err
    exported = events_of(tmp_path / "to")
    assert exported == records
    hash_ = GENESIS_HASH
    for record in exported:
        hash_ = next_hash(hash_, record)
        assert record.hash == hash_
    assert manifest(tmp_path / "to")["hash"] == hash_.hex()


@pytest.mark.parametrize("format_", FORMATS)
async def test_an_export_has_every_row_of_every_view(
    run: Run, settings: Settings, tmp_path: Path, format_: str
) -> None:
    async with filled(settings) as ledger:
        done = await run("export", "--all", "--format", format_, "--out", str(tmp_path))
        assert done.status == 0, done.err
        for projection in PROJECTIONS:
            columns = ", ".join(projection.columns)
            real = await ledger.rows(f"SELECT {columns} FROM {projection.name}")
            exported = text_of(tmp_path / f"{projection.name}.{format_}")
            expected = [tuple(map(text, row)) for row in real]
            if format_ == "csv":  # which has no NULL
                expected = [tuple(v if v else "None" for v in row) for row in expected]
            assert sorted(exported) == sorted(expected)


def text_of(file: Path) -> list[tuple[str, ...]]:
    """The rows of a file as DuckDB reads them, in text."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        found = connection.sql(f"SELECT COLUMNS(*)::VARCHAR FROM '{file}'").fetchall()
    return [tuple(map(text, row)) for row in found]


def text(value: object) -> str:
    """A value in text, the same however it came."""
    if isinstance(value, bytes):
        return str(UUID(bytes=value))
    if isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d[ T]", value):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat()
    return str(value)


async def test_the_manifest_tells_what_is_there(
    run: Run, settings: Settings, tmp_path: Path
) -> None:
    async with filled(settings) as ledger:
        head = await ledger.head()
    done = await run("export", "--all", "--out", str(tmp_path), "--json")
    made = manifest(tmp_path)
    assert done.json == made
    assert (made["position"], made["hash"]) == (head.position, head.hash.hex())
    assert [entry["name"] for entry in made["tables"]] == list(NOTHING)
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["manifest.json", *(entry["file"] for entry in made["tables"])]
    )
    for entry in made["tables"]:
        body = (tmp_path / entry["file"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(body), sha256(body).hexdigest())
        rows = duckdb.sql(f"SELECT * FROM '{tmp_path}/{entry['file']}'")
        assert [column["name"] for column in entry["columns"]] == rows.columns
        assert entry["rows"] == len(rows)


async def test_with_a_view_the_events_end_where_the_view_is(
    run: Run, settings: Settings, tmp_path: Path
) -> None:
    async with filled(settings) as ledger:
        projected = await ledger.head()
        await ledger.write(history(6, 20))
    assert (await run("export", "events", "stock", "--out", str(tmp_path))).status == 0
    made = manifest(tmp_path)
    assert (made["position"], made["hash"]) == (projected.position, projected.hash.hex())
    assert events_of(tmp_path)[-1].position == projected.position
    done = await run("export", "events", "--out", str(tmp_path / "events"), "--json")
    assert done.json["position"] > projected.position


async def test_views_stay_as_they_were_while_others_are_read(settings: Settings) -> None:
    async with filled(settings) as ledger, ledger.connection("projector") as connection:
        views = [TABLES["stock"], TABLES["wallets"], TABLES["orders"]]
        pin = await pin_views(connection, views)
        before = [await ledger.rows(f"SELECT COUNT(*), MAX(position) FROM {v.name}") for v in views]
        await ledger.write([*opening(), *orders(5)])
        await project(ledger)
        for view, [(count, newest)] in zip(views, before, strict=True):
            rows = [row async for page in view_rows(connection, view) for row in page]
            assert len(rows) == count
            assert max(row[-1] for row in rows) == newest <= pin.position


async def test_views_at_different_positions_are_not_exported_as_one(
    run: Run, settings: Settings, tmp_path: Path
) -> None:
    async with filled(settings) as ledger:
        await ledger.execute("UPDATE checkpoints SET position = 1 WHERE name = 'stock'")
    done = await run("export", "stock", "orders", "--out", str(tmp_path / "to"))
    assert done.status == 1
    assert "different positions" in done.said_one_sentence()
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("format_", FORMATS)
async def test_an_empty_ledger_makes_an_export_of_no_rows(
    run: Run, tmp_path: Path, format_: str
) -> None:
    done = await run("export", "--all", "--format", format_, "--out", str(tmp_path), "--json")
    assert done.status == 0, done.err
    assert (done.json["position"], done.json["hash"]) == (0, GENESIS_HASH.hex())
    assert {entry["name"]: entry["rows"] for entry in done.json["tables"]} == NOTHING
    if format_ == "parquet":
        assert duckdb.sql(f"SELECT * FROM '{tmp_path}/events.parquet'").fetchall() == []


async def test_an_export_is_not_written_over_unless_that_is_asked_for(
    run: Run, settings: Settings, tmp_path: Path
) -> None:
    assert (await run("export", "--all", "--format", "csv", "--out", str(tmp_path))).status == 0
    before = manifest(tmp_path)
    async with filled(settings):
        pass
    done = await run("export", "stock", "--out", str(tmp_path))
    assert done.status == 1
    assert "manifest.json is there already" in done.said_one_sentence()
    assert manifest(tmp_path) == before
    assert (await run("export", "stock", "--out", str(tmp_path), "--overwrite")).status == 0
    assert sorted(os.listdir(tmp_path)) == ["manifest.json", "stock.parquet"]


async def test_a_file_that_is_no_export_is_not_written_over(run: Run, tmp_path: Path) -> None:
    (tmp_path / "stock.csv").write_text("mine")
    done = await run("export", "stock", "--format", "csv", "--out", str(tmp_path))
    assert done.status == 1
    assert "stock.csv is there already" in done.said_one_sentence()
    assert (tmp_path / "stock.csv").read_text() == "mine"


async def test_a_changed_ledger_is_not_exported(
    run: Run, settings: Settings, tmp_path: Path
) -> None:
    async with filled(settings) as ledger:
        await ledger.execute("DROP TRIGGER events_no_update")
        await ledger.execute("UPDATE events SET version = 99 WHERE position = 7")
    done = await run("export", "events", "--out", str(tmp_path / "to"))
    assert done.status == 1
    assert "the hash at position 7" in done.said_one_sentence()
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sales"], "there is no sales to export"),
        ([], "say what to export"),
        (["stock", "--all"], "say what to export"),
    ],
)
async def test_what_can_not_be_exported_is_named(
    run: Run, tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = await run("export", *arguments, "--out", str(tmp_path / "to"))
    assert done.status == 2
    assert said in done.said_one_sentence()
    assert not (tmp_path / "to").exists()


async def test_a_place_that_can_not_be_written_to_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = await run("export", "stock", "--out", str(tmp_path / "file" / "to"))
    assert done.status == 1
    assert str(tmp_path / "file") in done.said_one_sentence()


@pytest.mark.parametrize("format_", FORMATS)
async def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    settings: Settings, tmp_path: Path, format_: str
) -> None:
    async with filled(settings, 1_000):
        pass
    limited = 'ulimit -f 20; exec "$0" export --all --format "$1" --out "$2"'
    process = await asyncio.create_subprocess_exec(
        *(
            "bash",
            "-c",
            limited,
            Path(sys.executable).with_name("ledger"),
            format_,
            tmp_path / "to",
        ),
        env=os.environ | environment(settings),
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    sentence = rf"✗ ExportRefused: can't write {tmp_path}/to/\w+\.{format_}: File too large"
    assert re.fullmatch(sentence, said.decode().strip())
    assert os.listdir(tmp_path) == []


async def test_a_database_that_goes_away_half_way_leaves_nothing(
    run: Run, settings: Settings, tmp_path: Path
) -> None:
    async with filled(settings), open_proxy(settings.db_port) as proxy:
        proxy.lose(b"FROM wallets WHERE", delivered=False)
        done = await run(
            "export", "--all", "--out", str(tmp_path / "to"), LEDGER_DB_PORT=str(proxy.port)
        )
    assert proxy.lost == 1
    assert done.status == 1
    assert "the database failed meanwhile" in done.said_one_sentence()
    assert os.listdir(tmp_path) == []


@asynccontextmanager
async def half_way(settings: Settings, to: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    """An export that has begun to write a file, and waits for the database."""
    async with filled(settings), open_proxy(settings.db_port) as proxy:
        proxy.delay(0.05)
        process = subprocess.Popen(  # noqa: ASYNC220
            [Path(sys.executable).with_name("ledger"), "export", "stock", "wallets", "--out", to],
            env=os.environ | environment(settings) | {"LEDGER_DB_PORT": str(proxy.port)},
        )

        async def has_begun() -> bool:
            return (to / ".wallets.parquet.draft").exists()

        try:
            await eventually(has_begun, "the export writes wallets")
            proxy.stall()
            yield process
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)


async def test_ctrl_c_ends_an_export_and_leaves_nothing(settings: Settings, tmp_path: Path) -> None:
    async with half_way(settings, tmp_path / "to") as process:
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, timeout=15) == 130
    assert os.listdir(tmp_path) == []


async def test_a_killed_export_is_no_export_and_is_not_in_the_way(
    run: Run, settings: Settings, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    async with half_way(settings, to) as process:
        process.kill()
    assert [name for name in os.listdir(to) if not name.startswith(".")] == []
    assert (await run("export", "stock", "wallets", "--out", str(to))).status == 0
    assert sorted(os.listdir(to)) == ["manifest.json", "stock.parquet", "wallets.parquet"]


async def test_two_exports_to_one_place_do_not_mix(
    run: Run, settings: Settings, tmp_path: Path
) -> None:
    async with half_way(settings, tmp_path):
        done = await run("export", "events", "--out", str(tmp_path))
    assert done.status == 1
    assert "another export" in done.said_one_sentence()


async def test_without_pyarrow_the_remedy_is_named_and_text_goes_on(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "pyarrow.py").write_text("raise ModuleNotFoundError(name='pyarrow')")
    without = {"PYTHONPATH": str(tmp_path)}
    done = await run("export", "events", "--out", str(tmp_path / "to"), **without)
    assert done.status == 1
    assert "pip install 'order-ledger[parquet]'" in done.said_one_sentence()
    text = ("export", "events", "--format", "csv", "--out", str(tmp_path / "to"))
    assert (await run(*text, **without)).status == 0
