"""Comparing two tables of the same shape row by row, in the server, in ranges of their keys."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from sqlalchemy import Column, String
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.runtime.timestamps import format_rfc3339
from projections.views.projection import Projection

RANGE_ROWS: Final = 20_000

Keys = tuple[Any, ...]


class Difference(Struct, frozen=True):
    """The first row in which a view differs from the rebuilt one, by its key.

    Each column that differs with what the view shows and what was rebuilt; a row that is in one of
    the two alone differs in all columns, and the other has None in each.
    """

    view: str
    key: dict[str, str]
    columns: dict[str, tuple[str | None, str | None]]

    def __str__(self) -> str:
        key = ", ".join(f"{name} {value}" for name, value in self.key.items())
        shown, rebuilt = zip(*self.columns.values(), strict=True)
        if not any(shown):
            return f"{self.view} lacks the row of {key}"
        if not any(rebuilt):
            return f"{self.view} should not have the row of {key}"
        columns = "; ".join(f"{n} is {v}, rebuilt {r}" for n, (v, r) in self.columns.items())
        return f"{self.view} differs in the row of {key}: {columns}"


async def first_difference(
    connection: AsyncConnection,
    live: Projection[Any],
    made: Projection[Any],
    moved: Callable[[int], None],
) -> Difference | None:
    """The first difference in the order of the keys; `moved` is told how many rows were compared.

    Both tables must stand still meanwhile.
    """
    after: Any = None
    while True:
        up_to = await _end_of_range(connection, live, after)
        keys = await _differing(connection, live, made, after, up_to)
        if keys is not None:
            return await _difference(connection, live, made, keys)
        moved(RANGE_ROWS)
        if up_to is None:
            return None
        after = up_to


async def _end_of_range(connection: AsyncConnection, live: Projection[Any], after: Any) -> Any:
    """The key at which the next range ends; None if it goes on to the end."""
    first = live.key_columns[0]
    where, parameters = _within(first, after, None)
    found = await connection.exec_driver_sql(
        f"SELECT t.{first} FROM {live.name} t WHERE {where} ORDER BY t.{first} LIMIT 1 OFFSET %s",
        (*parameters, RANGE_ROWS),
    )
    return found.scalar_one_or_none()


async def _differing(
    connection: AsyncConnection, live: Projection[Any], made: Projection[Any], after: Any, to: Any
) -> Keys | None:
    """The first key in a range whose rows are not the same, or is in one table alone."""
    where, parameters = _within(live.key_columns[0], after, to)
    same = " AND ".join(_same(column) for column in live.table.columns)
    asked = [
        (live.name, made.name, f"NOT ({same})"),
        (made.name, live.name, f"o.{live.key_columns[0]} IS NULL"),
    ]
    keys = ", ".join(f"t.{name}" for name in live.key_columns)
    same_key = " AND ".join(f"o.{name} = t.{name}" for name in live.key_columns)
    found: list[Keys] = []
    for one, other, differs in asked:
        rows = await connection.exec_driver_sql(
            f"SELECT {keys} FROM {one} t LEFT JOIN {other} o ON {same_key}"
            f" WHERE {where} AND {differs} ORDER BY {keys} LIMIT 1",
            parameters,
        )
        found += [tuple(row) for row in rows]
    return min(found, default=None)


def _within(first: str, after: Any, to: Any) -> tuple[str, Keys]:
    bounds = [(f"t.{first} > %s", after), (f"t.{first} <= %s", to)]
    given = [(clause, value) for clause, value in bounds if value is not None]
    return " AND ".join(clause for clause, _ in given) or "TRUE", tuple(v for _, v in given)


def _same(column: Column[Any]) -> str:
    """Whether a column has the same value in both, to the byte: `=` would pass over spaces."""
    one, other = f"t.{column.name}", f"o.{column.name}"
    if isinstance(column.type, String):
        one, other = f"CAST({one} AS BINARY)", f"CAST({other} AS BINARY)"
    return f"{one} <=> {other}"


async def _difference(
    connection: AsyncConnection, live: Projection[Any], made: Projection[Any], keys: Keys
) -> Difference:
    shown, rebuilt = [await _row(connection, table, keys) for table in (live, made)]
    named = zip(live.columns, zip(shown, rebuilt, strict=True), strict=True)
    return Difference(
        live.name,
        dict(zip(live.key_columns, map(_text, keys), strict=True)),  # type: ignore[arg-type]
        {name: pair for name, pair in named if pair[0] != pair[1]},
    )


async def _row(connection: AsyncConnection, table: Projection[Any], keys: Keys) -> list[str | None]:
    where = " AND ".join(f"{name} = %s" for name in table.key_columns)
    found = await connection.exec_driver_sql(
        f"SELECT {', '.join(table.columns)} FROM {table.name} WHERE {where}", keys
    )
    row = found.one_or_none()
    return [None] * len(table.columns) if row is None else [_text(value) for value in row]


def _text(value: Any) -> str | None:
    match value:
        case None:
            return None
        case bytes():
            return str(UUID(bytes=value))
        case datetime():
            return format_rfc3339(value)
        case _:
            return str(value)
