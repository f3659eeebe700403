"""The past by id: at every position what a fold of the ledger, cut there, says."""

import asyncio
import random
from collections.abc import AsyncIterator
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from ledger.core.events import TYPE_OF, OrderPlaced
from ledger.core.pricing import RULES, Rules, Tier
from ledger.eventlog.composer import Composer
from ledger.eventlog.encryption import CustomerKeys
from ledger.eventlog.records import Record
from ledger.eventlog.store import Store
from ledger.runtime.database import make_engine
from ledger.runtime.timestamps import now_us
from ledger.writer import load, take_over
from projections import as_of as module
from projections.as_of import AsOfPosition, AsOfReader, PositionBeyondHead, open_as_of
from projections.queries import ViewsUnavailable
from projections.views.orders import ORDERS
from projections.views.stock import STOCK
from projections.views.wallets import WALLETS
from tests.core.story import ANN, ORDER, OTHER_ORDER, PEN, cancel, customer, erasure, order
from tests.harness import free_port, make_ledger
from tests.ledger.pipeline import Ledger, running_ledger
from tests.ledger.submissions import event_of, opening, orders
from tests.private_servers import Servers
from tests.proxy import open_proxy

from .as_of_states import Then, moments, write_history


@pytest.fixture(scope="module")
async def told(servers: Servers) -> AsyncIterator[tuple[Ledger, list[Record]]]:
    """A random history with snapshots, which these tests only read."""
    async with running_ledger(await make_ledger(servers)) as ledger:
        yield ledger, await write_history(ledger)


@pytest.fixture
async def past(told: tuple[Ledger, list[Record]]) -> AsyncIterator[AsOfReader]:
    """The history through the account of the API."""
    async with open_as_of(told[0].engine("api"), 60) as history:
        yield history


@pytest.mark.parametrize("window", [7, 5_000])
async def test_whatever_is_asked_by_id_is_what_a_fold_cut_there_says(
    told: tuple[Ledger, list[Record]],
    past: AsOfReader,
    window: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "WINDOW", window)
    ledger, records = told
    rows = await ledger.rows("SELECT MIN(position), COUNT(DISTINCT position) FROM snapshots")
    assert rows[0][0] < len(records) / 4, "no snapshot is near most positions"
    assert rows[0][1] > 5
    ids = {UUID(bytes=record.stream_id) for record in records}
    for position in moments(records, 12 if window > 100 else 4):
        then = Then(records, position, await ledger.keys())
        wallets, stock, placed = then.wallets(), then.stock(), then.orders()
        for key in (*random.Random(position).sample(sorted(ids), 25), uuid4()):
            assert await past.row(WALLETS, key, position) == wallets.get(key), position
            assert await past.row(STOCK, key, position) == stock.get(key), position
            assert await past.row(ORDERS, key, position) == placed.get(key), position


async def test_without_any_snapshot_the_past_is_the_same(ledger: Ledger) -> None:
    records = await write_history(ledger, every=10**6)
    async with open_as_of(ledger.engine("api"), 60) as past:
        for position in moments(records, 3):
            then = Then(records, position, await ledger.keys())
            for key, row in then.wallets().items():
                assert await past.row(WALLETS, key, position) == row
            for key, product in then.stock().items():
                assert await past.row(STOCK, key, position) == product


async def test_an_order_is_pending_between_its_placing_and_its_decision(ledger: Ledger) -> None:
    records = await ledger.write(opening(), [event_of(order()), event_of(cancel())])
    placed = next(r.position for r in records if r.type == TYPE_OF[OrderPlaced])
    async with open_as_of(ledger.engine("api"), 60) as past:
        found = [await past.row(ORDERS, ORDER, placed + later) for later in (-1, 0, 1, 2, 3)]
    statuses = [row and row.status for row in found]
    assert statuses == [None, "PENDING", "COMPLETED", "COMPLETED", "CANCELLED"]


async def test_a_submission_that_was_refused_never_had_an_effect(ledger: Ledger) -> None:
    """Not even at its own position, where the refusal is not recorded yet."""
    records = await ledger.write(
        opening(), [event_of(customer(1, PEN)), event_of(customer(1, ANN))]
    )
    async with open_as_of(ledger.engine("api"), 60) as past:
        for position in range(3, len(records) + 1):
            assert await past.row(WALLETS, PEN, position) is None
            found = await past.row(WALLETS, ANN, position)
            assert found
            assert found.balance_minor == 10**9


async def test_a_position_beyond_the_head_is_refused_and_the_head_named(past: AsOfReader) -> None:
    head = (await past.at_time(now_us())).position
    assert await past.at(head) == AsOfPosition(head, final=True)
    assert await past.at(0) == AsOfPosition(0, final=True)
    with pytest.raises(PositionBeyondHead, match=f"the ledger ends at position {head}$") as refused:
        await past.at(head + 1)
    assert refused.value.head == head


async def test_a_time_is_the_last_position_recorded_by_then(
    told: tuple[Ledger, list[Record]], past: AsOfReader
) -> None:
    _, records = told
    times = sorted({record.recorded_at_us for record in records})
    for asked_us in [0, *times, *(t + 1 for t in times), *(t - 1 for t in times)]:
        expected = sum(record.recorded_at_us <= asked_us for record in records)
        found = await past.at_time(asked_us)
        assert found == AsOfPosition(expected, final=asked_us < times[-1]), asked_us


async def test_a_time_that_has_not_come_is_refused(past: AsOfReader) -> None:
    with pytest.raises(PositionBeyondHead, match="lies ahead"):
        await past.at_time(now_us() + 60_000_000)


async def test_the_clock_of_the_writer_counts_where_it_is_ahead(ledger: Ledger) -> None:
    ahead_us = now_us() + 10**10
    async with ledger.writing(now_us=lambda: ahead_us):
        await ledger.put_events(events := opening())
        await ledger.until_recorded(events)
    async with open_as_of(ledger.engine("api"), 60) as past:
        assert await past.at_time(ahead_us) == AsOfPosition(2, final=False)
        assert await past.at_time(ahead_us - 1) == AsOfPosition(0, final=True)


async def test_an_empty_ledger_has_an_empty_past(ledger: Ledger) -> None:
    async with open_as_of(ledger.engine("api"), 60) as past:
        assert await past.at(0) == AsOfPosition(0, final=True)
        assert await past.at_time(now_us()) == AsOfPosition(0, final=False)
        assert await past.row(WALLETS, ANN, 0) is None
        with pytest.raises(PositionBeyondHead, match="the ledger ends at position 0"):
            await past.at(1)


async def test_while_it_is_read_the_past_grows_and_snapshots_come_and_go(ledger: Ledger) -> None:
    records = await write_history(ledger, every=10)
    position = len(records) // 2
    then = Then(records, position, await ledger.keys())

    async def look() -> None:
        async with open_as_of(ledger.engine("api"), 60) as past:
            for key, row in then.wallets().items():
                assert await past.row(WALLETS, key, position) == row
            for key, product in then.stock().items():
                assert await past.row(STOCK, key, position) == product

    async def disturb() -> None:
        for _ in range(5):
            await ledger.execute("DELETE FROM snapshots ORDER BY position DESC LIMIT 10")
        async with ledger.writing(snapshot_every=2):
            for _ in range(5):
                await ledger.put_events(events := orders(3))
                await ledger.until_recorded(events)

    await asyncio.gather(disturb(), *(look() for _ in range(4)))


async def test_without_database_the_past_is_unavailable(ledger: Ledger) -> None:
    url = ledger.settings.model_copy(update={"db_port": free_port()}).db_url("api")
    engine = make_engine(url, autocommit=True)
    with pytest.raises(ViewsUnavailable):
        async with open_as_of(engine, 5) as past:
            await past.at(0)
    await engine.dispose()


async def test_what_takes_too_long_is_unavailable(ledger: Ledger) -> None:
    async with open_proxy(ledger.settings.db_port) as proxy:
        changed = ledger.settings.model_copy(update={"db_port": proxy.port})
        engine = make_engine(changed.db_url("api"), autocommit=True)

        async def look() -> None:
            async with open_as_of(engine, 1) as past:
                await past.at(0)
                proxy.stall()
                await past.at(0)

        with pytest.raises(ViewsUnavailable):
            await look()
        await proxy.heal()
        await engine.dispose()


async def test_a_name_that_was_erased_is_erased_from_the_past_as_well(ledger: Ledger) -> None:
    await ledger.write(opening(), [event_of(order()), event_of(erasure())])
    async with open_as_of(ledger.engine("api"), 60) as past:
        found = [await past.row(WALLETS, ANN, position) for position in range(1, 6)]
    assert [row and row.username for row in found] == ["erased"] * 5
    assert [row and row.balance_minor for row in found] == [10**9] * 3 + [10**9 - 1000] * 2


async def test_a_price_is_by_the_rules_of_then(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Rules(2, (Tier(40, Decimal(3)),), Decimal(4))
    monkeypatch.setitem(RULES, 2, second)
    first = await ledger.write(opening(stock=10), [event_of(order(5))])
    async with ledger.connection() as connection:
        known = await load(connection)
        await take_over(connection, known)
        known.fold.rules = second
        composer = Composer(
            known.fold, len(first), known.head.hash, {}, known.recorded_at_us, CustomerKeys({})
        )
        composer.add([event_of(order(1, OTHER_ORDER))])
        await Store(connection).append(known.head, composer.records)
    async with open_as_of(ledger.engine("api"), 60) as past:
        found = [await past.row(STOCK, PEN, position) for position in range(2, len(first) + 3)]
    # Listed; ordered and, by the first rules, decided; ordered and, by the second, decided.
    assert [row and row.current_price_minor for row in found] == [1000, 1000, 1200, 1200, 4000]
