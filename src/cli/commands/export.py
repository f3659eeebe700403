"""`ledger export` and `ledger import`: the ledger and its views as files, and events from them."""

from pathlib import Path
from typing import Annotated

import typer

from cli import console
from cli.export import Format
from cli.export.directory import encode_manifest
from cli.export.exporter import ExportRequest, export_tables
from cli.export.importer import import_events
from cli.export.tables import tables_by_name


def export(
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
    overwrite: Annotated[bool, typer.Option(help="replace the export in the directory")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the manifest")] = False,
) -> None:
    """Write events and views, all as of one position, as files with a manifest."""
    tables, selected = tables_by_name(), names or ()
    unknown = [name for name in selected if name not in tables]
    if unknown:
        console.usage_error(f"there is no {unknown[0]} to export: choose of {', '.join(tables)}")
    if every == bool(names):
        console.usage_error(f"say what to export: one or more of {', '.join(tables)}, or --all")
    if with_keys and not every and "events" not in selected:
        console.usage_error("--with-keys goes with events, whose names the keys decrypt")
    chosen = tuple(table for name, table in tables.items() if every or name in selected)
    request = ExportRequest(chosen, format_, directory, overwrite, with_keys)
    manifest = console.run(export_tables(console.read_settings(), request))
    if as_json:
        typer.echo(encode_manifest(manifest), nl=False)
        return
    for file in manifest.files:
        console.out.print(f"{file.file}: {file.rows} rows", markup=False)
    console.out.print(f"exported to {directory}, as of position {manifest.position}", markup=False)


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
