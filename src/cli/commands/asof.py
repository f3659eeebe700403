"""`ledger asof`: orders, wallets and stock as they were at a position or a time."""

from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
import typer
from msgspec import Struct
from rich.table import Table
from sqlalchemy import BINARY, BigInteger

from cli import connections, console
from cli.settings import Settings
from ledger.core.money import to_amount
from ledger.runtime.timestamps import BadTimestamp, format_rfc3339, parse_rfc3339
from projections.as_of import AsOfPosition, AsOfReader, open_as_of, view_as_of
from projections.views.projection import KeyedProjection
from projections.views.registry import PROJECTIONS

# For one row; a whole view takes as long as it takes.
ROW_TIMEOUT_S: Final = 60.0


class AsOfTarget(Struct, frozen=True):
    """What the options name: a position, a time, or neither."""

    position: int | None
    time_us: int | None

    async def resolve(self, reader: AsOfReader) -> AsOfPosition:
        """The position that is meant; raises PositionBeyondHead."""
        if self.position is not None:
            return await reader.at(self.position)
        return await reader.at_time(self.time_us or 0)


VIEWS: Final = {view.name: view for view in PROJECTIONS if isinstance(view, KeyedProjection)}
ID: Final = "<36"
NUMBER: Final = ">14"
# The columns of a list for people, and their format, where that is not every column of the view;
# --json prints every field.
COLUMNS: Final[dict[str, dict[str, str]]] = {
    "orders": {
        "order_id": ID,
        "status": "<9",
        "quantity": ">8",
        "total_minor": NUMBER,
        "customer_id": ID,
        "product_id": ID,
        "failure_reason": "",
    },
    "wallets": {"customer_id": ID, "balance_minor": NUMBER, "username": ""},
    "stock": {
        "product_id": ID,
        "stock": ">10",
        "initial_stock": ">13",
        "base_price_minor": NUMBER,
        "current_price_minor": NUMBER,
        "name": "",
    },
}


def view_name(text: str) -> str:
    """The name of a keyed view; any other is a usage error."""
    if text not in VIEWS:
        raise typer.BadParameter(f"{text} is none of {', '.join(VIEWS)}")
    return text


def asof(
    view: Annotated[
        str,
        typer.Argument(metavar="VIEW", parser=view_name, help=" or ".join(VIEWS)),
    ],
    entity_id: Annotated[
        UUID | None, typer.Argument(metavar="ID", help="only this order, customer or product")
    ] = None,
    position: Annotated[
        int | None, typer.Option(min=0, help="as of this position of the ledger")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="as of what was recorded by then, as 2026-01-31T12:00:00Z")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, an object a line")] = False,
) -> None:
    """Run `ledger asof`."""
    if (position is None) == (time is None):
        console.usage_error("say as of when: either --position N or --time T")
    as_of = AsOfTarget(position, parse_time(time))
    if entity_id is None:
        console.run(show_view(console.read_settings(), view, as_of, as_json=as_json))
        return
    row = console.run(read_row(console.read_settings(), view, entity_id, as_of))
    if row is None:
        entity = VIEWS[view].key_column.removesuffix("_id")
        console.fail(f"there was no such {entity} then: {entity_id}")
    if as_json:
        console.print_json(row)
        return
    table = Table(show_header=False, box=None)
    for name in row.__struct_fields__:
        table.add_row(_title(name), _text(name, getattr(row, name)))
    console.out.print(table)


def parse_time(text: str | None) -> int | None:
    """The time of `--time` in µs; one that can't be read ends the command with status 2."""
    try:
        return None if text is None else parse_rfc3339(text)
    except BadTimestamp as error:
        console.usage_error(f"--time {error}")


async def read_row(
    settings: Settings, view: str, entity_id: UUID, as_of: AsOfTarget
) -> Struct | None:
    """One row of a view; None if it was not there yet. Raises PositionBeyondHead."""
    async with (
        connections.engine(settings, "projector", read_only=True, autocommit=True) as engine,
        open_as_of(engine, ROW_TIMEOUT_S) as reader,
    ):
        resolved = await as_of.resolve(reader)
        row: Struct | None = await reader.row(VIEWS[view], entity_id, resolved.position)
        return row


async def show_view(settings: Settings, view: str, as_of: AsOfTarget, *, as_json: bool) -> None:
    """Print a whole view, row by row as they are computed."""
    columns, lines = COLUMNS.get(view) or columns_of(VIEWS[view]), console.LineWriter()
    async with connections.engine(settings, "projector", read_only=True, autocommit=True) as engine:
        async with open_as_of(engine, ROW_TIMEOUT_S) as reader:
            position = (await as_of.resolve(reader)).position
        if not as_json:
            titles = (f"{_title(name):{width}}" for name, width in columns.items())
            lines.add(" ".join(titles).rstrip().encode())
        async with engine.connect() as connection:
            with console.progress("reading", position) as advance:
                async for row in view_as_of(connection, VIEWS[view], position, advance):
                    if as_json:
                        lines.add(msgspec.json.encode(row))
                    else:
                        texts = (f"{_text(n, getattr(row, n)):{w}}" for n, w in columns.items())
                        lines.add(" ".join(texts).rstrip().encode())
    lines.flush()


def columns_of(view: KeyedProjection[Any]) -> dict[str, str]:
    """All columns of the view's answers, each with a format for its type."""
    names = (view.as_of_row or view.row).__struct_fields__
    formats = {BINARY: ID, BigInteger: NUMBER}
    return {name: formats.get(type(view.table.c[name].type), "") for name in names}


def _title(name: str) -> str:
    return name.removesuffix("_minor").replace("_", " ")


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name.endswith("_minor"):
        return to_amount(value)
    return format_rfc3339(value) if isinstance(value, datetime) else str(value)
