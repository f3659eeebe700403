"""A new view is one file and one registry line: everything else that knows views has it then."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from msgspec import structs

from cli.commands.asof import show_view
from cli.commands.export import export_tables
from cli.commands.migrate import migrate
from cli.export import Format
from cli.export.importer import EventsExport
from cli.export.tables import tables_by_name
from cli.settings import Settings
from ledger.eventlog.records import VerificationFailed
from projections.as_of import AsOf, AsOfReader, view_as_of
from projections.check import check_views
from projections.projector import project_next_batch
from projections.views.projection import METADATA
from projections.views.registry import PROJECTIONS
from tests.ledger.pipeline import Ledger, running_ledger
from tests.submissions import ANN, PEN, event_of, history, opening, order

from .rebuilding import opened
from .toy_views import RECEIPTS, REGISTRY, SPENDING
from .view_rows import live, replayed, until_projected

toys = pytest.mark.parametrize("view", [SPENDING, RECEIPTS], ids=["keyed", "lines"])


@pytest.fixture
async def ledger(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ledger]:
    """A ledger whose views show a random history; two more of them are in the registry."""
    for module in list(sys.modules.values()):
        if getattr(module, "PROJECTIONS", None) is PROJECTIONS:
            monkeypatch.setattr(module, "PROJECTIONS", REGISTRY)
    # A real view's table is in METADATA; the toys' would be in every other test's database, too.
    tables = [view.table.to_metadata(METADATA) for view in (SPENDING, RECEIPTS)]
    try:
        await migrate(settings)
    finally:
        for table in tables:
            METADATA.remove(table)
    async with running_ledger(settings) as ledger:
        await ledger.write(opening(), [event_of(order(2))], history(31, 200))
        async with ledger.projecting():
            await until_projected(ledger)
        yield ledger


@toys
async def test_it_is_projected_and_the_analyst_may_read_it(ledger: Ledger, view: Any) -> None:
    rows = await live(ledger, view)
    assert rows == replayed(view, await ledger.records(), await ledger.keys())
    assert rows


@toys
async def test_it_is_rebuilt(ledger: Ledger, view: Any) -> None:
    before = await live(ledger, view)
    async with opened(ledger, view.name, all_views=REGISTRY) as rebuild:
        (result,) = await rebuild.rebuild()
    assert (result.swapped, result.difference) == (True, None)
    assert await live(ledger, view) == before
    assert await ledger.rows(f"SELECT COUNT(*) FROM {view.name}_old") == [(len(before),)]


DAMAGE = {
    "spending": {
        "changed": "UPDATE spending SET spent_minor = spent_minor + 1 LIMIT 1",
        "missing": "DELETE FROM spending LIMIT 1",
        "extra": "INSERT INTO spending SELECT REPEAT('x', 16), username, spent_minor, position"
        " FROM spending LIMIT 1",
    },
    "receipts": {
        "changed": "UPDATE receipts SET quantity = quantity + 1 LIMIT 1",
        "missing": "DELETE FROM receipts LIMIT 1",
        "extra": "INSERT INTO receipts SELECT (SELECT position FROM events"
        " WHERE type = 'order.placed' LIMIT 1), product_id, quantity FROM receipts LIMIT 1",
    },
}


@toys
@pytest.mark.parametrize("change", ["changed", "missing", "extra"])
async def test_a_damaged_row_is_found_by_verify_and_by_rebuild(
    ledger: Ledger, view: Any, change: str
) -> None:
    async def check() -> dict[str, int]:
        async with ledger.connection("projector") as connection:
            checked = await check_views(connection, REGISTRY, lambda more: None)
        return {each.name: each.rows for each in checked}

    assert (await check())[view.name] == len(await live(ledger, view))
    await ledger.execute(DAMAGE[view.name][change])
    with pytest.raises(VerificationFailed, match=view.name) as failed:
        await check()
    async with opened(ledger, view.name, all_views=REGISTRY) as rebuild:
        (result,) = await rebuild.rebuild()
    assert result.difference
    assert result.difference.kind == change
    assert str(result.difference) in str(failed.value)


async def test_its_rows_are_read_as_of_any_position(ledger: Ledger) -> None:
    records, keys = await ledger.records(), await ledger.keys()
    async with ledger.connection("projector") as connection:
        reader = AsOfReader(connection)
        assert await reader.row(SPENDING, ANN, 0) is None
        # Not between a cause and its refusal: there `records` do not tell that it was refused.
        ends = [r.position - 1 for r in records if not r.cause_position][1:]
        for position in (*ends[:3], *ends[40::70], len(records)):
            expected: dict[Any, Any] = replayed(SPENDING, records[:position], keys)
            rows = [
                row async for row in view_as_of(connection, SPENDING, position, lambda more: None)
            ]
            assert [row.customer_id for row in rows] == sorted(expected)
            for row in rows:
                then = structs.replace(expected[row.customer_id], position=position)
                assert row == then == await reader.row(SPENDING, row.customer_id, position)


async def test_the_command_shows_it_as_of_a_position(
    ledger: Ledger, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    position = (await ledger.head()).position
    await show_view(ledger.settings, SPENDING, AsOf(position), as_json=False)
    titles, *rows = capfdbinary.readouterr().out.splitlines()
    assert titles.split() == [b"customer", b"id", b"username", b"spent", b"position"]
    assert len(rows) == len(await live(ledger, SPENDING))


@pytest.mark.parametrize("format_", Format)
async def test_it_is_exported_with_all_others_and_the_export_can_be_imported(
    ledger: Ledger, tmp_path: Path, format_: Format
) -> None:
    tables = list(tables_by_name().values())
    manifest = await export_tables(ledger.settings, tables, tmp_path, format_)
    files = {file.name: file for file in manifest.tables}
    assert list(files) == ["events", *(view.name for view in REGISTRY)]
    for view in (SPENDING, RECEIPTS):
        assert files[view.name].rows == len(await live(ledger, view)) > 1
        assert [column.name for column in files[view.name].columns] == list(view.columns)
    batches = EventsExport(tmp_path).batches()
    assert [record for batch in batches for record in batch] == await ledger.records()


@toys
async def test_its_columns_are_listed_for_the_analyst(ledger: Ledger, view: Any) -> None:
    """As docs/reference/views.md lists them, which tests/docs/test_views.py compares with this."""
    listed = await ledger.rows(
        "SELECT column_name, column_comment FROM information_schema.columns"
        " WHERE table_schema = DATABASE() AND table_name = %s ORDER BY ordinal_position",
        "analyst",
        view.name,
    )
    assert listed == [(column.name, column.comment) for column in view.table.columns]


async def test_changed_keys_of_an_announced_view_are_announced(ledger: Ledger) -> None:
    await ledger.write([event_of(order(1, at=uuid4()))])
    async with ledger.connection("projector") as connection:
        announcement = await project_next_batch(connection, REGISTRY)
    assert set(announcement.products) == {ANN, PEN}


async def test_a_name_is_quoted_by_no_difference(ledger: Ledger) -> None:
    await ledger.execute("UPDATE spending SET username = 'Ann Other' LIMIT 1")
    async with ledger.connection("projector") as connection:
        with pytest.raises(VerificationFailed, match="another username") as failed:
            await check_views(connection, REGISTRY, lambda more: None)
    assert "Ann" not in str(failed.value)
