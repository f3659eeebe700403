"""A rebuilt view is what the ledger says, and the live one is never worse off for it."""

import asyncio
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.exc import OperationalError

from cli.commands.migrate import migrate
from projections import check, projector, rebuild, table_swap
from projections.projector import project_next_batch
from projections.queries import Views
from projections.rebuild import Loader
from projections.table_swap import RebuildRefused, projectors_paused
from projections.tables import ViewOutdated, begin_consistent_read
from projections.views.orders import ORDERS
from projections.views.projection import Projection
from projections.views.registry import PROJECTIONS
from projections.views.stock import STOCK
from tests.harness import engine_of, eventually
from tests.ledger.pipeline import Ledger
from tests.submissions import PRODUCTS, history, opening, orders

from .rebuilding import NEXT, opened, rebuilt, tables
from .view_rows import (
    advance_to_the_end,
    all_live,
    all_replayed,
    checkpoints,
    live,
    set_checkpoint,
    until_projected,
)

every_projection = pytest.mark.parametrize(
    "projection", PROJECTIONS, ids=[projection.name for projection in PROJECTIONS]
)
NAMES = {projection.name for projection in PROJECTIONS}


@pytest.fixture
async def projected(written: Ledger) -> Ledger:
    """A ledger whose views show all of it."""
    async with written.connection("projector") as connection:
        await advance_to_the_end(connection)
    return written


async def damage(ledger: Ledger, projection: Projection[Any], what: str) -> str:
    """Change, remove or add a row of a live view; the value of the first column of its key."""
    name, key = projection.name, projection.key_columns[0]
    at = f"WHERE {key} = (SELECT * FROM (SELECT MAX({key}) FROM {name}) newest)"
    ((value,),) = await ledger.rows(f"SELECT MAX({key}) FROM {name}")
    if what == "changed":
        *_, column = projection.columns
        await ledger.execute(f"UPDATE {name} SET {column} = {column} + 1 {at}")
    elif what == "missing":
        await ledger.execute(f"DELETE FROM {name} {at}")
    else:
        value = bytes([255] * 16) if isinstance(value, bytes) else value + 1
        columns = ", ".join(c for c in projection.columns if c != key)
        changed = columns.replace("placed_position", "placed_position + 1000000")
        await ledger.execute(
            f"INSERT INTO {name} ({key}, {columns}) SELECT %s, {changed} FROM {name} {at}",
            "migrate",
            value,
        )
    return str(UUID(bytes=value)) if isinstance(value, bytes) else str(value)


async def test_all_views_rebuilt_equal_the_live_ones_and_take_their_place(
    projected: Ledger,
) -> None:
    before, where = await all_live(projected), await checkpoints(projected)
    outcomes = await rebuilt(projected)
    assert {outcome.view for outcome in outcomes} == NAMES
    assert all(o.swapped and not o.difference and not o.not_compared for o in outcomes)
    assert await all_live(projected) == before == await all_replayed(projected)
    assert await checkpoints(projected) == where
    assert await tables(projected) == {f"{name}_old" for name in NAMES}


@every_projection
async def test_one_view_is_rebuilt_alone_with_its_columns_and_indexes(
    projected: Ledger, projection: Projection[Any]
) -> None:
    async def definition() -> set[str]:
        ((_, made),) = await projected.rows(f"SHOW CREATE TABLE {projection.name}")
        return {line.removesuffix(",") for line in made.splitlines()}

    rows, before = await all_live(projected), await definition()
    (outcome,) = await rebuilt(projected, projection.name)
    assert (outcome.view, outcome.swapped, outcome.difference) == (projection.name, True, None)
    assert await all_live(projected) == rows
    assert await definition() == before
    assert await tables(projected) == {f"{projection.name}_old"}


async def test_small_steps_and_little_memory_make_the_same_views(
    projected: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await all_live(projected)
    monkeypatch.setattr(rebuild, "STEP_EVENTS", 40)
    monkeypatch.setattr(rebuild, "FULL_ROWS", 5)
    monkeypatch.setattr(rebuild, "HELD_ROWS", 2)
    monkeypatch.setattr("ledger.eventlog.reader.PAGE", 20)
    assert all(outcome.swapped for outcome in await rebuilt(projected))
    assert await all_live(projected) == before


async def test_a_loader_holds_no_more_rows_than_it_may(
    projected: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "FULL_ROWS", 5)
    monkeypatch.setattr(rebuild, "HELD_ROWS", 7)
    held: list[int] = []
    write = Loader.write

    async def and_count(self: Loader[Any], *arguments: Any) -> None:
        await write(self, *arguments)
        held.append(len(self._held) + len(self._changed))

    monkeypatch.setattr(Loader, "write", and_count)
    await rebuilt(projected)
    assert 0 < max(held) <= 7


async def test_an_empty_ledger_is_rebuilt_to_empty_views(ledger: Ledger) -> None:
    assert all(outcome.swapped for outcome in await rebuilt(ledger))
    assert all(not rows for rows in (await all_live(ledger)).values())
    await ledger.write(opening(), orders(2))
    async with ledger.connection("projector") as connection:
        await advance_to_the_end(connection)
    assert await all_live(ledger) == await all_replayed(ledger)


@every_projection
async def test_a_difference_is_named_and_nothing_is_swapped_but_by_a_repair(
    projected: Ledger, projection: Projection[Any]
) -> None:
    right, where = await all_live(projected), await checkpoints(projected)
    others = sorted(NAMES - {projection.name})[:1]
    wanted = {"changed": projection.columns[-1], "missing": "lacks", "added": "should not have"}
    for what, said in wanted.items():
        key = await damage(projected, projection, what)
        wrong = await all_live(projected)
        assert wrong != right
        outcomes = await rebuilt(projected, projection.name, *others)
        assert not any(outcome.swapped for outcome in outcomes)
        (difference,) = [outcome.difference for outcome in outcomes if outcome.difference]
        assert str(difference).startswith(projection.name)
        assert key in str(difference)
        assert said in str(difference)
        assert (await all_live(projected), await checkpoints(projected)) == (wrong, where)
        outcomes = await rebuilt(projected, projection.name, *others, repair=True)
        assert [outcome.swapped for outcome in outcomes] == [True, True]
        assert (await all_live(projected), await checkpoints(projected)) == (right, where)


async def test_a_difference_is_found_in_whatever_range_it_is(
    projected: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "RANGE_ROWS", 10)
    assert len(await live(projected, ORDERS)) > 30
    for what in ("changed", "missing", "added"):
        key = await damage(projected, ORDERS, what)
        (outcome,) = await rebuilt(projected, "orders", repair=True)
        assert outcome.difference
        assert outcome.difference.key == {"order_id": key}


async def test_a_trailing_space_is_a_difference(projected: Ledger) -> None:
    await projected.execute("UPDATE stock SET name = CONCAT(name, ' ') LIMIT 1")
    (outcome,) = await rebuilt(projected, "stock")
    assert outcome.difference
    assert set(outcome.difference.columns) == {"name"}


async def test_a_rebuild_goes_on_where_another_stopped(
    projected: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that were not loaded again show it: the shadow is damaged, and that is still there."""
    await damage(projected, ORDERS, "changed")
    await rebuilt(projected, "orders")
    await projected.execute("UPDATE orders_shadow SET quantity = 77 WHERE status = 'FAILED'")
    (outcome,) = await rebuilt(projected, "orders")
    assert outcome.difference
    assert outcome.difference.columns["quantity"][1] == "77"
    await rebuilt(projected, "orders", restart=True, repair=True)
    assert await all_live(projected) == await all_replayed(projected)


async def test_a_shadow_ahead_of_the_others_applies_no_event_twice(projected: Ledger) -> None:
    await damage(projected, ORDERS, "changed")
    await damage(projected, STOCK, "changed")
    await rebuilt(projected, "orders")
    await projected.write(orders(3))
    async with projected.connection("projector") as connection:
        await advance_to_the_end(connection)
    await rebuilt(projected, "stock")
    await projected.write(orders(3))
    async with projected.connection("projector") as connection:
        await advance_to_the_end(connection)
    assert all(outcome.swapped for outcome in await rebuilt(projected, repair=True))
    assert await all_live(projected) == await all_replayed(projected)


async def test_a_shadow_of_another_version_or_shape_is_begun_again(projected: Ledger) -> None:
    for change in ("view_version = 7", "shape = 'other'"):
        await damage(projected, ORDERS, "changed")
        await rebuilt(projected, "orders")
        await projected.execute("DELETE FROM orders_shadow LIMIT 3")
        await projected.execute(f"UPDATE rebuilds SET {change} WHERE name = 'orders_shadow'")
        await rebuilt(projected, "orders", repair=True)
        assert await all_live(projected) == await all_replayed(projected)


async def test_views_are_rebuilt_while_orders_come_in(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector, "PAGE", 25)
    await ledger.write(opening(), history(21, 300))
    enough = asyncio.Event()
    async with ledger.writing(), ledger.projecting(), asyncio.TaskGroup() as tasks:
        ordering = tasks.create_task(order_until(enough, ledger))
        for names in ((), ("journal", "wallets"), ("orders",)):
            assert all(outcome.swapped for outcome in await rebuilt(ledger, *names))
            assert not ordering.done()
        # Not cancelled: a publish that is cut off may reach the inbox after it was seen empty.
        enough.set()
        await ordering
        await until_projected(ledger)
    assert await all_live(ledger) == await all_replayed(ledger)


async def order_until(enough: asyncio.Event, ledger: Ledger) -> None:
    """Place orders until it is enough, as fast as they are decided."""
    while not enough.is_set():
        await ledger.put_events(orders(20))
        await ledger.until_inbox_empty()


async def test_after_a_swap_every_account_may_do_what_it_could(projected: Ledger) -> None:
    await rebuilt(projected)
    await projected.write(orders(1))
    async with projected.connection("projector") as connection:
        await advance_to_the_end(connection)
    product, position = await Views(projected.engine("api")).row(STOCK, PRODUCTS[0])
    assert product
    assert position == (await projected.head()).position
    assert await all_live(projected) == await all_replayed(projected)


@every_projection
async def test_a_view_that_lags_is_brought_to_where_the_others_are(
    projected: Ledger, projection: Projection[Any]
) -> None:
    others = (await checkpoints(projected))["stock" if projection is ORDERS else "orders"]
    await projected.execute(f"DELETE FROM {projection.name}")
    await set_checkpoint(projected, projection.name, 0)
    (outcome,) = await rebuilt(projected, projection.name)
    assert (outcome.position, outcome.not_compared) == (others, "the view was at position 0")
    assert set((await checkpoints(projected)).values()) == {others}
    assert await all_live(projected) == await all_replayed(projected)


async def test_where_no_view_has_begun_all_are_made_up_to_the_head(written: Ledger) -> None:
    await rebuilt(written)
    assert set((await checkpoints(written)).values()) == {(await written.head()).position}
    assert await all_live(written) == await all_replayed(written)


async def test_undo_brings_the_old_table_to_where_the_view_is(projected: Ledger) -> None:
    await rebuilt(projected)
    await projected.execute("UPDATE orders_old SET created_at = '1999-01-01'")
    await projected.write(orders(3), history(22, 60))
    async with projected.connection("projector") as connection:
        await advance_to_the_end(connection)
    where = await checkpoints(projected)
    async with opened(projected, "orders") as rebuild:
        (outcome,) = await rebuild.undo()
    assert (outcome.swapped, outcome.position) == (True, where["orders"])
    assert await checkpoints(projected) == where
    ((old, new),) = await projected.rows(
        "SELECT SUM(created_at = '1999-01-01'), SUM(created_at > '1999-01-01') FROM orders"
    )
    assert old
    assert new
    async with opened(projected, "orders") as rebuild:
        await rebuild.undo()
    assert await all_live(projected) == await all_replayed(projected)
    assert await checkpoints(projected) == where


async def test_undo_adds_the_indexes_that_an_old_table_lacks(projected: Ledger) -> None:
    """A release that added one came between the rebuild and its undo."""
    before = await indexes(projected)
    await rebuilt(projected, "orders")
    await projected.execute("ALTER TABLE orders_old DROP INDEX orders_customer_product")
    async with opened(projected, "orders") as rebuild:
        (outcome,) = await rebuild.undo()
    assert outcome.swapped
    assert await indexes(projected) == before


async def test_to_migrate_brings_the_indexes_of_an_earlier_release_to_their_columns(
    projected: Ledger,
) -> None:
    before = await indexes(projected)
    await projected.execute(
        "ALTER TABLE orders DROP INDEX orders_customer_product, DROP INDEX orders_customer,"
        " ADD INDEX orders_customer (customer_id, placed_position),"
        " ADD INDEX made_by_hand (quantity)"
    )
    await migrate(projected.settings)
    assert await indexes(projected) == before | {("made_by_hand", 1, "quantity")}


async def indexes(ledger: Ledger) -> set[tuple[Any, ...]]:
    """The columns of the indexes of the orders view."""
    return set(
        await ledger.rows(
            "SELECT index_name, seq_in_index, column_name FROM information_schema.statistics"
            " WHERE table_schema = DATABASE() AND table_name = 'orders'"
        )
    )


async def test_there_is_no_undo_once_the_old_table_is_dropped(projected: Ledger) -> None:
    await rebuilt(projected, "orders", "stock")
    async with opened(projected) as rebuild:
        assert await rebuild.drop_old() == {"orders_old", "stock_old"}
        assert await rebuild.drop_old() == set()
    assert await tables(projected) == set()
    async with opened(projected, "orders") as rebuild:
        with pytest.raises(RebuildRefused, match="no orders_old: orders has nothing to undo"):
            await rebuild.undo()


async def test_drop_old_drops_a_shadow_that_was_not_swapped_too(projected: Ledger) -> None:
    await damage(projected, ORDERS, "changed")
    await rebuilt(projected, "orders")
    async with opened(projected, "orders") as rebuild:
        assert await rebuild.drop_old() == {"orders_shadow"}
    assert await projected.rows("SELECT * FROM rebuilds") == []


async def test_a_view_of_a_new_version_is_rebuilt_and_goes_on(projected: Ledger) -> None:
    async with opened(projected, "orders", all_views=NEXT) as rebuild:
        (outcome,) = await rebuild.rebuild()
    assert (outcome.version, outcome.not_compared) == (2, "the view was of version 1")
    await projected.write(orders(2))
    async with projected.connection("projector") as connection:
        with pytest.raises(ViewOutdated, match="version 2, this code makes version 1"):
            await project_next_batch(connection, PROJECTIONS)
        await connection.rollback()
        while (moved := await project_next_batch(connection, NEXT)).position > moved.after:
            pass
    doubled = await projected.rows("SELECT SUM(doubled = 2 * quantity), COUNT(*) FROM orders")
    assert doubled[0][0] == doubled[0][1] > 2


async def test_older_code_takes_its_own_version_back(projected: Ledger) -> None:
    async with opened(projected, "orders", all_views=NEXT) as rebuild:
        await rebuild.rebuild()
        with pytest.raises(RebuildRefused, match="version 1, this code makes version 2: use `--un"):
            await rebuild.undo()
    async with opened(projected, "orders") as rebuild:
        await rebuild.undo()
    versions = await projected.rows("SELECT name, view_version FROM rebuilds")
    assert versions == [("orders_old", 2)]
    await projected.write(orders(2))
    async with projected.connection("projector") as connection:
        await advance_to_the_end(connection)
    assert await all_live(projected) == await all_replayed(projected)


async def test_of_two_rebuilds_of_one_view_the_second_is_refused(
    projected: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "BUSY_S", 0)
    async with opened(projected, "orders"):
        with pytest.raises(RebuildRefused, match="another rebuild of orders is under way"):
            await rebuilt(projected, "orders", "stock")
        assert all(outcome.swapped for outcome in await rebuilt(projected, "wallets"))
    assert all(outcome.swapped for outcome in await rebuilt(projected))


async def test_a_swap_gives_way_to_a_long_transaction_and_so_do_no_readers(
    projected: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "SWAP_ATTEMPTS", 2)
    monkeypatch.setattr(rebuild, "SWAP_PAUSE_S", 0)
    monkeypatch.setattr(table_swap, "RENAME_S", 0.1)
    before = await all_live(projected)
    async with projected.connection("analyst") as reader:
        await begin_consistent_read(reader, PROJECTIONS)
        with pytest.raises(RebuildRefused, match="a long transaction goes on reading orders"):
            await rebuilt(projected, "orders")
        await projected.write(orders(1))
        async with projected.connection("projector") as connection:
            await advance_to_the_end(connection)
        await reader.rollback()
    assert await tables(projected) >= {"orders_shadow"}
    assert all(outcome.swapped for outcome in await rebuilt(projected, "orders"))
    assert await all_live(projected) == await all_replayed(projected) != before


async def test_projectors_go_on_when_a_rebuild_falls_silent_in_the_middle(
    projected: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when its process is stopped, or the network to it is gone: the server ends the session."""
    monkeypatch.setattr(table_swap, "SILENT_S", 1)
    await projected.write(orders(2))
    engine = engine_of(projected.settings, "migrate")
    async with projected.connection("projector") as connection, engine.connect() as silent:
        with pytest.raises(OperationalError, match=r"Lost connection|gone away"):
            async with projectors_paused(silent, PROJECTIONS):
                await advance_to_the_end(connection)
    await engine.dispose()
    assert await all_live(projected) == await all_replayed(projected)


async def test_a_swap_that_waited_goes_on_when_the_transaction_ends(
    projected: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "SWAP_PAUSE_S", 0.05)
    monkeypatch.setattr(table_swap, "RENAME_S", 0.05)
    async with projected.connection("analyst") as reader:
        await begin_consistent_read(reader, PROJECTIONS)
        swapping_on = asyncio.create_task(rebuilt(projected))

        async def has_waited() -> bool:
            return bool(await projected.rows("SHOW TABLES LIKE 'checkpoints_next'"))

        await eventually(has_waited, "the swap was tried")
        await reader.rollback()
        assert all(outcome.swapped for outcome in await swapping_on)
    assert await all_live(projected) == await all_replayed(projected)
