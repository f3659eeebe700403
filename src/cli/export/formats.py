"""The formats of an export: CSV and JSON lines here, Parquet in a module that is loaded for it."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import UUID

from msgspec import Meta, Raw, Struct, defstruct, structs
from msgspec.json import Decoder, Encoder

from cli.export import BadExport, Format, NoParquet
from cli.export.tables import EVENTS, Column, ColumnType, Rows
from ledger.eventlog.encryption import KEY_BYTES, KeyRow
from ledger.eventlog.reader import PAGE
from ledger.eventlog.records import Record
from ledger.runtime.timestamps import format_us, to_us

KEYS_FILE: Final = "customer_keys.jsonl"

Converters = dict[ColumnType, Callable[[Any], Any]]
RecordPages = Iterator[list[Record]]
# Gives the function that writes rows, which raises ValueError for text that is not UTF-8; what is
# left is written at the end, and not after an error.
WriteRows = Callable[[Rows], None]
RowWriter = Callable[[io.RawIOBase, Sequence[Column]], AbstractContextManager[WriteRows]]
ReadRecords = Callable[[Path], RecordPages]


def functions_of(format_: Format, *, raw: bool = False) -> tuple[RowWriter, ReadRecords]:
    """What writes the rows of one file in a format, and what reads the events of one by pages.

    With `raw`, CSV has texts as they are, formulas of a spreadsheet too.

    Raises NoParquet. The pages raise ValueError, msgspec.DecodeError, LookupError or OverflowError
    for what is no event.
    """
    match format_:
        case Format.CSV:
            return partial(write_csv, raw=raw), read_csv
        case Format.JSONL:
            return write_json_lines, read_json_lines
        case Format.PARQUET:
            try:
                # pyarrow takes 0.3 s of CPU to load, and may not be installed.
                from cli.export import parquet
            except ModuleNotFoundError as error:
                raise NoParquet(
                    f"{error.name} is missing: `pip install 'order-ledger[parquet]'`,"
                    " or use --format csv"
                ) from error
            return parquet.write_parquet, parquet.read_parquet


def _uuid_text(value: bytes) -> str:
    # A third of the time that str(UUID(bytes=value)) takes, for millions of ids.
    digits = value.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


_TO_TEXT: Final[Converters] = {
    ColumnType.UUID: _uuid_text,
    ColumnType.TIMESTAMP: format_us,
    ColumnType.SHA256: bytes.hex,
}
_TO_CSV: Final = _TO_TEXT | {ColumnType.JSON: bytes.decode}
# What a spreadsheet takes for a formula: after blanks and characters that are not shown, one of
# = + - @ or a wide form of it, or a tab or line end at the start (OWASP, "CSV Injection").
_FORMULA: Final = re.compile(
    r"'*([\t\r\n]|[\s\x00-\x20\x7f-\xa0\xad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]*"
    r"[=+\-@＝＋－＠﹦﹢﹣﹫\u2212])"
).match


def _disarmed(text: str) -> str:
    # Before what is disarmed already, too: so a reader takes away one ' where this put one.
    return f"'{text}" if _FORMULA(text) else text


_TO_SAFE_CSV: Final = _TO_CSV | {ColumnType.TEXT: _disarmed}
_TO_JSON: Final = _TO_TEXT | {ColumnType.JSON: Raw}
_FROM_TEXT: Final[Converters] = {
    ColumnType.UUID: lambda text: bytes.fromhex(text.replace("-", "")),
    ColumnType.TIMESTAMP: lambda text: to_us(datetime.fromisoformat(text)),
    ColumnType.SHA256: bytes.fromhex,
}
_FROM_CSV: Final = _FROM_TEXT | {ColumnType.INTEGER: int, ColumnType.JSON: str.encode}
_FROM_JSON: Final = _FROM_TEXT | {ColumnType.JSON: bytes}


def _convert(
    rows: Iterable[Sequence[Any]], columns: Sequence[Column], converters: Converters
) -> Iterable[tuple[Any, ...]]:
    """The rows with the values of each column converted by its type; None stays None."""
    converted = []
    # Column by column: the choice of the converter is then made once a page and not once a value.
    for column, values in zip(columns, zip(*rows, strict=True), strict=True):
        convert = converters.get(column.type)
        if convert is None:
            converted.append(values)
        elif column.nullable:
            converted.append(tuple([None if v is None else convert(v) for v in values]))
        else:
            converted.append(tuple(map(convert, values)))
    return zip(*converted, strict=True)


@contextmanager
def write_csv(
    file: io.RawIOBase, columns: Sequence[Column], *, raw: bool = False
) -> Iterator[WriteRows]:
    """Write rows as CSV by RFC 4180, after a line of column names; NULL is an empty field.

    Unless `raw`, a text that a spreadsheet would run as a formula begins with a `'`.
    """
    converters = _TO_CSV if raw else _TO_SAFE_CSV

    def write_lines(rows: Iterable[Iterable[Any]]) -> None:
        page = io.StringIO(newline="")
        csv.writer(page).writerows(rows)
        file.write(page.getvalue().encode())

    write_lines([[column.name for column in columns]])
    yield lambda rows: write_lines(_convert(rows, columns, converters))


@contextmanager
def write_json_lines(file: io.RawIOBase, columns: Sequence[Column]) -> Iterator[WriteRows]:
    """Write each row as a JSON object on a line; JSON columns keep their very bytes."""
    names, encode = [column.name for column in columns], Encoder().encode_lines

    def write(rows: Rows) -> None:
        converted = _convert(rows, columns, _TO_JSON)
        file.write(encode([dict(zip(names, row, strict=True)) for row in converted]))

    yield write


def read_csv(path: Path) -> RecordPages:
    """The events of a CSV file, page by page."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file, strict=True)
        if next(lines, None) != [column.name for column in EVENTS.columns]:
            raise BadExport(f"the first line of {path} does not name the columns of events")
        while page := list(islice(lines, PAGE)):
            yield _records(page, _FROM_CSV)


_JSON_TYPES: Final = {ColumnType.INTEGER: int, ColumnType.JSON: Raw}
_EventLine = defstruct(
    "_EventLine", [(column.name, _JSON_TYPES.get(column.type, str)) for column in EVENTS.columns]
)


def read_json_lines(path: Path) -> RecordPages:
    """The events of a file of JSON lines, page by page."""
    decode = Decoder(_EventLine).decode
    with path.open("rb") as file:
        while page := [structs.astuple(decode(line)) for line in islice(file, PAGE)]:
            yield _records(page, _FROM_JSON)


def _records(page: Iterable[Sequence[Any]], converters: Converters) -> list[Record]:
    return [Record(*row) for row in _convert(page, EVENTS.columns, converters)]


class _KeyLine(Struct, frozen=True):
    customer_id: UUID
    sealing_key: Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)] | None
    created_at_us: int
    erased_at_us: int | None


def encode_keys(keys: Iterable[KeyRow]) -> bytes:
    """Customers' encryption keys as JSON lines, the keys in base64."""
    lines = [
        _KeyLine(UUID(bytes=customer_id), *rest)
        for customer_id, *rest in map(structs.astuple, keys)
    ]
    return Encoder().encode_lines(lines)


def read_keys(path: Path) -> Iterator[list[KeyRow]]:
    """The encryption keys of a file, page by page; raises ValueError for a line that is no key."""
    decode = Decoder(_KeyLine).decode
    with path.open("rb") as file:
        while lines := [structs.astuple(decode(line)) for line in islice(file, PAGE)]:
            yield [KeyRow(customer_id.bytes, *rest) for customer_id, *rest in lines]
