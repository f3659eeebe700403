"""Parquet: rows of an export by way of Arrow, and the events of one read back."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from pyarrow.parquet import ParquetFile, ParquetWriter

from cli.export.directory import DraftFile
from cli.export.tables import EVENTS, Column, Kind
from ledger.eventlog.records import Record
from ledger.eventlog.store import PAGE

GROUP_ROWS: Final = 100_000
GROUP_BYTES: Final = 64 * 1024 * 1024
_TIME: Final = pa.timestamp("us", tz="UTC")
_WORD: Final = pa.dictionary(pa.int32(), pa.string())

ARROW: Final = {
    Kind.UUID: pa.uuid(),
    Kind.WORD: _WORD,
    Kind.TEXT: pa.string(),
    Kind.JSON: pa.string(),
    Kind.INTEGER: pa.int64(),
    Kind.TIMESTAMP: _TIME,
    Kind.SHA256: pa.binary(32),
}
_FROM_ROWS: Final[dict[Kind, Callable[[Sequence[Any]], Any]]] = {
    Kind.UUID: lambda ids: pa.ExtensionArray.from_storage(pa.uuid(), pa.array(ids, pa.binary(16))),
    Kind.WORD: lambda words: pa.array(words, pa.string()).dictionary_encode(),
    Kind.TEXT: lambda texts: pa.array(texts, pa.string()),
    Kind.JSON: lambda texts: pa.array(texts, pa.binary()).cast(pa.string()),
    Kind.INTEGER: lambda integers: pa.array(integers, pa.int64()),
    Kind.TIMESTAMP: lambda times: pa.array(times, pa.int64()).cast(_TIME),
    Kind.SHA256: lambda hashes: pa.array(hashes, pa.binary(32)),
}


class ParquetRows:
    """Writes rows in groups of GROUP_ROWS, or sooner where they come to GROUP_BYTES."""

    def __init__(self, file: DraftFile, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._schema = pa.schema(
            [pa.field(c.name, ARROW[c.kind], nullable=c.nullable) for c in columns]
        )
        self._writer = ParquetWriter(file, self._schema, compression="zstd")
        self._group: list[Any] = []

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        """Write rows, or keep them until the group is full."""
        columns = zip(self._columns, zip(*rows, strict=True), strict=True)
        arrays = [_FROM_ROWS[column.kind](values) for column, values in columns]
        self._group.append(pa.record_batch(arrays, schema=self._schema))
        if (
            sum(batch.num_rows for batch in self._group) >= GROUP_ROWS
            or sum(batch.nbytes for batch in self._group) >= GROUP_BYTES
        ):
            self._flush()

    def close(self) -> None:
        """Write the last group and what Parquet has at its end."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._group:
            self._writer.write_table(
                pa.Table.from_batches(self._group), row_group_size=GROUP_ROWS + PAGE
            )
            self._group = []


def read_parquet(path: Path) -> Iterator[list[Record]]:
    """The events of an export, page by page. Raises ValueError for a file of another shape."""
    names = [column.name for column in EVENTS.columns]
    with ParquetFile(path) as file:
        for batch in file.iter_batches(PAGE, columns=names):
            columns = [
                _to_rows(column.kind, values)
                for column, values in zip(EVENTS.columns, batch.columns, strict=True)
            ]
            yield [Record(*row) for row in zip(*columns, strict=True)]


def _to_rows(kind: Kind, values: Any) -> list[Any]:
    """The values as a record has them."""
    if values.type != ARROW[kind]:
        raise ValueError(f"a column of {kind} is {values.type}")
    match kind:
        case Kind.UUID:
            values = values.storage
        case Kind.JSON:
            values = values.cast(pa.binary())
        case Kind.TIMESTAMP:
            values = values.cast(pa.int64())
    found: list[Any] = values.to_pylist()
    return found
