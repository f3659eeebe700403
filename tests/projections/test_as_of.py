"""Rows as of a position: at every position what a fold of the ledger up to there makes."""

import asyncio
import random
from collections.abc import AsyncIterator
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from ledger.core.events import TYPE_OF, OrderPlaced
from ledger.core.pricing import RULES, Rules, Tier
from ledger.eventlog.decisions import compose
from ledger.eventlog.encryption import CustomerKeys
from ledger.eventlog.records import Record
from ledger.eventlog.snapshots import load
from ledger.eventlog.store import Store
from ledger.runtime.database import make_engine
from ledger.runtime.timestamps import now_us
from ledger.writer import take_over
from projections import as_of as module
from projections.as_of import AsOf, AsOfPosition, AsOfReader, PositionBeyondHead, open_as_of
from projections.queries import ViewsUnavailable
from projections.views.orders import ORDERS
from projections.views.stock import STOCK
from projections.views.wallets import WALLETS
from tests.harness import free_port, make_ledger
from tests.ledger.pipeline import Ledger, running_ledger
from tests.private_servers import Servers
from tests.proxy import open_proxy
from tests.submissions import (
    ANN,
    ORDER,
    OTHER_ORDER,
    PEN,
    cancel,
    customer,
    erasure,
    event_of,
    opening,
    order,
    orders,
)

from .as_of_states import Then, moments, write_history


@pytest.fixture(scope="module")
async def written(servers: Servers) -> AsyncIterator[tuple[Ledger, list[Record]]]:
    """A random history with snapshots, which these tests only read."""
    async with running_ledger(await make_ledger(servers)) as ledger:
        yield ledger, await write_history(ledger)


@pytest.fixture
async def reader(written: tuple[Ledger, list[Record]]) -> AsyncIterator[AsOfReader]:
    """A reader with the account of the API."""
    async with open_as_of(written[0].engine("api"), 60) as history:
        yield history


@pytest.mark.parametrize("window", [7, 5_000])
async def test_a_row_as_of_any_position_equals_a_fold_up_to_there(
    written: tuple[Ledger, list[Record]],
    reader: AsOfReader,
    window: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "WINDOW", window)
    ledger, records = written
    rows = await ledger.rows("SELECT MIN(position), COUNT(DISTINCT position) FROM snapshots")
    assert rows[0][0] < len(records) / 4, "no snapshot is near most positions"
    assert rows[0][1] > 5
    ids = {UUID(bytes=record.stream_id) for record in records}
    for position in moments(records, 12 if window > 100 else 4):
        then = Then(records, position, await ledger.keys())
        wallets, stock, placed = then.wallets(), then.stock(), then.orders()
        for key in (*random.Random(position).sample(sorted(ids), 25), uuid4()):
            assert await reader.row(WALLETS, key, position) == wallets.get(key), position
            assert await reader.row(STOCK, key, position) == stock.get(key), position
            assert await reader.row(ORDERS, key, position) == placed.get(key), position


async def test_rows_as_of_a_position_need_no_snapshot(ledger: Ledger) -> None:
    records = await write_history(ledger, every=10**6)
    async with open_as_of(ledger.engine("api"), 60) as reader:
        for position in moments(records, 3):
            then = Then(records, position, await ledger.keys())
            for key, row in then.wallets().items():
                assert await reader.row(WALLETS, key, position) == row
            for key, product in then.stock().items():
                assert await reader.row(STOCK, key, position) == product


async def test_an_order_is_pending_between_its_placing_and_its_decision(ledger: Ledger) -> None:
    records = await ledger.write(opening(), [event_of(order()), event_of(cancel())])
    placed = next(r.position for r in records if r.type == TYPE_OF[OrderPlaced])
    async with open_as_of(ledger.engine("api"), 60) as reader:
        found = [await reader.row(ORDERS, ORDER, placed + later) for later in (-1, 0, 1, 2, 3)]
    statuses = [row and row.status for row in found]
    assert statuses == [None, "PENDING", "COMPLETED", "COMPLETED", "CANCELLED"]


async def test_a_submission_that_was_refused_never_had_an_effect(ledger: Ledger) -> None:
    """Not even at its own position, where the refusal is not recorded yet."""
    records = await ledger.write(
        opening(), [event_of(customer(1, PEN)), event_of(customer(1, ANN))]
    )
    async with open_as_of(ledger.engine("api"), 60) as reader:
        for position in range(3, len(records) + 1):
            assert await reader.row(WALLETS, PEN, position) is None
            found = await reader.row(WALLETS, ANN, position)
            assert found
            assert found.balance_minor == 10**9


async def test_a_position_beyond_the_head_is_refused_and_the_head_named(reader: AsOfReader) -> None:
    head = (await reader.resolve(AsOf(None, now_us()))).position
    assert await reader.resolve(AsOf(head)) == AsOfPosition(head, final=True)
    assert await reader.resolve(AsOf(0)) == AsOfPosition(0, final=True)
    with pytest.raises(PositionBeyondHead, match=f"the ledger ends at position {head}$") as refused:
        await reader.resolve(AsOf(head + 1))
    assert refused.value.head == head


async def test_a_time_is_the_last_position_recorded_by_then(
    written: tuple[Ledger, list[Record]], reader: AsOfReader
) -> None:
    _, records = written
    times = sorted({record.recorded_at_us for record in records})
    for asked_us in [0, *times, *(t + 1 for t in times), *(t - 1 for t in times)]:
        expected = sum(record.recorded_at_us <= asked_us for record in records)
        found = await reader.resolve(AsOf(None, asked_us))
        assert found == AsOfPosition(expected, final=asked_us < times[-1]), asked_us


async def test_a_future_time_is_refused(reader: AsOfReader) -> None:
    with pytest.raises(PositionBeyondHead, match="lies ahead"):
        await reader.resolve(AsOf(None, now_us() + 60_000_000))


async def test_the_clock_of_the_writer_counts_where_it_is_ahead(ledger: Ledger) -> None:
    ahead_us = now_us() + 10**10
    async with ledger.writing(now_us=lambda: ahead_us, clock_limit_s=0):
        await ledger.put_events(events := opening())
        await ledger.until_recorded(events)
    async with open_as_of(ledger.engine("api"), 60) as reader:
        assert await reader.resolve(AsOf(None, ahead_us)) == AsOfPosition(2, final=False)
        assert await reader.resolve(AsOf(None, ahead_us - 1)) == AsOfPosition(0, final=True)


async def test_an_empty_ledger_has_no_row_as_of_any_time(ledger: Ledger) -> None:
    async with open_as_of(ledger.engine("api"), 60) as reader:
        assert await reader.resolve(AsOf(0)) == AsOfPosition(0, final=True)
        assert await reader.resolve(AsOf(None, now_us())) == AsOfPosition(0, final=False)
        assert await reader.row(WALLETS, ANN, 0) is None
        with pytest.raises(PositionBeyondHead, match="the ledger ends at position 0"):
            await reader.resolve(AsOf(1))


async def test_new_events_and_dropped_snapshots_do_not_change_an_as_of_read(ledger: Ledger) -> None:
    records = await write_history(ledger, every=10)
    position = len(records) // 2
    then = Then(records, position, await ledger.keys())

    async def look() -> None:
        async with open_as_of(ledger.engine("api"), 60) as reader:
            for key, row in then.wallets().items():
                assert await reader.row(WALLETS, key, position) == row
            for key, product in then.stock().items():
                assert await reader.row(STOCK, key, position) == product

    async def disturb() -> None:
        for _ in range(5):
            await ledger.execute("DELETE FROM snapshots ORDER BY position DESC LIMIT 10")
        async with ledger.writing(snapshot_every=2):
            for _ in range(5):
                await ledger.put_events(events := orders(3))
                await ledger.until_recorded(events)

    await asyncio.gather(disturb(), *(look() for _ in range(4)))


async def test_as_of_reads_are_unavailable_without_a_database(ledger: Ledger) -> None:
    url = ledger.settings.model_copy(update={"db_port": free_port()}).db_url("api")
    engine = make_engine(url, autocommit=True)
    with pytest.raises(ViewsUnavailable):
        async with open_as_of(engine, 5) as reader:
            await reader.resolve(AsOf(0))
    await engine.dispose()


async def test_an_as_of_read_past_its_deadline_is_unavailable(ledger: Ledger) -> None:
    async with open_proxy(ledger.settings.db_port) as proxy:
        changed = ledger.settings.model_copy(update={"db_port": proxy.port})
        engine = make_engine(changed.db_url("api"), autocommit=True)

        async def look() -> None:
            async with open_as_of(engine, 1) as reader:
                await reader.resolve(AsOf(0))
                proxy.stall()
                await reader.resolve(AsOf(0))

        with pytest.raises(ViewsUnavailable):
            await look()
        await proxy.heal()
        await engine.dispose()


async def test_an_erased_name_is_erased_as_of_earlier_positions_too(ledger: Ledger) -> None:
    await ledger.write(opening(), [event_of(order()), event_of(erasure())])
    async with open_as_of(ledger.engine("api"), 60) as reader:
        found = [await reader.row(WALLETS, ANN, position) for position in range(1, 6)]
    assert [row and row.username for row in found] == ["erased"] * 5
    assert [row and row.balance_minor for row in found] == [10**9] * 3 + [10**9 - 1000] * 2


async def test_a_price_as_of_a_position_is_by_the_rules_in_force_there(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Rules(2, (Tier(40, Decimal(3)),), Decimal(4))
    monkeypatch.setitem(RULES, 2, second)
    first = await ledger.write(opening(stock=10), [event_of(order(5))])
    async with ledger.connection() as connection:
        known = await load(connection)
        await take_over(connection, known)
        known.fold.rules = second
        event, at_us = event_of(order(1, OTHER_ORDER)), known.recorded_at_us
        composed = compose([event], known.fold, known.head, {}, at_us, CustomerKeys({}))
        await Store(connection).append(known.head, composed.records)
    async with open_as_of(ledger.engine("api"), 60) as reader:
        found = [await reader.row(STOCK, PEN, position) for position in range(2, len(first) + 3)]
    # Listed; ordered and, by the first rules, decided; ordered and, by the second, decided.
    assert [row and row.current_price_minor for row in found] == [1000, 1000, 1200, 1200, 4000]
