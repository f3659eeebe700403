"""Exports: the ledger and its views as files in a directory, and the way back."""

from enum import StrEnum


class Format(StrEnum):
    """How the files are written; it is also how their names end."""

    PARQUET = "parquet"
    CSV = "csv"
    JSONL = "jsonl"


class ExportRefused(Exception):
    """An export could not be made; what was there before is untouched."""


class BadExport(Exception):
    """The directory holds no whole export of the events of a ledger."""


class ImportRefused(Exception):
    """The ledger can't take the export."""


class NoParquet(Exception):
    """Parquet is wanted, and pyarrow is not installed."""
