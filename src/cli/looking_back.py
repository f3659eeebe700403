"""What `ledger asof` reads and prints."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import Struct
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.commands.asof import PastView
from cli.lines import Lines, write
from cli.progress import progress
from cli.reading import reading_engine
from cli.running import out
from cli.settings import Settings
from ledger.core.money import to_amount
from ledger.runtime.timestamps import format_rfc3339
from projections.as_of import AsOfPosition, AsOfReader, open_as_of, view_as_of
from projections.views.projection import KeyedProjection
from projections.views.registry import PROJECTIONS

TIMEOUT_S: Final = 60.0
"""For one thing; a whole view takes as long as it takes."""


class When(Struct, frozen=True):
    """As of when: a position, or a time."""

    position: int | None
    time_us: int | None

    async def moment(self, history: AsOfReader) -> AsOfPosition:
        """The position meant; raises PositionBeyondHead."""
        if self.position is not None:
            return await history.at(self.position)
        return await history.at_time(self.time_us or 0)


VIEWS: Final = {view.name: view for view in PROJECTIONS if isinstance(view, KeyedProjection)}
ID: Final = "<36"
NUMBER: Final = ">14"
REST: Final = ""
COLUMNS: Final[dict[PastView, dict[str, str]]] = {
    PastView.ORDERS: {
        "order_id": ID,
        "status": "<9",
        "quantity": ">8",
        "total_minor": NUMBER,
        "customer_id": ID,
        "product_id": ID,
        "failure_reason": REST,
    },
    PastView.WALLETS: {"customer_id": ID, "balance_minor": NUMBER, "username": REST},
    PastView.STOCK: {
        "product_id": ID,
        "stock": ">10",
        "initial_stock": ">13",
        "base_price_minor": NUMBER,
        "current_price_minor": NUMBER,
        "name": REST,
    },
}
"""What lists show to people, and how wide; to programs they show all there is."""


async def show_one(
    settings: Settings, view: PastView, thing_id: UUID, when: When, *, as_json: bool
) -> bool:
    """Print one order, customer or product; whether there was such a one."""
    async with reading_engine(settings) as engine, open_as_of(engine, TIMEOUT_S) as history:
        moment = await when.moment(history)
        row = await history.row(VIEWS[view], thing_id, moment.position)
    if row is None:
        return False
    if as_json:
        write(msgspec.json.encode(row) + b"\n")
    else:
        table = Table(show_header=False, box=None)
        for name in row.__struct_fields__:
            table.add_row(_title(name), _text(name, getattr(row, name)))
        out.print(table)
    return True


async def show_all(settings: Settings, view: PastView, when: When, *, as_json: bool) -> None:
    """Print a whole view, row by row as they are found."""
    async with reading_engine(settings) as engine:
        async with open_as_of(engine, TIMEOUT_S) as history:
            moment = await when.moment(history)
        async with engine.connect() as connection:
            await _print(connection, view, moment.position, as_json)


async def _print(connection: AsyncConnection, view: PastView, position: int, as_json: bool) -> None:
    columns, lines = COLUMNS[view], Lines()
    if not as_json:
        titles = (f"{_title(name):{width}}" for name, width in columns.items())
        lines.add(" ".join(titles).rstrip().encode())
    with progress("reading", position) as moved:
        async for row in view_as_of(connection, VIEWS[view], position, moved):
            lines.add(msgspec.json.encode(row) if as_json else _cells(row, columns))
    lines.flush()


def _cells(row: Struct, columns: Mapping[str, str]) -> bytes:
    cells = (f"{_text(name, getattr(row, name)):{width}}" for name, width in columns.items())
    return " ".join(cells).rstrip().encode()


def _title(name: str) -> str:
    return name.removesuffix("_minor").replace("_", " ")


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name.endswith("_minor"):
        return to_amount(value)
    return format_rfc3339(value) if isinstance(value, datetime) else str(value)
