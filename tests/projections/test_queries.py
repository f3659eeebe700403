"""The queries of the API: each answer is of one moment, and says of which."""

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest

from ledger.runtime.database import make_engine
from projections.queries import Views, ViewsUnavailable
from projections.views.orders import ORDERS, OrderRow
from projections.views.stock import STOCK, StockRow
from projections.views.wallets import WALLETS
from tests.harness import free_port, make_ledger
from tests.ledger.pipeline import Ledger, running_ledger
from tests.private_servers import Servers
from tests.submissions import ANN, PEN, cancel, event_of, history, opening, order

from .view_rows import advance_to_the_end, live, replayed


@pytest.fixture(scope="module")
async def written(servers: Servers) -> AsyncIterator[Ledger]:
    """A random history in the views, which these tests only read."""
    async with running_ledger(await make_ledger(servers)) as ledger:
        await ledger.write(opening(), history(11, 250), history(12, 250))
        async with ledger.connection("projector") as connection:
            await advance_to_the_end(connection)
        yield ledger


@pytest.fixture(scope="module")
async def views(written: Ledger) -> AsyncIterator[Views]:
    """The views of that history."""
    engine = make_engine(written.settings.db_url("api"), autocommit=True)
    yield Views(engine)
    await engine.dispose()


async def rows_of(ledger: Ledger) -> list[OrderRow]:
    rows = replayed(ORDERS, await ledger.records()).values()
    return sorted(
        (row for row in rows if isinstance(row, OrderRow)), key=lambda row: -row.placed_position
    )


async def test_one_row_comes_with_the_position_of_its_view(written: Ledger, views: Views) -> None:
    head = (await written.head()).position
    for view in (STOCK, WALLETS, ORDERS):
        for key, row in (await live(written, view)).items():
            assert await views.row(view, key) == (row, head)
        assert await views.row(view, uuid4()) == (None, head)
    assert await views.position() == head


async def test_the_position_is_that_of_the_view_which_is_furthest_behind(
    ledger: Ledger,
) -> None:
    await ledger.execute("UPDATE checkpoints SET position = 7")
    await ledger.execute("UPDATE checkpoints SET position = 5 WHERE name = 'wallets'")
    engine = make_engine(ledger.settings.db_url("api"), autocommit=True)
    views = Views(engine)
    assert await views.position() == 5
    assert await views.row(WALLETS, ANN) == (None, 5)
    assert await views.row(STOCK, PEN) == (None, 7)
    await engine.dispose()


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_paging_shows_every_product_once_as_they_were_listed(
    written: Ledger, views: Views, limit: int
) -> None:
    rows = replayed(STOCK, await written.records()).values()
    listed = sorted(row.listed_position for row in rows if isinstance(row, StockRow))
    seen: list[UUID] = []
    while True:
        page, _ = await views.products(seen[-1] if seen else None, limit)
        if not page:
            break
        assert len(page) <= limit
        seen += [row.product_id for row in page]
    at = {record.position: record.stream_id for record in await written.records()}
    assert seen == [UUID(bytes=at[position]) for position in listed]
    assert len(seen) >= 2
    assert await views.products(uuid4(), limit) == (None, (await written.head()).position)


@pytest.mark.parametrize("limit", [1, 3, 100])
async def test_paging_shows_every_order_once_and_the_newest_first(
    written: Ledger, views: Views, limit: int
) -> None:
    seen: list[OrderRow] = []
    while True:
        after = seen[-1].placed_position if seen else None
        page, position = await views.orders(after=after, limit=limit)
        assert position == (await written.head()).position
        if not page:
            break
        seen += page
    assert seen == await rows_of(written)


async def test_orders_are_found_by_customer_product_and_status(
    written: Ledger, views: Views
) -> None:
    every = await rows_of(written)
    assert {row.status for row in every} == {"COMPLETED", "FAILED", "CANCELLED"}
    for row in every:
        for names in (
            ["customer_id"],
            ["product_id"],
            ["status"],
            ["customer_id", "status"],
            ["customer_id", "product_id", "status"],
        ):
            wanted = {name: getattr(row, name) for name in names}
            found, _ = await views.orders(**wanted, limit=1_000)
            assert found == [
                each for each in every if all(getattr(each, k) == v for k, v in wanted.items())
            ]
    assert (await views.orders(customer_id=uuid4(), limit=5))[0] == []


async def test_an_empty_page_still_says_its_position(ledger: Ledger) -> None:
    engine = make_engine(ledger.settings.db_url("api"), autocommit=True)
    views = Views(engine)
    assert await views.products(None, 10) == ([], 0)
    assert await views.orders(limit=10) == ([], 0)
    assert await views.row(ORDERS, uuid4()) == (None, 0)
    assert await views.position() == 0
    await engine.dispose()


async def test_a_page_does_not_shift_when_new_orders_come(ledger: Ledger) -> None:
    first = [event_of(order(at=uuid4())) for _ in range(6)]
    await ledger.write(opening(), first)
    engine = make_engine(ledger.settings.db_url("api"), autocommit=True)
    views = Views(engine)
    async with ledger.connection("projector") as connection:
        await advance_to_the_end(connection)
        page, _ = await views.orders(limit=3)
        await ledger.write([event_of(order(at=uuid4())), event_of(cancel(first[0].stream_id))])
        await advance_to_the_end(connection)
    rest, _ = await views.orders(after=page[-1].placed_position, limit=10)
    assert [row.order_id for row in page + rest] == [e.stream_id for e in reversed(first)]
    await engine.dispose()


async def test_without_database_a_query_says_so(ledger: Ledger) -> None:
    url = ledger.settings.model_copy(update={"db_port": free_port()}).db_url("api")
    engine = make_engine(url, autocommit=True)
    with pytest.raises(ViewsUnavailable):
        await Views(engine).position()
    await engine.dispose()


async def test_views_that_were_never_registered_are_unavailable_rather_than_empty(
    ledger: Ledger,
) -> None:
    await ledger.execute("DELETE FROM checkpoints")
    engine = make_engine(ledger.settings.db_url("api"), autocommit=True)
    views = Views(engine)
    for ask in (views.position(), views.row(ORDERS, uuid4()), views.orders(limit=1)):
        with pytest.raises(ViewsUnavailable, match="ledger migrate"):
            await ask
    await engine.dispose()
