"""`ledger import`: the same ledger again, to the hash, or a sentence that says why not."""

import asyncio
import json
import os
import re
import signal
from hashlib import sha256
from itertools import product
from pathlib import Path
from shutil import copytree
from uuid import UUID

import pytest
from msgspec import structs

from bench.fill import fill
from bench.history import Shop
from cli.export import BadExport, ImportRefused
from cli.export.formats import read_json_lines
from cli.export.importer import Imported, import_events, whole_decisions
from cli.settings import Settings
from ledger.eventlog.reader import PAGE
from ledger.eventlog.records import GENESIS_HASH, Record, next_hash
from ledger.eventlog.store import Store
from tests.harness import DEADLINE_S, environment, eventually, make_ledger, start_ledger
from tests.ledger.naive_audit import audit
from tests.ledger.pipeline import running_ledger
from tests.private_servers import Servers
from tests.projections.view_rows import all_live
from tests.proxy import open_proxy
from tests.submissions import opening, orders

from .conftest import Run
from .exports import EVERYTHING, export, manifest, project

FORMATS = ("parquet", "csv", "jsonl")


@pytest.fixture(scope="module")
async def exports(shop: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports of that ledger, one in each format; no test may change them."""
    to = tmp_path_factory.mktemp("exports")
    for format_ in FORMATS:
        await export(shop, to / format_, "events", format_=format_)
    return to


@pytest.fixture(scope="module")
async def large(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a ledger that takes three transactions to import; no test may change it."""
    to = tmp_path_factory.mktemp("large")
    settings = await make_ledger(servers)
    async with running_ledger(settings) as ledger:
        history = Shop(seed=3, customers=50, products=10, span_us=1_000_000).events()
        await fill(ledger.engine("writer"), history, 2 * PAGE + 1, snapshot_every=100_000)
    await export(settings, to, "events")
    return to


@pytest.fixture(scope="module")
async def empty(servers: Servers) -> Settings:
    """An empty ledger into which no import succeeds."""
    return await make_ledger(servers)


async def records_of(settings: Settings) -> list[Record]:
    """The whole ledger."""
    async with running_ledger(settings) as ledger:
        return await ledger.records()


async def position_of(settings: Settings) -> int:
    """Where the ledger ends."""
    async with running_ledger(settings) as ledger:
        return (await ledger.head()).position


@pytest.mark.parametrize("format_", FORMATS)
async def test_an_import_makes_the_same_ledger_hash_for_hash(
    shop: Settings, exports: Path, settings: Settings, format_: str
) -> None:
    exported = manifest(exports / format_)
    imported = await import_events(settings, exports / format_)
    assert imported == Imported(exported["position"], exported["hash"], exported["position"], False)
    records = await records_of(settings)
    assert records == await records_of(shop)
    audit(records)
    async with running_ledger(settings) as ledger:
        head = await ledger.head()
    assert (head.position, head.hash.hex()) == (exported["position"], exported["hash"])


async def test_the_command_prints_the_new_end_of_the_ledger(
    run: Run, exports: Path, settings: Settings
) -> None:
    done = await run("import", str(exports / "csv"))
    exported = manifest(exports / "csv")
    assert done.status == 0, done.err
    assert done.out.splitlines() == [
        f"imported {exported['position']} events; the ledger ends like the export:",
        f"position {exported['position']}, hash {exported['hash']}",
        "without keys (`ledger export --with-keys`) names are shown as erased",
    ]
    again = await run("import", str(exports / "csv"), "--json")
    assert again.json == {
        "position": exported["position"],
        "hash": exported["hash"],
        "appended": 0,
        "with_keys": False,
    }


async def test_an_import_with_keys_makes_the_same_views(
    shop: Settings, settings: Settings, tmp_path: Path
) -> None:
    await export(shop, tmp_path, "events", with_keys=True)
    assert (tmp_path / "customer_keys.jsonl").stat().st_mode & 0o777 == 0o600
    imported = await import_events(settings, tmp_path)
    assert imported.with_keys
    async with running_ledger(shop) as ledger, running_ledger(settings) as again:
        await project(again)
        assert await all_live(again) == await all_live(ledger)
        keys = "SELECT * FROM customer_keys ORDER BY customer_id"
        assert await again.rows(keys) == await ledger.rows(keys) != []


async def test_an_import_without_keys_makes_views_without_names(
    shop: Settings, exports: Path, settings: Settings
) -> None:
    await import_events(settings, exports / "csv")
    async with running_ledger(shop) as ledger, running_ledger(settings) as again:
        await project(again)
        views, expected = await all_live(again), await all_live(ledger)
        wallets = expected["wallets"]
        assert {row.username for row in wallets.values()} != {"erased"}  # type: ignore[attr-defined]
        expected["wallets"] = {
            key: structs.replace(row, username="erased") for key, row in wallets.items()
        }
        assert views == expected
        assert await again.rows("SELECT * FROM customer_keys") == []


async def test_keys_are_restored_once_and_a_destroyed_one_stays_destroyed(
    shop: Settings, settings: Settings, tmp_path: Path
) -> None:
    await export(shop, tmp_path, "events", with_keys=True)
    await import_events(settings, tmp_path)
    async with running_ledger(settings) as ledger:
        await ledger.execute("UPDATE customer_keys SET sealing_key = NULL")
    assert (await import_events(settings, tmp_path)).appended == 0
    async with running_ledger(settings) as ledger:
        assert set((await ledger.keys()).values()) == {None}


async def test_keys_that_were_changed_are_not_restored(
    shop: Settings, empty: Settings, tmp_path: Path
) -> None:
    await export(shop, tmp_path, "events", with_keys=True)
    file, keys = tmp_path / "customer_keys.jsonl", manifest(tmp_path)["keys"]
    file.write_text('{"customer_id":"a"}\n')
    with pytest.raises(BadExport, match="is not what was exported"):
        await import_events(empty, tmp_path)
    keys["sha256"] = sha256(file.read_bytes()).hexdigest()
    forge_manifest(tmp_path, keys=keys)
    with pytest.raises(BadExport, match=r"customer_keys.jsonl can't be read"):
        await import_events(empty, tmp_path)
    assert await records_of(empty) == []


async def test_a_writer_goes_on_where_the_import_ended(exports: Path, settings: Settings) -> None:
    imported = await import_events(settings, exports / "parquet")
    async with running_ledger(settings) as ledger:
        records = await ledger.write([*opening(), *orders(3)])
    assert len(records) > imported.position
    audit(records)


async def test_snapshots_are_taken_as_the_writer_would(large: Path, settings: Settings) -> None:
    await import_events(settings.model_copy(update={"snapshot_every": PAGE - 10}), large)
    async with running_ledger(settings) as ledger:
        assert len(await ledger.rows("SELECT DISTINCT position FROM snapshots")) == 2


async def test_an_empty_export_makes_an_empty_ledger(
    empty: Settings, settings: Settings, tmp_path: Path
) -> None:
    await export(empty, tmp_path, *EVERYTHING)
    assert await import_events(settings, tmp_path) == Imported(0, GENESIS_HASH.hex(), 0, False)


@pytest.mark.parametrize("moment", ["before-commit", "commit-sent"])
async def test_a_killed_import_is_continued_by_the_next(
    run: Run, large: Path, settings: Settings, moment: str
) -> None:
    killed = await run("import", str(large), LEDGER_FAILPOINTS=f"writer.{moment}=die@2")
    assert killed.status == -signal.SIGKILL
    reached = await position_of(settings)
    assert reached >= PAGE / 2
    imported = await import_events(settings, large)
    assert imported.appended == imported.position - reached
    audit(await records_of(settings))


async def test_an_import_whose_database_failed_is_continued_by_the_next(
    large: Path, settings: Settings
) -> None:
    async with open_proxy(settings.db_port) as proxy:
        proxy.cut_after(1_500_000, "up")
        through_proxy = settings.model_copy(update={"db_port": proxy.port})
        with pytest.raises(ImportRefused) as refused:
            await import_events(through_proxy, large)
    reached = await position_of(settings)
    assert f"the database failed after position {reached}" in str(refused.value)
    imported = await import_events(settings, large)
    assert imported.appended == imported.position - reached


async def test_ctrl_c_leaves_whole_batches(large: Path, settings: Settings) -> None:
    changes = {"LEDGER_FAILPOINTS": "writer.after-insert=delay:5@2"}
    log = settings.home / "logs" / "import.log"
    environ = os.environ | environment(settings) | changes
    process = start_ledger(settings.home, ["import", str(large)], environ, log, log)

    async def has_begun() -> bool:
        return await position_of(settings) > 0

    try:
        await eventually(has_begun, "the first batch is there")
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, DEADLINE_S) == 130
    finally:
        process.kill()
    records = await records_of(settings)
    assert 0 < len(records) <= 2 * PAGE
    audit(records)


async def test_an_import_that_is_fenced_off_says_so(
    run: Run, exports: Path, settings: Settings
) -> None:
    delay = "writer.after-insert=delay:1"
    importing = asyncio.create_task(run("import", str(exports / "csv"), LEDGER_FAILPOINTS=delay))
    async with running_ledger(settings) as ledger:

        async def leads() -> bool:
            return bool(await ledger.rows("SELECT epoch FROM ledger_head WHERE epoch > 0"))

        await eventually(leads, "the import has the head")
        async with ledger.connection() as connection:
            await Store(connection).raise_epoch()
    done = await importing
    assert done.status == 1
    assert "a writer took the ledger over at position 0" in done.err.splitlines()[-1]
    assert await records_of(settings) == []


async def test_a_ledger_whose_writer_runs_takes_no_import(exports: Path, empty: Settings) -> None:
    async with running_ledger(empty) as ledger, ledger.connection("writer"):
        with pytest.raises(ImportRefused, match="a writer, or another import, is connected"):
            await import_events(empty, exports / "csv")


@pytest.mark.parametrize("submissions", [1, 1_000])
async def test_a_ledger_with_other_events_takes_no_import(
    exports: Path, settings: Settings, submissions: int
) -> None:
    async with running_ledger(settings) as ledger:
        before = await ledger.write(opening(), orders(submissions))
    with pytest.raises(ImportRefused, match="import into an empty ledger"):
        await import_events(settings, exports / "csv")
    assert await records_of(settings) == before


async def test_a_file_that_was_changed_is_not_imported(
    exports: Path, empty: Settings, tmp_path: Path
) -> None:
    copytree(exports / "csv", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "events.csv"
    body = file.read_bytes()
    for changed in (body.replace(b"order.placed", b"order.placeD", 1), body[:-1], b""):
        file.write_bytes(changed)
        with pytest.raises(BadExport, match="is not what was exported"):
            await import_events(empty, tmp_path)
    file.unlink()
    with pytest.raises(BadExport, match=r"can't read .*events.csv"):
        await import_events(empty, tmp_path)
    assert await records_of(empty) == []


def tampered(lines: list[bytes]) -> dict[str, tuple[list[bytes], str]]:
    """Lines of events as a forger would change them, and what is message of each."""
    return {
        "a value": (
            [*lines[:3], lines[3].replace(b'"version":1', b'"version":2'), *lines[4:]],
            "4",
        ),
        "a line gone": ([*lines[:3], *lines[4:]], "4"),
        "two swapped": ([*lines[:3], lines[4], lines[3], *lines[5:]], "4"),
        "the last line gone": (lines[:-1], "ends at position"),
        "no event": ([*lines[:3], b'{"position":4}\n', *lines[4:]], "can't be read"),
        "no JSON": ([*lines[:3], b"nothing\n", *lines[4:]], "can't be read"),
        "a time": ([*lines[:3], lines[3].replace(b"Z", b"+01:00", 1), *lines[4:]], "4"),
    }


async def test_forged_events_with_a_matching_checksum_are_not_imported(
    exports: Path, settings: Settings, tmp_path: Path
) -> None:
    copytree(exports / "jsonl", tmp_path, dirs_exist_ok=True)
    file, entry = tmp_path / "events.jsonl", manifest(tmp_path)["tables"][0]
    for case, (lines, message) in tampered(file.read_bytes().splitlines(keepends=True)).items():
        file.write_bytes(b"".join(lines))
        entry["sha256"] = sha256(file.read_bytes()).hexdigest()
        forge_manifest(tmp_path, tables=[entry])
        with pytest.raises(BadExport) as refused:
            await import_events(settings, tmp_path)
        assert message in str(refused.value), case
    audit(await records_of(settings))


async def test_a_cause_whose_decision_was_cut_off_is_not_appended(
    exports: Path, settings: Settings, tmp_path: Path
) -> None:
    copytree(exports / "jsonl", tmp_path, dirs_exist_ok=True)
    file, entry = tmp_path / "events.jsonl", manifest(tmp_path)["tables"][0]
    lines = file.read_bytes().splitlines(keepends=True)
    records = [record for page in read_json_lines(file) for record in page]
    decided = max(n for n, record in enumerate(records) if record.cause_position)
    file.write_bytes(b"".join(lines[:decided]))
    entry["sha256"] = sha256(file.read_bytes()).hexdigest()
    forge_manifest(tmp_path, tables=[entry])
    with pytest.raises(BadExport, match=f"ends at position {decided}"):
        await import_events(settings, tmp_path)
    assert await records_of(settings) == records[: decided - 1]


async def test_a_number_out_of_range_ends_an_import_in_one_sentence(
    run: Run, exports: Path, settings: Settings, tmp_path: Path
) -> None:
    copytree(exports / "jsonl", tmp_path, dirs_exist_ok=True)
    file, entry = tmp_path / "events.jsonl", manifest(tmp_path)["tables"][0]
    first, second, *others = file.read_bytes().splitlines(keepends=True)
    fields = ("position", "version", "schema_version", "cause_position")
    for field, number in product(fields, (b"-1", b"4294967296", b"1" + 30 * b"0")):
        changed = re.sub(
            rb'"%s":\d+' % field.encode(), b'"%s":%s' % (field.encode(), number), second
        )
        assert changed != second
        file.write_bytes(b"".join((first, changed, *others)))
        forge_manifest(tmp_path, tables=[entry | {"sha256": sha256(file.read_bytes()).hexdigest()}])
        with pytest.raises(BadExport, match=r"events.jsonl (is not a ledger's|can't be read)"):
            await import_events(settings, tmp_path)
    done = await run("import", str(tmp_path))
    assert (done.status, done.out) == (1, "")
    (sentence,) = done.err.splitlines()
    assert "events.jsonl is not a ledger's" in sentence or "can't be read" in sentence


async def test_a_forged_chain_with_an_event_id_twice_is_not_imported(
    exports: Path, settings: Settings, tmp_path: Path
) -> None:
    copytree(exports / "jsonl", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "events.jsonl"
    first, second = next(read_json_lines(file))[:2]
    hash_ = next_hash(first.hash, structs.replace(second, event_id=first.event_id)).hex()
    lines = file.read_text().splitlines(keepends=True)[:2]
    ids = [str(UUID(bytes=record.event_id)) for record in (second, first)]
    file.write_text(lines[0] + lines[1].replace(*ids).replace(second.hash.hex(), hash_))
    entry = manifest(tmp_path)["tables"][0] | {"sha256": sha256(file.read_bytes()).hexdigest()}
    forge_manifest(tmp_path, tables=[entry], position=2, hash=hash_)
    with pytest.raises(BadExport, match="that another has"):
        await import_events(settings, tmp_path)


def forge_manifest(directory: Path, **changes: object) -> None:
    """Change what a manifest says."""
    (directory / "manifest.json").write_text(json.dumps(manifest(directory) | changes))


async def test_a_manifest_that_does_not_match_is_refused(
    exports: Path, settings: Settings, tmp_path: Path
) -> None:
    entry = manifest(exports / "csv")["tables"][0]
    for number, (changes, message) in enumerate(
        [
            ({"manifest_version": 2}, "manifest_version 2"),
            ({"hash": "00" * 32}, "or another hash"),
            ({"tables": []}, "has no events"),
            ({"position": "many"}, "no manifest that this version reads"),
            ({"tables": [entry | {"file": "../events.csv"}]}, "is not in"),
        ]
    ):
        copy = copytree(exports / "csv", tmp_path / str(number))
        forge_manifest(copy, **changes)
        with pytest.raises(BadExport, match=message):
            await import_events(settings, copy)
    audit(await records_of(settings))


async def test_a_directory_without_a_manifest_is_no_export(empty: Settings, tmp_path: Path) -> None:
    with pytest.raises(BadExport, match="holds no whole export"):
        await import_events(empty, tmp_path)


def test_no_batch_ends_between_a_cause_and_its_decision() -> None:
    causes = [0, 1, 0, 3, 3, 0, 0, 7, 0]
    records = [Record(n, b"", b"", 1, "", 1, c, 0, 0, b"", b"") for n, c in enumerate(causes, 1)]
    for size in range(1, len(records) + 1):
        pages = [records[at : at + size] for at in range(0, len(records), size)]
        batches = list(whole_decisions(iter(pages)))
        assert [record for batch in batches for record in batch] == records
        assert all(batch[0].cause_position == 0 for batch in batches)
