"""Rows as statements: whatever text clients send is kept to the byte, and stays out of logs."""

from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

import pytest
from msgspec.structs import replace
from sqlalchemy.exc import DBAPIError

from ledger.runtime import database
from projections.tables import write_rows
from projections.views.projection import ViewDamaged
from projections.views.stock import STOCK, StockRow
from tests.ledger.pipeline import Ledger

from .view_rows import live

NASTY = (
    "",
    " ",
    "it's",
    '"; DROP TABLE stock; --',
    "\\",
    "\\'",
    "100 %s %(name)s :name ?",
    "nul \0 tab \t line \n",
    "žluťoučký 🐴",
    "x" * 200,
)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def shelf(number: int, name: str, at: datetime = NOON) -> StockRow:
    """A row of the stock view."""
    return StockRow(UUID(int=number), name, name, 1, 2**63 - 1, 0, 3, at, number, number)


async def test_any_text_comes_out_as_it_went_in(ledger: Ledger) -> None:
    rows = [shelf(number, name) for number, name in enumerate(NASTY)]
    async with ledger.connection("projector") as connection:
        await write_rows(connection, [(STOCK, rows)])
        await connection.commit()
    assert list((await live(ledger, STOCK)).values()) == rows


async def test_a_microsecond_is_kept_and_so_is_its_absence(ledger: Ledger) -> None:
    rows = [shelf(1, "a", NOON), shelf(2, "b", NOON.replace(microsecond=1))]
    async with ledger.connection("projector") as connection:
        await write_rows(connection, [(STOCK, rows)])
        await connection.commit()
    assert list((await live(ledger, STOCK)).values()) == rows


async def test_many_rows_go_in_several_statements(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "PACKET_CHARACTERS", 500)
    rows = [shelf(number, "lamp") for number in range(20)]
    assert 1 < len(list(database.packets(rows))) < 20
    async with ledger.connection("projector") as connection:
        await write_rows(connection, [(STOCK, rows)])
        await connection.commit()
    assert list((await live(ledger, STOCK)).values()) == rows


async def test_what_was_to_be_written_is_not_in_the_error(ledger: Ledger) -> None:
    row = replace(shelf(1, "secret"), description="secret" * 1000)
    async with ledger.connection("projector") as connection:
        with pytest.raises(DBAPIError, match="Data too long") as caught:
            await write_rows(connection, [(STOCK, [row])])
    assert "secret" not in str(caught.value)
    assert b"secret".hex() not in str(caught.value)
    assert not isinstance(caught.value, ViewDamaged)


async def test_rows_that_cant_be_made_stop_what_follows_and_leave_the_connection_usable(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "PACKET_CHARACTERS", 1)

    def rows() -> Iterator[StockRow]:
        yield shelf(1, "lamp")
        raise ViewDamaged("no lamp")

    async with ledger.connection("projector") as connection:
        with pytest.raises(ViewDamaged, match="no lamp"):
            await write_rows(connection, [(STOCK, rows())])
        await connection.rollback()
        await write_rows(connection, [(STOCK, [shelf(2, "desk")])])
        await connection.commit()
    assert list((await live(ledger, STOCK)).values()) == [shelf(2, "desk")]
