"""Exports events and views, all as of one position, as files with a manifest."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from msgspec import Struct, structs
from sqlalchemy.ext.asyncio import AsyncConnection

from cli import console
from cli.connections import connection
from cli.export import ExportRefused, Format
from cli.export.directory import (
    MANIFEST_VERSION,
    Draft,
    File,
    Manifest,
    TableFile,
    new_export,
)
from cli.export.formats import KEYS_FILE, RowWriter, encode_keys, row_writer
from cli.export.tables import EVENTS, Rows, Table, count_rows, pin_views, view_pages
from cli.settings import Settings
from ledger.eventlog.encryption import KeyRow
from ledger.eventlog.reader import PAGE, EventReader
from ledger.eventlog.records import GENESIS_HASH, ChainCheck, LedgerDamaged, Record
from ledger.runtime.database import DATABASE_ERRORS


class ExportRequest(Struct, frozen=True):
    """The tables to export, their format, and the directory that the files go to."""

    tables: tuple[Table, ...]
    format: Format
    directory: Path
    overwrite: bool = False
    with_keys: bool = False

    def file_name(self, table: Table) -> str:
        """The name of a table's file."""
        return f"{table.name}.{self.format}"


async def export_tables(settings: Settings, request: ExportRequest) -> Manifest:
    """Write all files of an export and return its manifest; after an error no file is left.

    Raises ExportRefused, NoParquet, LedgerDamaged, and DATABASE_ERRORS where no database answers
    at first.
    """
    writer = row_writer(request.format)
    names = [request.file_name(table) for table in request.tables]
    if request.with_keys:
        names.append(KEYS_FILE)
    async with connection(settings, "projector") as database:
        with new_export(request.directory, names, overwrite=request.overwrite) as draft:
            try:
                manifest = await _write_files(database, draft, request, writer)
            except DATABASE_ERRORS as error:
                reason = getattr(error, "orig", None) or error
                raise ExportRefused(f"the database failed meanwhile: {reason}") from error
            draft.publish(manifest)
    return manifest


async def _write_files(
    database: AsyncConnection, draft: Draft, request: ExportRequest, writer: RowWriter
) -> Manifest:
    """Write every file but the manifest, which is returned."""
    reader = EventReader(database)
    files: dict[str, TableFile] = {}

    async def write(table: Table, pages: AsyncIterator[Rows], total: int) -> None:
        file = draft.create(request.file_name(table))
        rows = 0
        with (
            console.progress(table.name, total) as advance,
            writer(file, table.columns) as write_rows,
        ):
            async for page in pages:
                try:
                    write_rows(page)
                except ValueError as error:
                    raise ExportRefused(
                        f"{table.name} holds text that is not UTF-8: {error}"
                    ) from error
                rows += len(page)
                advance(len(page))
        files[table.name] = TableFile(
            **structs.asdict(file.finish(rows)),
            name=table.name,
            columns=table.columns,
            view_version=table.projection.version if table.projection else None,
        )

    views = [table for table in request.tables if table is not EVENTS]
    if views:
        position = await pin_views(database, views)
    else:
        end = await reader.compare_head()
        if end.failure:
            raise LedgerDamaged(end.failure.position, end.failure.detail)
        position = end.position
    last = await reader.record_at(position)
    if position and last is None:
        raise LedgerDamaged(position, "the event is gone, but its views are there")
    for view in views:
        await write(view, view_pages(database, view), await count_rows(database, view))
    # Ends the transaction that pins the views, which no rebuild can swap until then. Of the events
    # every transaction reads the same up to a position: none is ever changed.
    await database.rollback()
    if EVENTS in request.tables:
        pages = reader.pages(0, position, chain=ChainCheck())
        rows = ([structs.astuple(record) for record in page.records] async for page in pages)
        await write(EVENTS, rows, position)
    keys = await _write_keys(database, draft, last) if request.with_keys else None
    return Manifest(
        MANIFEST_VERSION,
        request.format,
        position,
        (last.hash if last else GENESIS_HASH).hex(),
        datetime.now(UTC),
        version("order-ledger"),
        tuple(files[table.name] for table in request.tables),
        keys,
    )


async def _write_keys(database: AsyncConnection, draft: Draft, last: Record | None) -> File:
    """Write the encryption keys of all customers registered up to a record, as they are now.

    A key that was destroyed since is written as destroyed.
    """
    file = draft.create(KEYS_FILE, 0o600)
    created_up_to_us = last.recorded_at_us if last else 0
    columns = ", ".join(KeyRow.__struct_fields__)
    customer_id, rows = b"", 0
    while True:
        result = await database.exec_driver_sql(
            f"SELECT {columns} FROM customer_keys WHERE customer_id > %s AND created_at_us <= %s"
            " ORDER BY customer_id LIMIT %s",
            (customer_id, created_up_to_us, PAGE),
        )
        key_rows: Any = result.all()
        page = [KeyRow(*row) for row in key_rows]
        if not page:
            return file.finish(rows)
        file.write(encode_keys(page))
        customer_id = page[-1].customer_id
        rows += len(page)
