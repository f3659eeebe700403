"""`ledger asof`: orders, wallets and stock as they were at a position or a time."""

from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
import typer
from msgspec import Struct
from rich.table import Table
from sqlalchemy import BINARY, BigInteger, Integer, String

from cli import connections, console
from cli.settings import Settings
from ledger.core.money import to_amount
from ledger.runtime.timestamps import BadTimestamp, format_rfc3339, parse_rfc3339
from projections.as_of import AsOf, open_as_of, view_as_of
from projections.views.projection import KeyedProjection
from projections.views.registry import PROJECTIONS

# For one row; a whole view takes as long as it takes.
ROW_TIMEOUT_S: Final = 60.0


VIEWS: Final = {view.name: view for view in PROJECTIONS if isinstance(view, KeyedProjection)}
# The columns of a list for people, where that is not every column; --json prints every field.
COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "orders": (
        *("order_id", "status", "quantity", "total_minor"),
        *("customer_id", "product_id", "failure_reason"),
    ),
    "wallets": ("customer_id", "balance_minor", "username"),
    "stock": (
        *("product_id", "stock", "initial_stock"),
        *("base_price_minor", "current_price_minor", "name"),
    ),
}
FORMATS: Final = {BINARY: "<36", BigInteger: ">14", Integer: ">8", String: "<9"}

AsOfPosition = Annotated[
    int | None, typer.Option("--position", min=0, help="as of this position of the ledger")
]
AsOfTime = Annotated[
    str | None,
    typer.Option("--time", help="as of what was recorded by then, as 2026-01-31T12:00:00Z"),
]


def parse_as_of(position: int | None, time: str | None) -> AsOf:
    """What --position or --time names; both at once, or no time, ends the command with status 2."""
    if position is not None and time is not None:
        console.usage_error("say as of when: either --position N or --time T")
    try:
        return AsOf(position, None if time is None else parse_rfc3339(time))
    except BadTimestamp as error:
        console.usage_error(f"--time {error}")


def keyed_view(name: str) -> KeyedProjection[Any]:
    """The view with this name; any other name is a usage error."""
    if name not in VIEWS:
        raise typer.BadParameter(f"{name} is none of {', '.join(VIEWS)}")
    return VIEWS[name]


def asof(
    view: Annotated[
        KeyedProjection[Any],
        typer.Argument(metavar="VIEW", parser=keyed_view, help=" or ".join(VIEWS)),
    ],
    entity_id: Annotated[
        UUID | None, typer.Argument(metavar="ID", help="only this order, customer or product")
    ] = None,
    position: AsOfPosition = None,
    time: AsOfTime = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, an object a line")] = False,
) -> None:
    """Run `ledger asof`."""
    if position is None and time is None:
        console.usage_error("say as of when: either --position N or --time T")
    as_of, settings = parse_as_of(position, time), console.read_settings()
    if entity_id is None:
        console.run(show_view(settings, view, as_of, as_json=as_json))
        return
    row = console.run(read_row(settings, view, entity_id, as_of))
    if row is None:
        entity = view.key_column.removesuffix("_id")
        console.fail(f"there was no such {entity} then: {entity_id}")
    if as_json:
        console.print_json(row)
        return
    table = Table(show_header=False, box=None)
    for name in row.__struct_fields__:
        table.add_row(_title(name), _text(name, getattr(row, name)))
    console.out.print(table)


async def read_row(
    settings: Settings, view: KeyedProjection[Any], entity_id: UUID, as_of: AsOf
) -> Struct | None:
    """One row of a view; None if it was not there yet. Raises PositionBeyondHead."""
    async with (
        connections.engine(settings, "projector", read_only=True, autocommit=True) as engine,
        open_as_of(engine, ROW_TIMEOUT_S) as reader,
    ):
        row: Struct | None = await reader.row(
            view, entity_id, (await reader.resolve(as_of)).position
        )
        return row


async def show_view(
    settings: Settings, view: KeyedProjection[Any], as_of: AsOf, *, as_json: bool
) -> None:
    """Print a whole view, row by row as they are computed."""
    names = COLUMNS.get(view.name) or (view.as_of_row or view.row).__struct_fields__
    columns = {name: FORMATS.get(type(view.table.c[name].type), "") for name in names}
    lines = console.LineWriter()
    async with connections.engine(settings, "projector", read_only=True, autocommit=True) as engine:
        async with open_as_of(engine, ROW_TIMEOUT_S) as reader:
            position = (await reader.resolve(as_of)).position
        if not as_json:
            titles = (f"{_title(name):{width}}" for name, width in columns.items())
            lines.add(" ".join(titles).rstrip())
        async with engine.connect() as connection:
            with console.progress("reading", position) as advance:
                async for row in view_as_of(connection, view, position, advance):
                    if as_json:
                        lines.add_json(msgspec.json.encode(row))
                    else:
                        texts = (f"{_text(n, getattr(row, n)):{w}}" for n, w in columns.items())
                        lines.add(" ".join(texts).rstrip())
    lines.flush()


def _title(name: str) -> str:
    return name.removesuffix("_minor").replace("_", " ")


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name.endswith("_minor"):
        return to_amount(value)
    return format_rfc3339(value) if isinstance(value, datetime) else str(value)
