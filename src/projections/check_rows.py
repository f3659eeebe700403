"""Rows of a view as they are and as they must be, and what is wrong where they differ."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from msgspec.structs import astuple

from ledger.eventlog.chain import VerificationFailed
from projections.views.projection import Key, Projection

MAX_WORD: Final = 40
"""Longer text may be personal: of that it is only told that it is wrong."""

Columns = tuple[Any, ...]
"""The values of a row, as the database gives them."""
Rows = Mapping[Key, Columns]


def columns(row: Struct) -> Columns:
    """A row as the database gives it: ids as bytes, times in UTC without a zone."""
    return tuple(
        value.bytes
        if type(value) is UUID
        else value.replace(tzinfo=None)
        if type(value) is datetime
        else value
        for value in astuple(row)
    )


def by_key(view: Projection[Any], rows: Iterable[Columns]) -> dict[Key, Columns]:
    width = len(view.key_columns)
    return {row[0] if width == 1 else row[:width]: row for row in rows}


def refuse(wrong: Sequence[VerificationFailed]) -> None:
    """Raises the one that is wrong at the first position, if any is."""
    if wrong:
        raise min(wrong, key=attrgetter("position"))


def differences(view: Projection[Any], expected: Rows, found: Rows) -> list[VerificationFailed]:
    if expected == found:
        return []
    return [
        _difference(view, key, expected.get(key), found.get(key))
        for key in expected.keys() | found.keys()
        if expected.get(key) != found.get(key)
    ]


def _difference(
    view: Projection[Any], key: Key, expected: Columns | None, found: Columns | None
) -> VerificationFailed:
    position = view.columns.index("position")
    row = f"row {_shown(key)} of {view.name}"
    if expected is None:
        made_up = f"{row} is one that the ledger does not make"
        return VerificationFailed(found[position] if found else 0, made_up)
    if found is None:
        return VerificationFailed(expected[position], f"{row} is missing")
    apart = [
        _apart(view, name, is_, must)
        for name, is_, must in zip(view.columns, found, expected, strict=True)
        if is_ != must
    ]
    return VerificationFailed(expected[position], f"{row} has {', '.join(apart)}")


def _apart(view: Projection[Any], name: str, found: object, expected: object) -> str:
    length = getattr(view.table.columns[name].type, "length", None) or 0
    if length > MAX_WORD:
        return f"another {name}"
    return f"{name} {_shown(found)} instead of {_shown(expected)}"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ".".join(map(_shown, value))
    return str(UUID(bytes=value)) if isinstance(value, bytes) else str(value)
