"""Parquet: rows of an export written through Arrow, and the events of one read again."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from pyarrow import parquet

from cli.export.tables import EVENTS, Column, ColumnType, Rows
from ledger.eventlog.reader import PAGE
from ledger.eventlog.records import Record

# A reader has a whole group in memory; many small ones compress worse and are slower to scan.
GROUP_ROWS: Final = 100_000
GROUP_BYTES: Final = 64 * 1024 * 1024

ARROW_TYPES: Final = {
    ColumnType.UUID: pa.uuid(),
    ColumnType.WORD: pa.dictionary(pa.int32(), pa.string()),
    ColumnType.TEXT: pa.string(),
    ColumnType.JSON: pa.string(),
    ColumnType.INTEGER: pa.int64(),
    ColumnType.TIMESTAMP: pa.timestamp("us", tz="UTC"),
    ColumnType.SHA256: pa.binary(32),
}


@contextmanager
def write_parquet(
    file: io.RawIOBase, columns: Sequence[Column]
) -> Iterator[Callable[[Rows], None]]:
    """Write rows in groups of GROUP_ROWS, or fewer where they reach GROUP_BYTES."""
    schema = pa.schema(
        [pa.field(c.name, ARROW_TYPES[c.type], nullable=c.nullable) for c in columns]
    )
    writer = parquet.ParquetWriter(file, schema, compression="zstd")
    group: list[Any] = []

    def write_group() -> None:
        if group:
            # A group may be longer than GROUP_ROWS by the page that filled it, and stays one group.
            table = pa.Table.from_batches(group)
            writer.write_table(table, row_group_size=GROUP_ROWS + PAGE)
            group.clear()

    def write(rows: Rows) -> None:
        values = zip(*rows, strict=True)
        arrays = [pa.array(v, field.type) for v, field in zip(values, schema, strict=True)]
        group.append(pa.record_batch(arrays, schema=schema))
        rows_held = sum(batch.num_rows for batch in group)
        bytes_held = sum(batch.nbytes for batch in group)
        if rows_held >= GROUP_ROWS or bytes_held >= GROUP_BYTES:
            write_group()

    yield write
    write_group()
    writer.close()


def read_parquet(path: Path) -> Iterator[list[Record]]:
    """The events of a file, page by page; raises ValueError for columns of another type."""
    names = [column.name for column in EVENTS.columns]
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(PAGE, columns=names):
            columns = [
                _record_values(column.type, values)
                for column, values in zip(EVENTS.columns, batch.columns, strict=True)
            ]
            yield [Record(*row) for row in zip(*columns, strict=True)]


def _record_values(type_: ColumnType, values: Any) -> list[Any]:
    """The values of a column as a record has them."""
    if values.type != ARROW_TYPES[type_]:
        raise ValueError(f"a column of {type_} is {values.type}")
    match type_:
        case ColumnType.UUID:
            values = values.storage
        case ColumnType.JSON:
            values = values.cast(pa.binary())
        case ColumnType.TIMESTAMP:
            values = values.cast(pa.int64())
    converted: list[Any] = values.to_pylist()
    return converted
