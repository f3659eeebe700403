"""`ledger export` and `ledger import`: the ledger and its views as files, and events from them."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from msgspec import structs
from sqlalchemy.ext.asyncio import AsyncConnection

from cli import connections, console
from cli.export import ExportRefused, Format
from cli.export.directory import (
    MANIFEST_VERSION,
    Draft,
    File,
    Manifest,
    TableFile,
    encode_manifest,
    new_export,
)
from cli.export.formats import KEYS_FILE, encode_keys, functions_of
from cli.export.importer import import_events
from cli.export.tables import EVENTS, Rows, Table, count_rows, pin_views, tables_by_name, view_pages
from cli.settings import Settings
from ledger.eventlog.reader import EventReader
from ledger.eventlog.records import GENESIS_HASH, ChainCheck, LedgerDamaged, Record
from ledger.runtime.database import DATABASE_ERRORS


def export(  # noqa: PLR0913 (the options of the command)
    names: Annotated[
        list[str] | None, typer.Argument(help="`events` or views, all as of one position")
    ] = None,
    *,
    directory: Annotated[
        Path, typer.Option("--out", help="directory of the files; made if missing")
    ],
    every: Annotated[bool, typer.Option("--all", help="the events and every view")] = False,
    format_: Annotated[
        Format, typer.Option("--format", help="format of the files")
    ] = Format.PARQUET,
    with_keys: Annotated[
        bool,
        typer.Option("--with-keys", help="also the encryption keys of names, in a secret file"),
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="CSV: leave texts that a spreadsheet takes for formulas")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="replace the export in the directory")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the manifest")] = False,
) -> None:
    """Write events and views, all as of one position, as files with a manifest."""
    tables = tables_by_name()
    for name in names or ():
        if name not in tables:
            console.usage_error(f"there is no {name} to export: choose of {', '.join(tables)}")
    if every == bool(names):
        console.usage_error(f"say what to export: one or more of {', '.join(tables)}, or --all")
    chosen = [table for name, table in tables.items() if every or name in (names or ())]
    if with_keys and EVENTS not in chosen:
        console.usage_error("--with-keys goes with events, whose names the keys decrypt")
    if raw and format_ is not Format.CSV:
        console.usage_error(f"--raw is for --format csv: {format_} always has texts as they are")
    settings = console.read_settings()
    work = export_tables(
        settings, chosen, directory, format_, overwrite=overwrite, with_keys=with_keys, raw=raw
    )
    manifest = console.run(work)
    if as_json:
        typer.echo(encode_manifest(manifest), nl=False)
        return
    for file in manifest.files:
        console.out.print(f"{file.file}: {file.rows} rows")
    console.out.print(f"exported to {directory}, as of position {manifest.position}")


def import_(
    directory: Annotated[Path, typer.Argument(help="the directory of an export with events")],
    as_json: console.AsJson = False,
) -> None:
    """Append the events of an export to an empty ledger; run it again after an interruption."""
    imported = console.run(import_events(console.read_settings(), directory))
    if as_json:
        console.print_json(imported)
        return
    console.out.print(f"imported {imported.appended} events; the ledger ends like the export:")
    console.out.print(f"position {imported.position}, hash {imported.hash}")
    if not imported.with_keys:
        console.out.print("without keys (`ledger export --with-keys`) names are shown as erased")


async def export_tables(
    settings: Settings,
    tables: Sequence[Table],
    directory: Path,
    format_: Format = Format.PARQUET,
    *,
    overwrite: bool = False,
    with_keys: bool = False,
    raw: bool = False,
) -> Manifest:
    """Write all files of an export and return its manifest; after an error no file is left.

    Raises ExportRefused, NoParquet, LedgerDamaged, and DATABASE_ERRORS where no database answers
    at first.
    """
    names = [f"{table.name}.{format_}" for table in tables]
    if with_keys:
        names.append(KEYS_FILE)
    async with connections.connection(settings, "projector") as database:
        with new_export(directory, names, overwrite=overwrite) as draft:
            try:
                manifest = await _write_files(
                    database, draft, tables, format_, with_keys=with_keys, raw=raw
                )
            except DATABASE_ERRORS as error:
                reason = getattr(error, "orig", None) or error
                raise ExportRefused(f"the database failed meanwhile: {reason}") from error
            draft.publish(manifest)
    return manifest


async def _write_files(
    database: AsyncConnection,
    draft: Draft,
    tables: Sequence[Table],
    format_: Format,
    *,
    with_keys: bool,
    raw: bool,
) -> Manifest:
    """Write every file but the manifest, which is returned."""
    reader = EventReader(database)
    views = [table for table in tables if table is not EVENTS]
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
    files: dict[str, TableFile] = {}
    for view in views:
        total = await count_rows(database, view)
        pages = view_pages(database, view)
        files[view.name] = await _write_table(draft, view, format_, pages, total, raw=raw)
    # Ends the transaction that pins the views, which no rebuild can swap until then. Of the events
    # every transaction reads the same up to a position: none is ever changed.
    await database.rollback()
    if EVENTS in tables:
        records = reader.pages(0, position, chain=ChainCheck())
        rows = ([structs.astuple(record) for record in page.records] async for page in records)
        files[EVENTS.name] = await _write_table(draft, EVENTS, format_, rows, position, raw=raw)
    keys = await _write_keys(reader, draft, last) if with_keys else None
    return Manifest(
        MANIFEST_VERSION,
        format_,
        position,
        (last.hash if last else GENESIS_HASH).hex(),
        datetime.now(UTC),
        version("order-ledger"),
        tuple(files[table.name] for table in tables),
        keys,
    )


async def _write_table(
    draft: Draft,
    table: Table,
    format_: Format,
    pages: AsyncIterator[Rows],
    total: int,
    *,
    raw: bool,
) -> TableFile:
    file = draft.create(f"{table.name}.{format_}")
    write_file, _ = functions_of(format_, raw=raw)
    rows = 0
    with (
        console.progress(table.name, total) as advance,
        write_file(file, table.columns) as write_rows,
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
    return TableFile(
        **structs.asdict(file.finish(rows)),
        name=table.name,
        columns=table.columns,
        view_version=table.projection.version if table.projection else None,
    )


async def _write_keys(reader: EventReader, draft: Draft, last: Record | None) -> File:
    """Write the encryption keys of all customers registered up to a record, as they are now.

    A key that was destroyed since is written as destroyed.
    """
    file = draft.create(KEYS_FILE, 0o600)
    created_up_to_us = last.recorded_at_us if last else 0
    customer_id, rows = b"", 0
    while page := await reader.key_rows(customer_id, created_up_to_us):
        file.write(encode_keys(page))
        customer_id = page[-1].customer_id
        rows += len(page)
    return file.finish(rows)
