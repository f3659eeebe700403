"""Exports: the ledger and its views as files in a directory, and imports of those files."""

from enum import StrEnum


class Format(StrEnum):
    """The format of the files of an export, which is also the extension of their names."""

    PARQUET = "parquet"
    CSV = "csv"
    JSONL = "jsonl"


class ExportRefused(Exception):
    """An export could not be made; an export that was there before is unchanged."""


class BadExport(Exception):
    """The directory does not hold a complete export of a ledger's events."""


class ImportRefused(Exception):
    """What is to be imported can't be appended to this ledger."""


class NoParquet(Exception):
    """Parquet was asked for, and pyarrow is not installed."""
