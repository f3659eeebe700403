"""Exports for tests: made in the test's own process, and read by other tools."""

import csv
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb

from cli.commands.export import export_tables
from cli.export import Format
from cli.export.directory import Manifest
from cli.export.tables import tables_by_name
from cli.settings import Settings
from ledger.eventlog.records import Record
from projections.views.registry import PROJECTIONS
from tests.ledger.pipeline import Ledger
from tests.projections.view_rows import advance_to_the_end

EVERYTHING = ("events", *(projection.name for projection in PROJECTIONS))
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


async def project(ledger: Ledger) -> None:
    """Bring the views to the head."""
    async with ledger.connection("projector") as connection:
        await advance_to_the_end(connection)


async def export(
    settings: Settings,
    to: Path,
    *names: str,
    format_: str = "parquet",
    overwrite: bool = False,
    with_keys: bool = False,
) -> Manifest:
    """Do what `ledger export NAMES --out TO` does."""
    tables = tables_by_name()
    chosen = [tables[name] for name in names]
    return await export_tables(
        settings, chosen, to, Format(format_), overwrite=overwrite, with_keys=with_keys
    )


def manifest(directory: Path) -> Any:
    """The manifest of an export."""
    return json.loads((directory / "manifest.json").read_text())


def exported_records(directory: Path) -> list[Record]:
    """The records of an export."""
    if (directory / "events.parquet").exists():
        return _parquet_records(directory / "events.parquet")
    if (directory / "events.csv").exists():
        with (directory / "events.csv").open(newline="") as file:
            return [_text_record(row, row["meta"], row["data"]) for row in csv.DictReader(file)]
    lines = (directory / "events.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [_text_record(row, _canonical(row["meta"]), _canonical(row["data"])) for row in rows]


def _parquet_records(file: Path) -> list[Record]:
    rows = duckdb.sql(
        "SELECT position, event_id, stream_id, version, type, schema_version, cause_position,"
        f" epoch_us(occurred_at), epoch_us(recorded_at), meta, data, hash FROM '{file}'"
    ).fetchall()
    return [
        Record(p, e.bytes, s.bytes, *middle, meta.encode(), data.encode(), hash_)
        for p, e, s, *middle, meta, data, hash_ in rows
    ]


def _text_record(row: dict[str, Any], meta: str, data: str) -> Record:
    occurred_at_us, recorded_at_us = (
        (datetime.fromisoformat(row[name]) - EPOCH) // timedelta(microseconds=1)
        for name in ("occurred_at", "recorded_at")
    )
    return Record(
        int(row["position"]),
        UUID(row["event_id"]).bytes,
        UUID(row["stream_id"]).bytes,
        int(row["version"]),
        row["type"],
        int(row["schema_version"]),
        int(row["cause_position"]),
        occurred_at_us,
        recorded_at_us,
        meta.encode(),
        data.encode(),
        bytes.fromhex(row["hash"]),
    )


def _canonical(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def rows_in(file: Path) -> list[tuple[str, ...]]:
    """The rows of a file as DuckDB reads them, in text."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        rows = connection.sql(f"SELECT COLUMNS(*)::VARCHAR FROM '{file}'").fetchall()
    return [tuple(map(text, row)) for row in rows]


def text(value: object) -> str:
    """A value as text, the same for the database's type and the file's."""
    if isinstance(value, bytes):
        return str(UUID(bytes=value))
    if isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d[ T]", value):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat()
    return str(value)
