"""Views as of a position: at every position what a fold of the ledger up to there makes."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from ledger.eventlog.records import Record
from projections import as_of
from projections.as_of import view_as_of
from projections.views.orders import ORDERS
from projections.views.stock import STOCK
from projections.views.wallets import WALLETS
from tests.harness import make_ledger
from tests.ledger.pipeline import Ledger, running_ledger
from tests.private_servers import Servers
from tests.submissions import cancel, event_of, opening, order

from .as_of_states import Then, moments, write_history

VIEWS = {view.name: view for view in (ORDERS, WALLETS, STOCK)}


@pytest.fixture(scope="module")
async def written(servers: Servers) -> AsyncIterator[tuple[Ledger, list[Record]]]:
    """A random history with snapshots, which these tests only read."""
    async with running_ledger(await make_ledger(servers)) as ledger:
        yield ledger, await write_history(ledger)


async def listed(ledger: Ledger, name: str, position: int) -> list[Any]:
    async with ledger.connection("projector") as connection:
        return [
            row async for row in view_as_of(connection, VIEWS[name], position, lambda more: None)
        ]


@pytest.mark.parametrize("page", [9, 5_000])
@pytest.mark.parametrize("name", VIEWS)
async def test_a_view_as_of_any_position_equals_a_fold_up_to_there(
    written: tuple[Ledger, list[Record]], name: str, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger.eventlog.reader.PAGE", page)
    monkeypatch.setattr(as_of, "STREAMS", 4)
    ledger, records = written
    keys = await ledger.keys()
    for position in moments(records, 12):
        expected = list(getattr(Then(records, position, keys), name)().values())
        if name != "orders":
            expected.sort(key=lambda row: getattr(row, row.__struct_fields__[0]).bytes)
        assert await listed(ledger, name, position) == expected, position


@pytest.mark.parametrize("name", VIEWS)
async def test_an_empty_ledger_has_empty_views(ledger: Ledger, name: str) -> None:
    assert await listed(ledger, name, 0) == []


async def test_an_order_that_was_cancelled_long_after_is_seen_as_it_was_then(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cancel is in another page than the order."""
    monkeypatch.setattr("ledger.eventlog.reader.PAGE", 4)
    placed = [event_of(order(at=uuid4())) for _ in range(12)]
    last = cancel(placed[0].stream_id)
    records = await ledger.write(opening(), placed, [event_of(last)])
    before, after = [
        {row.order_id: row.status for row in await listed(ledger, "orders", position)}
        for position in (len(records) - 1, len(records))
    ]
    assert set(before.values()) == {"COMPLETED"}
    assert after == before | {placed[0].stream_id: "CANCELLED"}


@pytest.mark.parametrize("name", VIEWS)
async def test_progress_ends_where_the_work_does(
    written: tuple[Ledger, list[Record]], name: str
) -> None:
    ledger, records = written
    seen = 0

    def moved(more: int) -> None:
        nonlocal seen
        seen += more

    async with ledger.connection("projector") as connection:
        async for _ in view_as_of(connection, VIEWS[name], len(records), moved):
            pass
    assert seen == len(records)
