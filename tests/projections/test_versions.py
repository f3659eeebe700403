"""A view belongs to one version of its code: no other writes it, and no swap goes unseen."""

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy.exc import OperationalError

from cli.commands.migrate import migrate
from projections.projector import project_next_batch
from projections.tables import (
    ViewOutdated,
    begin_consistent_read,
    lock_swap,
    register,
    release_swap,
)
from projections.views.orders import ORDERS
from projections.views.registry import PROJECTIONS
from tests.harness import Stack, engine_of
from tests.ledger.pipeline import Ledger
from tests.submissions import orders

from .view_rows import advance_to_the_end, all_live, all_replayed, checkpoints, until_projected

NEXT = tuple(
    replace(view, version=view.version + 1) if view is ORDERS else view for view in PROJECTIONS
)


async def set_version(ledger: Ledger, version: int) -> None:
    """Let the orders view be that of another version."""
    await ledger.execute(
        "UPDATE checkpoints SET view_version = %s WHERE name = 'orders'", "migrate", version
    )


async def test_newer_code_refuses_the_view_and_names_the_remedy(written: Ledger) -> None:
    said = "orders was made by version 1, this code makes version 2: run `ledger rebuild orders`"
    async with written.connection("projector") as connection:
        with pytest.raises(ViewOutdated, match=said):
            await project_next_batch(connection, NEXT)
    assert set((await checkpoints(written)).values()) == {0}


async def test_older_code_refuses_the_view_in_the_middle_of_its_work(written: Ledger) -> None:
    async with written.connection("projector") as connection:
        await project_next_batch(connection, PROJECTIONS)
        await written.write(orders(3))
        before = await checkpoints(written)
        await set_version(written, 2)
        with pytest.raises(ViewOutdated, match="version 2, this code makes version 1: run the new"):
            await project_next_batch(connection, PROJECTIONS)
    assert await checkpoints(written) == before


async def test_a_projector_process_ends_with_one_sentence(ledger: Ledger) -> None:
    stack = Stack(ledger.settings)
    stack.start("projector")
    await set_version(ledger, 2)
    assert stack.wait("projector") == 1
    log = stack.log_path("projector").read_text()
    assert "ViewOutdated: view orders was made by version 2" in log
    assert "Traceback" not in log


async def test_to_migrate_does_not_touch_a_view_of_another_version(written: Ledger) -> None:
    await set_version(written, 7)
    before = await written.rows("SELECT * FROM checkpoints ORDER BY name")
    await migrate(written.settings)
    assert await written.rows("SELECT * FROM checkpoints ORDER BY name") == before


async def test_no_projector_writes_while_a_session_may_still_swap(written: Ledger) -> None:
    """The session holds no row lock: that of a rebuild that was killed is gone at once."""
    async with written.connection("migrate") as swapping, written.connection("projector") as other:
        assert await lock_swap(swapping, 1)
        moving = asyncio.create_task(advance_to_the_end(other))
        await written.until_running("%GET_LOCK%", "projector")
        assert set((await checkpoints(written)).values()) == {0}
        await release_swap(swapping)
        await moving
    assert await all_live(written) == await all_replayed(written)


async def test_a_pinned_reader_sees_one_moment_of_all_views(ledger: Ledger) -> None:
    await ledger.write(orders(2))
    async with ledger.connection("analyst") as reader:
        pinned = await begin_consistent_read(reader, PROJECTIONS)
        async with ledger.projecting():
            await until_projected(ledger)
        count = "SELECT (SELECT COUNT(*) FROM orders), (SELECT MAX(position) FROM checkpoints)"
        assert tuple((await reader.exec_driver_sql(count)).one()) == (0, 0)
        await reader.rollback()
        assert tuple((await reader.exec_driver_sql(count)).one()) == (2, 4)
    seen = {name: (checkpoint.position, checkpoint.version) for name, checkpoint in pinned.items()}
    assert seen == {view.name: (0, view.version) for view in PROJECTIONS}


async def test_no_view_is_swapped_under_a_pinned_reader(ledger: Ledger) -> None:
    engine = engine_of(ledger.settings, "migrate")
    async with ledger.connection("analyst") as reader, engine.connect() as renaming:
        await begin_consistent_read(reader, PROJECTIONS)
        await renaming.exec_driver_sql("SET lock_wait_timeout = 1")
        for name in ("orders", "checkpoints"):
            with pytest.raises(OperationalError, match="Lock wait timeout"):
                await renaming.exec_driver_sql(f"RENAME TABLE {name} TO other")
        await reader.rollback()
        await renaming.exec_driver_sql("RENAME TABLE orders TO other")
    await engine.dispose()


async def test_a_migration_and_a_projector_that_lock_the_checkpoints_do_not_deadlock(
    written: Ledger,
) -> None:
    async with (
        written.connection("projector") as projector,
        written.connection("migrate") as migration,
    ):
        # A projector locks the rows by name, one after the other.
        first, *others = sorted(view.name for view in PROJECTIONS)
        lock = "SELECT position FROM checkpoints WHERE name = %s FOR UPDATE"
        await projector.exec_driver_sql(lock, (first,))
        registering = asyncio.create_task(register(migration, PROJECTIONS))
        await written.until_running("INSERT IGNORE%")
        for name in others:
            await projector.exec_driver_sql(lock, (name,))
        await projector.rollback()
        await registering
        await migration.rollback()
