"""The code of each format. That of Parquet is loaded when it is needed: it is large, or missing."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from cli.export import Format, NoParquet
from cli.export.directory import DraftFile
from cli.export.tables import Column
from cli.export.texts import CsvRows, JsonLines, read_csv, read_jsonl
from ledger.eventlog.records import Record


class Rows(Protocol):
    """The rows of one file in the making."""

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        """Write one or more rows."""

    def close(self) -> None:
        """Write what is left, before the file is finished."""


MakeRows = Callable[[DraftFile, Sequence[Column]], Rows]
ReadEvents = Callable[[Path], Iterator[list[Record]]]

_ROWS: Final[dict[Format, MakeRows]] = {Format.CSV: CsvRows, Format.JSONL: JsonLines}
_EVENTS: Final[dict[Format, ReadEvents]] = {Format.CSV: read_csv, Format.JSONL: read_jsonl}


def rows_of(format_: Format) -> MakeRows:
    """What writes the rows of a file; raises NoParquet."""
    if format_ is Format.PARQUET:
        make_rows: MakeRows = _parquet().ParquetRows
        return make_rows
    return _ROWS[format_]


def events_of(format_: Format) -> ReadEvents:
    """What reads the events of a file; raises NoParquet."""
    if format_ is Format.PARQUET:
        read_events: ReadEvents = _parquet().read_parquet
        return read_events
    return _EVENTS[format_]


def _parquet() -> Any:
    try:
        from cli.export import parquet
    except ModuleNotFoundError as error:
        raise NoParquet(
            f"{error.name} is missing: `pip install 'order-ledger[parquet]'`, or use --format csv"
        ) from error
    return parquet
