"""CSV and JSON lines: rows of an export as text, and the events of one read back."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final
from uuid import UUID

from msgspec import Raw, Struct
from msgspec.json import Decoder, Encoder

from cli.export import BadExport
from cli.export.directory import DraftFile
from cli.export.tables import EVENTS, Column, Kind
from ledger.eventlog.records import Record
from ledger.eventlog.store import PAGE
from ledger.runtime.timestamps import format_us, to_us

_FIELDS: Final = [column.name for column in EVENTS.columns]


def _uuid(value: bytes) -> str:
    digits = value.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


_TEXT: Final[dict[Kind, Callable[[Any], Any]]] = {
    Kind.UUID: _uuid,
    Kind.TIMESTAMP: format_us,
    Kind.SHA256: bytes.hex,
}
_AS_CSV: Final = _TEXT | {Kind.JSON: bytes.decode}
_AS_JSON: Final = _TEXT | {Kind.JSON: Raw}


class CsvRows:
    """Writes rows as CSV by RFC 4180, with a line of names first; nothing stands for NULL."""

    def __init__(self, file: DraftFile, columns: Sequence[Column]) -> None:
        self._file = file
        self._columns = columns
        self._put([[column.name for column in columns]])

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        """Write rows."""
        self._put(_converted(rows, self._columns, _AS_CSV))

    def close(self) -> None:
        """Nothing is left to write."""

    def _put(self, rows: Iterable[Iterable[Any]]) -> None:
        page = io.StringIO(newline="")
        csv.writer(page).writerows(rows)
        self._file.write(page.getvalue().encode())


class JsonLines:
    """Writes each row as a JSON object on a line; JSON columns stand in it byte for byte."""

    def __init__(self, file: DraftFile, columns: Sequence[Column]) -> None:
        self._file = file
        self._columns = columns
        self._names = [column.name for column in columns]
        self._encode = Encoder().encode_lines

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        """Write rows."""
        values = _converted(rows, self._columns, _AS_JSON)
        self._file.write(self._encode([dict(zip(self._names, row, strict=True)) for row in values]))

    def close(self) -> None:
        """Nothing is left to write."""


def _converted(
    rows: Iterable[Sequence[Any]],
    columns: Sequence[Column],
    conversions: dict[Kind, Callable[[Any], Any]],
) -> Iterable[tuple[Any, ...]]:
    """The rows with each column in its text form; None stays None."""
    converted = []
    for column, values in zip(columns, zip(*rows, strict=True), strict=True):
        convert = conversions.get(column.kind)
        if convert is None:
            converted.append(values)
        else:
            converted.append(tuple(None if v is None else convert(v) for v in values))
    return zip(*converted, strict=True)


class _Line(Struct, frozen=True, gc=False):
    position: int
    event_id: UUID
    stream_id: UUID
    version: int
    type: str
    schema_version: int
    cause_position: int
    occurred_at: datetime
    recorded_at: datetime
    meta: Raw
    data: Raw
    hash: str


def read_jsonl(path: Path) -> Iterator[list[Record]]:
    """The events of an export, page by page. Raises ValueError for a line that is no event."""
    decode = Decoder(_Line).decode
    with path.open("rb") as file:
        while page := [_from_line(decode(line)) for line in islice(file, PAGE)]:
            yield page


def _from_line(line: _Line) -> Record:
    return Record(
        line.position,
        line.event_id.bytes,
        line.stream_id.bytes,
        line.version,
        line.type,
        line.schema_version,
        line.cause_position,
        to_us(line.occurred_at),
        to_us(line.recorded_at),
        bytes(line.meta),
        bytes(line.data),
        bytes.fromhex(line.hash),
    )


def read_csv(path: Path) -> Iterator[list[Record]]:
    """The events of an export, page by page. Raises ValueError for a line that is no event."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = _rows(file, path)
        while page := [_from_row(row) for row in islice(rows, PAGE)]:
            yield page


def _rows(file: IO[str], path: Path) -> Iterator[list[str]]:
    rows = csv.reader(file, strict=True)
    if next(rows, None) != _FIELDS:
        raise BadExport(f"the first line of {path} does not name the columns of events")
    return rows


def _from_row(row: list[str]) -> Record:
    (
        position,
        event_id,
        stream_id,
        version,
        type_,
        schema_version,
        cause_position,
        occurred_at,
        recorded_at,
        meta,
        data,
        hash_,
    ) = row
    return Record(
        int(position),
        UUID(event_id).bytes,
        UUID(stream_id).bytes,
        int(version),
        type_,
        int(schema_version),
        int(cause_position),
        to_us(datetime.fromisoformat(occurred_at)),
        to_us(datetime.fromisoformat(recorded_at)),
        meta.encode(),
        data.encode(),
        bytes.fromhex(hash_),
    )
