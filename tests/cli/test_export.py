"""`ledger export`: complete, of one position, exact in every format, no files after a failure."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import duckdb
import pytest

from cli.export import ExportRefused, NoParquet
from cli.export.tables import pin_views, view_pages, view_table
from cli.localstack.supervisor import LEDGER
from cli.settings import Settings
from ledger.eventlog.records import GENESIS_HASH, LedgerDamaged, next_hash
from projections.views.journal import JOURNAL
from projections.views.orders import ORDERS
from projections.views.registry import PROJECTIONS
from tests.harness import DEADLINE_S, environment, eventually, start_ledger
from tests.ledger.pipeline import running_ledger
from tests.proxy import open_proxy
from tests.submissions import history, opening, orders

from .conftest import Run, record_every_kind_of_event, typed
from .exports import (
    EVERYTHING,
    export,
    exported_records,
    manifest,
    project,
    rows_in,
    text,
)

FORMATS = ("parquet", "csv", "jsonl")


@pytest.fixture
async def own_shop(settings: Settings) -> Settings:
    """Such a ledger of the test's own."""
    await record_every_kind_of_event(settings)
    return settings


@pytest.mark.parametrize("format_", FORMATS)
async def test_exported_events_are_those_of_the_ledger_to_the_byte(
    shop: Settings, tmp_path: Path, format_: str
) -> None:
    exported = await export(shop, tmp_path, "events", format_=format_)
    records = exported_records(tmp_path)
    async with running_ledger(shop) as ledger:
        assert records == await ledger.records()
    hash_ = GENESIS_HASH
    for record in records:
        hash_ = next_hash(hash_, record)
        assert record.hash == hash_
    assert exported.hash == hash_.hex()


@pytest.mark.parametrize("format_", FORMATS)
async def test_an_export_has_every_row_of_every_view(
    shop: Settings, tmp_path: Path, format_: str
) -> None:
    await export(shop, tmp_path, *EVERYTHING, format_=format_)
    async with running_ledger(shop) as ledger:
        for projection in PROJECTIONS:
            columns = ", ".join(projection.columns)
            real = await ledger.rows(f"SELECT {columns} FROM {projection.name}")
            expected = [tuple(map(text, row)) for row in real]
            if format_ == "csv":  # which has no NULL
                expected = [tuple(v if v else "None" for v in row) for row in expected]
            rows = rows_in(tmp_path / f"{projection.name}.{format_}")
            assert sorted(rows) == sorted(expected)


async def test_the_manifest_describes_every_file(run: Run, shop: Settings, tmp_path: Path) -> None:
    done = await run("export", "--all", "--out", str(tmp_path), "--json", **environment(shop))
    assert done.status == 0, done.err
    written = manifest(tmp_path)
    assert done.json == written
    async with running_ledger(shop) as ledger:
        head = await ledger.head()
    assert (written["position"], written["hash"]) == (head.position, head.hash.hex())
    assert tuple(entry["name"] for entry in written["tables"]) == EVERYTHING
    files = [entry["file"] for entry in written["tables"]]
    assert sorted(os.listdir(tmp_path)) == sorted(["manifest.json", *files])
    for entry in written["tables"]:
        body = (tmp_path / entry["file"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(body), sha256(body).hexdigest())
        rows = duckdb.sql(f"SELECT * FROM '{tmp_path}/{entry['file']}'")
        assert [column["name"] for column in entry["columns"]] == rows.columns
        assert entry["rows"] == len(rows)


async def test_with_a_view_the_events_end_where_the_view_is(
    own_shop: Settings, tmp_path: Path
) -> None:
    async with running_ledger(own_shop) as ledger:
        projected = await ledger.head()
        await ledger.write(history(6, 20))
    exported = await export(own_shop, tmp_path / "both", "events", "stock")
    assert (exported.position, exported.hash) == (projected.position, projected.hash.hex())
    assert exported_records(tmp_path / "both")[-1].position == projected.position
    exported = await export(own_shop, tmp_path / "events", "events")
    assert exported.position > projected.position


async def test_all_views_are_read_as_of_one_moment(own_shop: Settings) -> None:
    views = [view_table(projection) for projection in PROJECTIONS]
    async with (
        running_ledger(own_shop) as ledger,
        ledger.connection("projector") as connection,
    ):
        position = await pin_views(connection, views)
        before = [await ledger.rows(f"SELECT * FROM {view.name}") for view in views]
        await ledger.write([*opening(), *orders(5)])
        await project(ledger)
        for view, rows_before in zip(views, before, strict=True):
            index = [column.name for column in view.columns].index("position")
            rows = [row async for page in view_pages(connection, view) for row in page]
            assert len(rows) == len(rows_before)
            assert max(row[index] for row in rows) <= position


async def test_a_view_of_many_pages_is_whole_and_in_order(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.export.tables.PAGE", 7)
    async with (
        running_ledger(shop) as ledger,
        ledger.connection("projector") as connection,
    ):
        for view, key in ((ORDERS, "order_id"), (JOURNAL, "position, line")):
            keys = await ledger.rows(f"SELECT {key} FROM {view.name} ORDER BY {key}")
            pages = view_pages(connection, view_table(view))
            rows = [row async for page in pages for row in page]
            assert [tuple(row[: len(keys[0])]) for row in rows] == keys


async def test_encryption_keys_are_exported_only_with_keys(shop: Settings, tmp_path: Path) -> None:
    async with running_ledger(shop) as ledger:
        keys = [key for key in (await ledger.keys()).values() if key]
    assert keys
    without = await export(shop, tmp_path / "without", *EVERYTHING, format_="jsonl")
    assert without.keys is None
    exported = await export(shop, tmp_path / "with", *EVERYTHING, format_="jsonl", with_keys=True)
    assert exported.keys
    for key in keys:
        spellings = (key, key.hex().encode(), b64encode(key))
        for file in [
            to / name for to in (tmp_path / "with", tmp_path / "without") for name in os.listdir(to)
        ]:
            has_key = any(spelling in file.read_bytes() for spelling in spellings)
            assert has_key == (file == tmp_path / "with" / exported.keys.file)


async def test_views_at_different_positions_are_not_exported_as_one(
    own_shop: Settings, tmp_path: Path
) -> None:
    async with running_ledger(own_shop) as ledger:
        await ledger.execute("UPDATE checkpoints SET position = 1 WHERE name = 'stock'")
    with pytest.raises(ExportRefused, match="different positions"):
        await export(own_shop, tmp_path / "to", "stock", "orders")
    assert not (tmp_path / "to").exists()
    assert (await export(own_shop, tmp_path / "to", "stock")).position == 1


async def test_an_empty_ledger_makes_an_export_of_no_rows(
    settings: Settings, tmp_path: Path
) -> None:
    for format_ in FORMATS:
        exported = await export(settings, tmp_path / format_, *EVERYTHING, format_=format_)
        assert (exported.position, exported.hash) == (0, GENESIS_HASH.hex())
        assert {entry.rows for entry in exported.tables} == {0}
    assert duckdb.sql(f"SELECT * FROM '{tmp_path}/parquet/events.parquet'").fetchall() == []


async def test_an_export_is_replaced_only_with_overwrite(shop: Settings, tmp_path: Path) -> None:
    await export(shop, tmp_path, *EVERYTHING, format_="csv")
    before = manifest(tmp_path)
    with pytest.raises(ExportRefused, match=r"manifest.json is there already"):
        await export(shop, tmp_path, "stock")
    assert manifest(tmp_path) == before
    await export(shop, tmp_path, "stock", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["manifest.json", "stock.parquet"]


async def test_a_file_of_the_same_name_is_not_replaced(shop: Settings, tmp_path: Path) -> None:
    (tmp_path / "stock.csv").write_text("mine")
    with pytest.raises(ExportRefused, match=r"stock.csv is there already"):
        await export(shop, tmp_path, "stock", format_="csv")
    assert (tmp_path / "stock.csv").read_text() == "mine"


async def test_a_changed_ledger_is_not_exported(own_shop: Settings, tmp_path: Path) -> None:
    async with running_ledger(own_shop) as ledger:
        await ledger.execute("DROP TRIGGER events_no_update")
        await ledger.execute("UPDATE events SET version = 99 WHERE position = 7")
    with pytest.raises(LedgerDamaged, match="position 7: the hash is not"):
        await export(own_shop, tmp_path / "to", "events")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sales"], "there is no sales to export"),
        ([], "say what to export"),
        (["stock", "--all"], "say what to export"),
        (["stock", "--with-keys"], "--with-keys goes with events"),
    ],
)
def test_wrong_names_and_options_are_refused(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = typed("export", *arguments, "--out", str(tmp_path / "to"))
    assert done.status == 2
    assert message in done.said_one_sentence()
    assert not (tmp_path / "to").exists()


async def test_a_directory_that_can_not_be_made_is_named(shop: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportRefused, match=f"can't write {tmp_path}/file"):
        await export(shop, tmp_path / "file" / "to", "stock")


@pytest.mark.parametrize("format_", FORMATS)
async def test_a_full_disk_is_one_sentence_and_leaves_no_files(
    shop: Settings, tmp_path: Path, format_: str
) -> None:
    limited = 'ulimit -f 20; exec "$0" export --all --format "$1" --out "$2"'
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", limited, LEDGER, format_, tmp_path / "to"),
        env=os.environ | environment(shop),
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    assert process.returncode == 1
    sentence = rf"✗ ExportRefused: can't write {tmp_path}/to/\w+\.{format_}: File too large"
    assert re.fullmatch(sentence, err.decode().strip())
    assert os.listdir(tmp_path) == []


async def test_a_database_that_goes_away_half_way_leaves_no_files(
    shop: Settings, tmp_path: Path
) -> None:
    async with open_proxy(shop.db_port) as proxy:
        proxy.lose(b"FROM wallets WHERE", delivered=False)
        through_proxy = shop.model_copy(update={"db_port": proxy.port})
        with pytest.raises(ExportRefused, match="the database failed meanwhile"):
            await export(through_proxy, tmp_path / "to", *EVERYTHING)
    assert proxy.lost == 1
    assert os.listdir(tmp_path) == []


@asynccontextmanager
async def half_way(settings: Settings, to: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    """An export that has begun to write a file, and waits for the database."""
    async with open_proxy(settings.db_port) as proxy:
        proxy.delay(0.02)
        arguments = ["export", "stock", "wallets", "--out", str(to)]
        environ = os.environ | environment(settings) | {"LEDGER_DB_PORT": str(proxy.port)}
        log = settings.home / "logs" / "export.log"
        process = start_ledger(settings.home, arguments, environ, log, log)

        async def has_begun() -> bool:
            return (to / ".wallets.parquet.draft").exists()

        try:
            await eventually(has_begun, "the export writes wallets")
            proxy.stall()
            yield process
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)


async def test_ctrl_c_ends_an_export_and_leaves_no_files(shop: Settings, tmp_path: Path) -> None:
    async with half_way(shop, tmp_path / "to") as process:
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, DEADLINE_S) == 130
    assert os.listdir(tmp_path) == []


async def test_drafts_of_a_killed_export_do_not_block_the_next(
    shop: Settings, tmp_path: Path
) -> None:
    async with half_way(shop, tmp_path) as process:
        process.kill()
    assert [name for name in os.listdir(tmp_path) if not name.startswith(".")] == []
    await export(shop, tmp_path, "stock", "wallets")
    assert sorted(os.listdir(tmp_path)) == ["manifest.json", "stock.parquet", "wallets.parquet"]


async def test_two_exports_to_one_directory_do_not_mix(shop: Settings, tmp_path: Path) -> None:
    async with half_way(shop, tmp_path):
        with pytest.raises(ExportRefused, match="another export"):
            await export(shop, tmp_path, "events")


async def test_without_pyarrow_the_remedy_is_named_and_csv_is_still_written(
    shop: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "cli.export.parquet", raising=False)
    monkeypatch.delattr("cli.export.parquet", raising=False)
    with pytest.raises(NoParquet, match=r"pip install 'order-ledger\[parquet\]'"):
        await export(shop, tmp_path / "to", "events")
    assert not (tmp_path / "to").exists()
    await export(shop, tmp_path / "to", "events", format_="csv")
